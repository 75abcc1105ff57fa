// Launching a kernel whose one argument is a struct. The same source also builds with g++ and runs on the CPU, one CUDA
// thread after another (ROPEROPE_CUDA=EMULATED, for tests): kernels keep to this header for everything that differs.
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

namespace rope::cuda {

// `dependent`: the kernel may start while the previous one of the stream still runs; it must call
// wait_for_previous() before it touches memory. Returns the launch's cudaError_t.
template <class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args, void* stream, bool dependent) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args);
  if (error != cudaSuccess) (void)cudaGetLastError();  // reported to the caller: do not leave it for the next one
  return error;
}

// Returns at once in a kernel that was launched plainly.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream be scheduled; it waits by itself for this one's results.
__device__ __forceinline__ void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace rope::cuda

#else

#include "cuda_on_cpu.h"

#endif
