// What a function of math/ is marked with, so that nvcc and g++ compile one source.
// The CPU loops are compiled once per instruction set (cpu/): everything here is forced inline and has internal linkage,
// or the linker could keep a wide-vector copy of a function for every processor.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ROPE_INLINE static __host__ __device__ __forceinline__
#define ROPE_INLINE_MEMBER __host__ __device__ __forceinline__
#else
#define ROPE_INLINE static inline __attribute__((always_inline))
#define ROPE_INLINE_MEMBER inline __attribute__((always_inline))
#endif

namespace rope {

// Reinterpret the bits of a value.
template <class To, class From>
ROPE_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace rope
