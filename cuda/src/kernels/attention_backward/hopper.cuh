// What attention's gradients need of sm_90a beside attention/hopper.cuh. In tests: hopper_on_cpu.h.
#pragma once

#include "../attention/hopper.cuh"

#ifdef __CUDACC__

namespace rope::cuda {

// The same value, of which the compiler does not know that it is: what derives from it is computed where it is used,
// and not held in registers through a loop.
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- copies of bytes that are neighbours, by one thread; addresses and sizes are multiples of 16

__device__ __forceinline__ void load_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Adds floats to those in memory; a store, which is committed and waited for as one. Those of others may come between.
__device__ __forceinline__ void add_floats(float* to, uint32_t from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}

// Until this thread's stores are done.
__device__ __forceinline__ void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ---- products (attention/wgmma.cuh) of A and B in shared memory, MN-major both: rows of A^T and of B are contiguous

#define ROPE_PLACES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ROPE_PLACES_32 \
  ROPE_PLACES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ROPE_REGISTERS_8(i)                                                                                   \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define ROPE_REGISTERS_16 ROPE_REGISTERS_8(0), ROPE_REGISTERS_8(8)
#define ROPE_REGISTERS_32 ROPE_REGISTERS_16, ROPE_REGISTERS_8(16), ROPE_REGISTERS_8(24)

template <int N, class D>
struct TransposedProduct;

#define ROPE_PRODUCT(N, COUNT, D, TYPE, I0, I1, I2)                                                          \
  template <>                                                                                                \
  struct TransposedProduct<N, D> {                                                                           \
    static __device__ __forceinline__ void add(float (&d)[COUNT], uint64_t a, uint64_t b, bool accumulate) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I2                                                    \
                   ", 0;\n"                                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" ROPE_PLACES_##COUNT  \
                   "}, " I0 ", " I1 ", p, 1, 1, 1, 1;\n}"                                                    \
                   : ROPE_REGISTERS_##COUNT                                                                  \
                   : "l"(a), "l"(b), "r"(int(accumulate)));                                                  \
    }                                                                                                        \
  };

ROPE_PRODUCT(32, 16, F16, "f16", "%16", "%17", "%18")
ROPE_PRODUCT(32, 16, BF16, "bf16", "%16", "%17", "%18")
ROPE_PRODUCT(64, 32, F16, "f16", "%32", "%33", "%34")
ROPE_PRODUCT(64, 32, BF16, "bf16", "%32", "%33", "%34")

#undef ROPE_PRODUCT
#undef ROPE_PLACES_16
#undef ROPE_PLACES_32
#undef ROPE_REGISTERS_8
#undef ROPE_REGISTERS_16
#undef ROPE_REGISTERS_32

}  // namespace rope::cuda

#endif
