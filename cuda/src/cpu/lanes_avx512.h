// Sixteen lanes: AVX-512 (F, BW, VL). What each function does is said in lanes_avx2.h.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in g++ 12's own header (GCC bug 105593)
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "../math/annotate.h"

#define ROPE_LANES Avx512

namespace rope::cpu {

struct Avx512 {
  static constexpr int kCount = 16;
  using Floats = __m512;
  using Words = __m512i;
  using Halves = __m256i;

  template <class Raw>
  ROPE_INLINE_MEMBER static Raw load(const void* at) {
    Raw x;
    __builtin_memcpy(&x, at, sizeof(x));
    return x;
  }

  template <class Raw>
  ROPE_INLINE_MEMBER static Raw load(const void* at, int32_t bytes) {
    if constexpr (sizeof(Raw) == 64) {
      return _mm512_maskz_loadu_epi8((uint64_t(1) << bytes) - 1, at);
    } else {
      return _mm256_maskz_loadu_epi8((uint32_t(1) << bytes) - 1, at);
    }
  }

  template <class Raw>
  ROPE_INLINE_MEMBER static void store(void* at, Raw x) {
    __builtin_memcpy(at, &x, sizeof(x));
  }

  ROPE_INLINE_MEMBER static void store(void* at, Words x, int32_t bytes) {
    _mm512_mask_storeu_epi8(at, (uint64_t(1) << bytes) - 1, x);
  }
  ROPE_INLINE_MEMBER static void store(void* at, Halves x, int32_t bytes) {
    _mm256_mask_storeu_epi8(at, (uint32_t(1) << bytes) - 1, x);
  }

  ROPE_INLINE_MEMBER static Floats load_floats(const float* at) { return _mm512_load_ps(at); }
  ROPE_INLINE_MEMBER static Floats floats(Words x) { return _mm512_castsi512_ps(x); }
  ROPE_INLINE_MEMBER static Words words(Floats x) { return _mm512_castps_si512(x); }

  ROPE_INLINE_MEMBER static Floats multiply(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
  ROPE_INLINE_MEMBER static Floats multiply_add(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
  ROPE_INLINE_MEMBER static Floats multiply_subtract(Floats x, Floats y, Floats z) { return _mm512_fmsub_ps(x, y, z); }
  ROPE_INLINE_MEMBER static Floats swap_neighbours(Floats x) { return _mm512_permute_ps(x, 0xb1); }

  ROPE_INLINE_MEMBER static bool any_nan(Floats x, Floats y) { return _mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q) != 0; }
  ROPE_INLINE_MEMBER static Floats replace_nans(Floats x, uint32_t nan) {
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), floats(_mm512_set1_epi32(int32_t(nan))));
  }

  ROPE_INLINE_MEMBER static Floats widen_f16(Halves x) { return _mm512_cvtph_ps(x); }
  ROPE_INLINE_MEMBER static Halves narrow_f16(Floats x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

  ROPE_INLINE_MEMBER static Words low_to_high(Words x) { return _mm512_slli_epi32(x, 16); }
  ROPE_INLINE_MEMBER static Words high(Words x) { return _mm512_and_si512(x, _mm512_set1_epi32(int32_t(0xffff0000u))); }
  ROPE_INLINE_MEMBER static Words narrow_bf16(Words even, Words odd) {
    const __mmask32 odds = 0xaaaaaaaau;
    const Words cut = _mm512_mask_blend_epi16(odds, even, _mm512_slli_epi32(odd, 16));
    const Words kept = _mm512_mask_blend_epi16(odds, _mm512_srli_epi32(even, 16), odd);
    // Up where the part cut off is over a half, or a half and the part kept is odd: cut | (kept & 1) > 0x8000.
    const Words test = _mm512_ternarylogic_epi32(cut, kept, _mm512_set1_epi16(1), 0xf8);
    const __mmask32 up = _mm512_cmpgt_epu16_mask(test, _mm512_set1_epi16(int16_t(0x8000)));
    return _mm512_mask_sub_epi16(kept, up, kept, _mm512_set1_epi16(-1));
  }
};

}  // namespace rope::cpu
