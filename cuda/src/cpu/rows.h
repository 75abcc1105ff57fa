// The rotated part of one head on the CPU: `pairs` pairs, cos and sin given per pair. in and out are the same or apart.
#pragma once

#include "../math/dtype.h"
#include "../math/rotate.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace rope {

// The iterations that follow are independent, even where in == out.
#define ROPE_SIMD _Pragma("GCC ivdep")

namespace detail {

template <class D, Layout kLayout>
ROPE_INLINE void rotate_elements(const typename D::Storage* in, typename D::Storage* out, int32_t pairs,
                                 const float* cos, const float* sin) {
  constexpr bool kNeox = kLayout == Layout::kNeox;
  ROPE_SIMD
  for (int32_t i = 0; i < pairs; ++i) {
    const int32_t first = kNeox ? i : 2 * i, second = kNeox ? i + pairs : 2 * i + 1;
    const Pair y = rotate({D::widen(in[first]), D::widen(in[second])}, {cos[i], sin[i]});
    out[first] = D::narrow(y.first);
    out[second] = D::narrow(y.second);
  }
}

// Neighbours of a 16-bit type as one word, which needs no shuffle.
template <class D>
ROPE_INLINE void rotate_words(const uint16_t* in, uint16_t* out, int32_t pairs, const float* cos, const float* sin) {
  ROPE_SIMD
  for (int32_t i = 0; i < pairs; ++i) {
    uint32_t word;
    __builtin_memcpy(&word, in + 2 * i, 4);
    const Pair y = rotate({D::widen(uint16_t(word)), D::widen(uint16_t(word >> 16))}, {cos[i], sin[i]});
    word = D::narrow2(y.first, y.second);
    __builtin_memcpy(out + 2 * i, &word, 4);
  }
}

#if defined(__F16C__)
// The processor's own conversions, which g++ does not use by itself; the row is widened in the first-level cache.
template <Layout kLayout>
ROPE_INLINE void rotate_f16c(const uint16_t* in, uint16_t* out, int32_t pairs, const float* cos, const float* sin) {
  alignas(64) float x[2048];
  const int32_t n = 2 * pairs;
  int32_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_store_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  for (; i < n; ++i) x[i] = F16::widen(in[i]);
  rotate_elements<F32, kLayout>(reinterpret_cast<uint32_t*>(x), reinterpret_cast<uint32_t*>(x), pairs, cos, sin);
  for (i = 0; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_load_ps(x + i), 0));
  for (; i < n; ++i) out[i] = F16::narrow(x[i]);
}
#endif

}  // namespace detail

template <class D, Layout kLayout>
ROPE_INLINE void rotate_row(const typename D::Storage* in, typename D::Storage* out, int32_t pairs, const float* cos,
                            const float* sin) {
#if defined(__F16C__)
  if constexpr (D::kDtype == Dtype::kF16) return detail::rotate_f16c<kLayout>(in, out, pairs, cos, sin);
#endif
  if constexpr (sizeof(typename D::Storage) == 2 && kLayout == Layout::kGptj) {
    detail::rotate_words<D>(in, out, pairs, cos, sin);
  } else {
    detail::rotate_elements<D, kLayout>(in, out, pairs, cos, sin);
  }
}

}  // namespace rope
