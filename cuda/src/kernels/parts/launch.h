// Launching a kernel whose one argument is a struct. The same source also builds with g++ and runs on the CPU, one CUDA
// thread after another (ROPEROPE_CUDA=EMULATED, for tests): kernels keep to this header for everything that differs.
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include "../../math/pair.h"

namespace rope::cuda {

// Percent of a multiprocessor's first-level cache that is shared memory: 32 KB on sm_90. Where kernels ask for
// different shares one cannot start before the other has left a multiprocessor, and what the runtime would choose for
// as much as a few KB a block is not what kernels without shared memory have (KERNELS.md).
inline constexpr unsigned kCarveout = 14;

// kTogether: the threads of a block meet (synchronize), which only the CPU has to know beforehand.
// `dependent`: the kernel may start while the previous one of the stream still runs; it must call
// wait_for_previous() before it touches memory. Returns the launch's cudaError_t.
template <bool kTogether = false, class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args, void* stream, bool dependent) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[0].val.sharedMemCarveout = kCarveout;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = dependent ? 2 : 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args);
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported to the caller: do not leave it for the next one
  return error;
}

// Waits for the threads of the block, or only for those of the warp.
__device__ __forceinline__ void synchronize(bool warp_only) {
  if (warp_only) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// The value of the lane whose number differs by the bits of `lanes`; all lanes of the warp take part.
__device__ __forceinline__ float exchange(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

// Returns at once in a kernel that was launched plainly.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// wait_for_previous(), with the values that went into `digest` computed before the wait. ptxas would sink their
// constant loads and arithmetic below it, into the time that the stream's kernels do not share (KERNELS.md: 0.5 us a
// launch).
__device__ __forceinline__ void wait_for_previous(uint64_t digest) {
  if (digest == 0x9e3779b97f4a7c15u) wait_for_previous();  // in effect never, and harmless
  wait_for_previous();
}

// Folds integers and pointers into the digest.
template <class... T>
__device__ __forceinline__ void fold(uint64_t& digest, T... values) {
  digest ^= (... ^ uint64_t(values));
}

// Asks for the line to be brought into the second-level cache. That cache is where the device's writes meet, so a
// kernel may ask before it waits: what its predecessor still writes, it will read.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Lets the next kernel of the stream be scheduled; it waits by itself for this one's results. Again: no effect.
__device__ __forceinline__ void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// The address of a kernel argument as ordinary memory. Read as what it is, the constant bank, lanes that want different
// words would be served one after the other.
template <class T>
__device__ __forceinline__ const T* as_memory(const T* argument) {
  const T* address;
  asm("mov.b64 %0, %1;" : "=l"(address) : "l"(argument));
  return address;
}

// The compiler need not ask at run time, as it does where it has lost sight of an argument, what memory this is.
__device__ __forceinline__ void assume_global(const void* address) { __builtin_assume(__isGlobal(address)); }

// base + i * step in device memory, by one instruction: nvcc forms a product of 64 bits of it.
template <class T>
__device__ __forceinline__ T* advance(T* base, int32_t i, int32_t step) {
  T* at;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(at) : "r"(i), "r"(step), "l"(base));
  assume_global(at);
  return at;
}

// A load that stays where it is written, whatever its value is used for: ptxas moves others to their first use, or
// makes them depend on a condition that they do not need.
__device__ __forceinline__ uint32_t load_here(const char* at) {
  uint32_t x;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(x) : "l"(at));
  return x;
}

}  // namespace rope::cuda

#else

#include "cuda_on_cpu.h"

#endif
