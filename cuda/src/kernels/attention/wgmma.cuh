// Products of matrices by a warpgroup, 64 rows, asynchronous: D (64 x N, float32, in registers) += A (64 x 16) B (16 x
// N). Of D, thread t has rows 16 (t / 32) + t % 32 / 4 + {0, 8} and columns 8 j + 2 (t % 4) + {0, 1}: element 4 j + 2 r
// + c of its array is the r-th and c-th of these. Of an A in registers it has the same, two columns a word.
#pragma once

#include <cuda_runtime.h>

#include "../../math/dtype.h"

namespace rope::cuda {

// Before the first product, and whenever registers that products take were written.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most kPending groups of products are not done.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The compiler, which does not know that products are asynchronous, moves no access to these registers across this.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int N, class D>
struct Product;

// The texts of N / 2 registers, and they themselves.
#define ROPE_PLACES_64                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ROPE_PLACES_96 \
  ROPE_PLACES_64       \
  ", "                 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define ROPE_PLACES_128 \
  ROPE_PLACES_96        \
  ", "                  \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ROPE_REGISTERS_16(i)                                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]),      \
      "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define ROPE_REGISTERS_64 ROPE_REGISTERS_16(0), ROPE_REGISTERS_16(16)
#define ROPE_REGISTERS_96 ROPE_REGISTERS_64, ROPE_REGISTERS_16(32)
#define ROPE_REGISTERS_128 ROPE_REGISTERS_96, ROPE_REGISTERS_16(48)

// keys(): A and B in shared memory, K-major both (rows of A and columns of B are contiguous); instead of D += where
// `accumulate` is false, D =. values(): A in registers, B MN-major (rows of B are contiguous).
// I0 ... I4: the places behind the registers'.
#define ROPE_PRODUCT(N, D, TYPE, I0, I1, I2, I3, I4)                                                          \
  template <>                                                                                                 \
  struct Product<N, D> {                                                                                      \
    static __device__ __forceinline__ void keys(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I2                                                     \
                   ", 0;\n"                                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" ROPE_PLACES_##N       \
                   "}, " I0 ", " I1 ", p, 1, 1, 0, 0;\n}"                                                     \
                   : ROPE_REGISTERS_##N                                                                       \
                   : "l"(a), "l"(b), "r"(int(accumulate)));                                                   \
    }                                                                                                         \
    static __device__ __forceinline__ void values(float (&d)[N / 2], const uint32_t* a, uint64_t b) {         \
      asm volatile(                                                                                           \
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                          \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" ROPE_PLACES_##N                \
          "}, {" I0 ", " I1 ", " I2 ", " I3 "}, " I4 ", p, 1, 1, 1;\n}"                                       \
          : ROPE_REGISTERS_##N                                                                                \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
    }                                                                                                         \
  };

ROPE_PRODUCT(64, F16, "f16", "%32", "%33", "%34", "%35", "%36")
ROPE_PRODUCT(64, BF16, "bf16", "%32", "%33", "%34", "%35", "%36")
ROPE_PRODUCT(96, F16, "f16", "%48", "%49", "%50", "%51", "%52")
ROPE_PRODUCT(96, BF16, "bf16", "%48", "%49", "%50", "%51", "%52")
ROPE_PRODUCT(128, F16, "f16", "%64", "%65", "%66", "%67", "%68")
ROPE_PRODUCT(128, BF16, "bf16", "%64", "%65", "%66", "%67", "%68")

#undef ROPE_PRODUCT
#undef ROPE_PLACES_64
#undef ROPE_REGISTERS_64
#undef ROPE_PLACES_96
#undef ROPE_REGISTERS_96
#undef ROPE_PLACES_128
#undef ROPE_REGISTERS_128
#undef ROPE_REGISTERS_16

}  // namespace rope::cuda
