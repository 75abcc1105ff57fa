// What a warp does together, and what of PTX decoding needs; cuda/tests/warp_on_cpu.h stands in when g++ compiles it.
#pragma once

#include "../parts/launch.h"

#ifdef __CUDACC__

#include <atomic>

#include "../../math/codes.h"

namespace rope::cuda {

// 16 bytes of what no thread writes while the kernel runs, and that is read once.
__device__ __forceinline__ uint4 load_once(const char* at) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(at));
  return x;
}
__device__ __forceinline__ uint2 load_once_8(const char* at) {
  uint2 x;
  asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(at));
  return x;
}

// 16 bytes of shared memory, each time anew: kept in registers, queries would be too many.
__device__ __forceinline__ uint4 load_shared(const uint16_t* at) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(uint32_t(__cvta_generic_to_shared(at))));
  return x;
}

// The value that a lane has.
__device__ __forceinline__ const char* from_lane(const char* x, int lane) {
  return reinterpret_cast<const char*>(__shfl_sync(0xffffffffu, reinterpret_cast<uint64_t>(x), lane));
}
__device__ __forceinline__ float from_lane(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

__device__ __forceinline__ bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }

// d += a b: a of 16 x 16, b of 16 x 8 elements M, as mma.m16n8k16 spreads them over the lanes.
template <class M>
__device__ __forceinline__ void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (M::kDtype == Dtype::kBF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Bytes of y and x, of which x has numbers 0 to 3.
template <uint32_t kSelector>
__device__ __forceinline__ uint32_t bytes_of(uint32_t x, uint32_t y) {
  return __byte_perm(x, y, kSelector);
}

// Two codes, exactly, as float16.
template <class Code>
__device__ __forceinline__ uint32_t widen_codes(uint16_t codes) {
  if constexpr (Code::kType == OutType::kE5M2) {
    return __byte_perm(codes, 0, 0x1404);  // the upper halves
  } else {
#if __CUDA_ARCH__ >= 890
    uint32_t y;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(y) : "h"(codes));
    return y;
#else
    // Exponent and mantissa in their places are 2^-8 of the number; a code of all ones is a NaN.
    const uint32_t x = __byte_perm(codes, 0, 0x1404), magnitude = x & 0x7f007f00u;
    const uint32_t nan = (magnitude + 0x01000100u) & 0x80008000u;
    uint32_t y = (x & 0x80008000u) | magnitude >> 1;
    asm("mul.f16x2 %0, %0, %1;" : "+r"(y) : "r"(0x5c005c00u));
    return y | (nan - (nan >> 15));
#endif
  }
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// One thread's number among all that ask, after the block has written what the last one reads.
__device__ __forceinline__ int32_t take_number(int32_t* counter) { return atomicAdd(counter, 1); }
__device__ __forceinline__ void publish() { __threadfence(); }

// Of the current device; 0: there is none.
inline int multiprocessors() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  if (device < kDevices && known[device]) return known[device];
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  if (device < kDevices) known[device] = count;
  return count;
}

}  // namespace rope::cuda

#else

#include "warp_on_cpu.h"

#endif
