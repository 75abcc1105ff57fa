// float16 rows through the processor's own conversions (F16C), which g++ does not use by itself.
#pragma once

#include <immintrin.h>

#include "../math/rotate.h"

namespace rope {

// Eight pairs at a time; `Tail` takes the rest.
template <Layout kLayout, class Tail>
struct F16cRow {
  struct Eight {
    __m256 first, second;
  };

  ROPE_INLINE_MEMBER static int32_t order(int32_t i, int32_t) { return i; }

  ROPE_INLINE_MEMBER static void rotate(const uint16_t* in, uint16_t* out, int32_t pairs, const float* cos,
                                        const float* sin) {
    int32_t i = 0;
    for (; i + 8 <= pairs; i += 8) {
      const Eight x = load(in, i, pairs);
      const __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
      store(out, i, pairs,
            {_mm256_fmsub_ps(x.first, c, _mm256_mul_ps(x.second, s)),
             _mm256_fmadd_ps(x.second, c, _mm256_mul_ps(x.first, s))});
    }
    if (i == pairs) return;
    if constexpr (kLayout == Layout::kGptj) {
      Tail::rotate(in + 2 * i, out + 2 * i, pairs - i, cos + i, sin + i);
    } else {
      for (; i < pairs; ++i) {
        const uint16_t x[2] = {in[i], in[i + pairs]};
        uint16_t y[2];
        Tail::rotate(x, y, 1, cos + i, sin + i);
        out[i] = y[0];
        out[i + pairs] = y[1];
      }
    }
  }

 private:
  ROPE_INLINE_MEMBER static __m128i half(const uint16_t* at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  }

  ROPE_INLINE_MEMBER static Eight load(const uint16_t* in, int32_t i, int32_t pairs) {
    if constexpr (kLayout == Layout::kNeox) {
      return {_mm256_cvtph_ps(half(in + i)), _mm256_cvtph_ps(half(in + i + pairs))};
    } else {
      // Sort each 128-bit lane into its four first and four second elements, then put like beside like.
      const __m128i sort = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
      const __m128i low = _mm_shuffle_epi8(half(in + 2 * i), sort), high = _mm_shuffle_epi8(half(in + 2 * i + 8), sort);
      return {_mm256_cvtph_ps(_mm_unpacklo_epi64(low, high)), _mm256_cvtph_ps(_mm_unpackhi_epi64(low, high))};
    }
  }

  // Rounds to nearest even; NaNs as math/dtype.h has them.
  ROPE_INLINE_MEMBER static __m128i narrow(__m256 x) {
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return _mm256_cvtps_ph(_mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)), _MM_FROUND_TO_NEAREST_INT);
  }

  ROPE_INLINE_MEMBER static void store(uint16_t* out, int32_t i, int32_t pairs, Eight y) {
    const __m128i first = narrow(y.first), second = narrow(y.second);
    __m128i* a = reinterpret_cast<__m128i*>(out + (kLayout == Layout::kNeox ? i : 2 * i));
    __m128i* b = reinterpret_cast<__m128i*>(out + (kLayout == Layout::kNeox ? i + pairs : 2 * i + 8));
    _mm_storeu_si128(a, kLayout == Layout::kNeox ? first : _mm_unpacklo_epi16(first, second));
    _mm_storeu_si128(b, kLayout == Layout::kNeox ? second : _mm_unpackhi_epi16(first, second));
  }
};

}  // namespace rope
