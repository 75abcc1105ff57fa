// Eight lanes: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "../math/annotate.h"

#define ROPE_LANES Avx2

namespace rope::cpu {

struct Avx2 {
  static constexpr int kCount = 8;
  using Floats = __m256;
  using Words = __m256i;   // kCount of 32 bits
  using Halves = __m128i;  // kCount of 16 bits

  template <class Raw>
  ROPE_INLINE_MEMBER static Raw load(const void* at) {
    Raw x;
    __builtin_memcpy(&x, at, sizeof(x));
    return x;
  }

  // The first `bytes`, then zeros; nothing behind them is touched.
  template <class Raw>
  ROPE_INLINE_MEMBER static Raw load(const void* at, int32_t bytes) {
    Raw x{};
    __builtin_memcpy(&x, at, size_t(bytes));
    return x;
  }

  template <class Raw>
  ROPE_INLINE_MEMBER static void store(void* at, Raw x) {
    __builtin_memcpy(at, &x, sizeof(x));
  }

  template <class Raw>
  ROPE_INLINE_MEMBER static void store(void* at, Raw x, int32_t bytes) {
    __builtin_memcpy(at, &x, size_t(bytes));
  }

  ROPE_INLINE_MEMBER static Floats load_floats(const float* at) { return _mm256_load_ps(at); }
  ROPE_INLINE_MEMBER static Floats floats(Words x) { return _mm256_castsi256_ps(x); }
  ROPE_INLINE_MEMBER static Words words(Floats x) { return _mm256_castps_si256(x); }

  // One rounding in the last two.
  ROPE_INLINE_MEMBER static Floats multiply(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
  ROPE_INLINE_MEMBER static Floats multiply_add(Floats x, Floats y, Floats z) { return _mm256_fmadd_ps(x, y, z); }
  ROPE_INLINE_MEMBER static Floats multiply_subtract(Floats x, Floats y, Floats z) { return _mm256_fmsub_ps(x, y, z); }
  ROPE_INLINE_MEMBER static Floats swap_neighbours(Floats x) { return _mm256_permute_ps(x, 0xb1); }

  ROPE_INLINE_MEMBER static bool any_nan(Floats x, Floats y) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)) != 0;
  }
  ROPE_INLINE_MEMBER static Floats replace_nans(Floats x, uint32_t nan) {
    return _mm256_blendv_ps(x, floats(_mm256_set1_epi32(int32_t(nan))), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }

  // Rounds to nearest even.
  ROPE_INLINE_MEMBER static Floats widen_f16(Halves x) { return _mm256_cvtph_ps(x); }
  ROPE_INLINE_MEMBER static Halves narrow_f16(Floats x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

  // Of each word: the low half in the high half's place; the high half alone.
  ROPE_INLINE_MEMBER static Words low_to_high(Words x) { return _mm256_slli_epi32(x, 16); }
  ROPE_INLINE_MEMBER static Words high(Words x) { return _mm256_and_si256(x, _mm256_set1_epi32(int32_t(0xffff0000u))); }
  // Two words rounded to their high halves, to nearest even, in one word.
  ROPE_INLINE_MEMBER static Words narrow_bf16(Words even, Words odd) {
    const Words half = _mm256_set1_epi32(0x7fff), one = _mm256_set1_epi32(1);
    even = _mm256_add_epi32(_mm256_add_epi32(even, half), _mm256_and_si256(_mm256_srli_epi32(even, 16), one));
    odd = _mm256_add_epi32(_mm256_add_epi32(odd, half), _mm256_and_si256(_mm256_srli_epi32(odd, 16), one));
    return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  }
};

}  // namespace rope::cpu
