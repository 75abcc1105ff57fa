// What sm_90a has beyond CUDA C++: barriers in shared memory, tensor copies, named barriers, register pools. Thin
// functions over PTX instructions (the PTX ISA explains each). In tests the same names run on a CPU, and check how
// they are used: hopper_on_cpu.h.
#pragma once

#ifdef __CUDACC__

#include <cuda.h>

#include "../parts/launch.h"

namespace rope::cuda {

using TensorMap = CUtensorMap;

// ---- the thread's place

inline constexpr int kWarp = 32, kWarpgroup = 128;

// A value that all lanes of the warp have, known to the compiler as one: what derives from it lies in uniform
// registers.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// Gives up or takes registers of the block's pool; the whole warpgroup calls it.
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- shared memory, by 32-bit addresses

// What the launch asked for; a multiple of 1024 bytes, which the 128-byte swizzle repeats after.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint4 load_shared(uint32_t at) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at));
  return x;
}

__device__ __forceinline__ void store_shared(uint32_t at, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// A load from device memory that stays where it is written.
__device__ __forceinline__ float4 load_global(const float* at) {
  float4 x;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(at));
  return x;
}

// Four matrices of 8 x 8 elements of 16 bits: lane 8 i + j has the address of row j of matrix i; every lane holds two
// neighbours of each matrix, of row lane / 4.
__device__ __forceinline__ void store_matrices(uint32_t at, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(m0), "r"(m1), "r"(m2),
               "r"(m3)
               : "memory");
}

// Between a thread's own accesses to shared memory and those of wgmma and TMA to what it wrote.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- mbarriers: a phase ends when as many threads arrived, and as many bytes, as are expected

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Behind the inits: TMA sees them.
__device__ __forceinline__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;"); }

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces what copies will bring in this phase.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until the phase of this parity has ended: phases count from 0, and the one before the first counts as ended.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra ended;\n"
      "bra again;\n"
      "ended:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- named barriers, of whole warps; 0 is __syncthreads()

__device__ __forceinline__ void group_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void group_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- tensor copies by one thread: a box of the map's tensor at coordinates (column, row, head, sequence)

__device__ __forceinline__ void load_box(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row,
                                         int head, int sequence) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::
          "r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "r"(head), "r"(sequence)
      : "memory");
}

__device__ __forceinline__ void store_box(const TensorMap* map, uint32_t from, int column, int row, int head,
                                          int sequence) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(from), "r"(column), "r"(row), "r"(head), "r"(sequence)
               : "memory");
}

__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until this thread's stores have read their shared memory.
__device__ __forceinline__ void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// ---- arithmetic

// 2^x, to 2 units in the last place; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x, to 1 unit in the last place; 0 for inf.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// To an error of 2^-22, absolute for x in (0.5, 2).
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace rope::cuda

#include "wgmma.cuh"

#else

#include "hopper_on_cpu.h"

#endif
