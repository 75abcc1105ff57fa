// The rotated part of one head on the CPU: `pairs` pairs; in and out are the same or apart.
//
// A row may want its angles in another order than the pairs have: angle i of the table is kept at order(i, pairs).
#pragma once

#include "../math/dtype.h"
#include "../math/rotate.h"
#if defined(__F16C__) && defined(__FMA__)
#include "rows_f16c.h"
#endif

namespace rope {

// The iterations that follow are independent, even where in == out.
#define ROPE_SIMD _Pragma("GCC ivdep")

// One element after the other.
template <class D, Layout kLayout>
struct ElementRow {
  ROPE_INLINE_MEMBER static int32_t order(int32_t i, int32_t) { return i; }

  ROPE_INLINE_MEMBER static void rotate(const typename D::Storage* in, typename D::Storage* out, int32_t pairs,
                                        const float* cos, const float* sin) {
    constexpr bool kNeox = kLayout == Layout::kNeox;
    ROPE_SIMD
    for (int32_t i = 0; i < pairs; ++i) {
      const int32_t first = kNeox ? i : 2 * i, second = kNeox ? i + pairs : 2 * i + 1;
      const Pair y = rope::rotate({D::widen(in[first]), D::widen(in[second])}, {cos[i], sin[i]});
      out[first] = D::narrow(y.first);
      out[second] = D::narrow(y.second);
    }
  }
};

// Neighbours of a 16-bit type as one word: every lane of a vector stays where it is, nothing is shuffled.
template <class D, Layout kLayout>
struct WordRow;

template <class D>
struct WordRow<D, Layout::kGptj> {
  ROPE_INLINE_MEMBER static int32_t order(int32_t i, int32_t) { return i; }

  ROPE_INLINE_MEMBER static void rotate(const uint16_t* in, uint16_t* out, int32_t pairs, const float* cos,
                                        const float* sin) {
    ROPE_SIMD
    for (int32_t i = 0; i < pairs; ++i) {
      uint32_t word;
      __builtin_memcpy(&word, in + 2 * i, 4);
      const Pair y = rope::rotate({D::widen(uint16_t(word)), D::widen(uint16_t(word >> 16))}, {cos[i], sin[i]});
      word = D::narrow2(y.first, y.second);
      __builtin_memcpy(out + 2 * i, &word, 4);
    }
  }
};

// Two pairs share a word in each half: the angles of even pairs come first, then those of odd ones.
template <class D>
struct WordRow<D, Layout::kNeox> {
  ROPE_INLINE_MEMBER static int32_t order(int32_t i, int32_t pairs) {
    return pairs % 2 ? i : i / 2 + i % 2 * (pairs / 2);
  }

  ROPE_INLINE_MEMBER static void rotate(const uint16_t* in, uint16_t* out, int32_t pairs, const float* cos,
                                        const float* sin) {
    if (pairs % 2) return ElementRow<D, Layout::kNeox>::rotate(in, out, pairs, cos, sin);
    const int32_t words = pairs / 2;
    ROPE_SIMD
    for (int32_t i = 0; i < words; ++i) {
      uint32_t a, b;
      __builtin_memcpy(&a, in + 2 * i, 4);
      __builtin_memcpy(&b, in + 2 * i + pairs, 4);
      const Pair even = rope::rotate({D::widen(uint16_t(a)), D::widen(uint16_t(b))}, {cos[i], sin[i]});
      const Pair odd =
          rope::rotate({D::widen(uint16_t(a >> 16)), D::widen(uint16_t(b >> 16))}, {cos[i + words], sin[i + words]});
      a = D::narrow2(even.first, odd.first);
      b = D::narrow2(even.second, odd.second);
      __builtin_memcpy(out + 2 * i, &a, 4);
      __builtin_memcpy(out + 2 * i + pairs, &b, 4);
    }
  }
};

// The form that suits a dtype.
template <class D, Layout kLayout>
struct Row : ElementRow<D, kLayout> {};

template <Layout kLayout>
struct Row<BF16, kLayout> : WordRow<BF16, kLayout> {};

#if defined(__F16C__) && defined(__FMA__)
template <Layout kLayout>
struct Row<F16, kLayout> : F16cRow<kLayout, ElementRow<F16, kLayout>> {};
#endif

}  // namespace rope
