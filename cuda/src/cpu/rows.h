// The rotated part of one head on the CPU.
//
// Row<D, kLayout> is the form that suits a dtype, a layout and the instruction set compiled for. It has
//   arrange(cos, sin, pairs, &angles): the angles of one token, in the order that the row wants. cos and sin are
//     [pairs], then zeros up to a multiple of kAnglePadding;
//   rotate(in, out, pairs, angles): one head of that token. in and out are the same or apart.
#pragma once

#include <cstddef>

#include "../math/dtype.h"
#include "../math/pair.h"
#include "../operations/call.h"
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include "lanes_avx512.h"
#include "rows_vector.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"
#include "rows_vector.h"
#endif

namespace rope::cpu {

inline constexpr int32_t kAnglePadding = 32;  // elements of the widest chunk

#ifdef ROPE_LANES
template <class D, Layout kLayout>
using Row = VectorRow<ROPE_LANES, D, kLayout>;
#else

// One element after the other, for any processor.
template <class D, Layout kLayout>
struct Row {
  struct Angles {
    float cos[kMaxRotaryDim / 2], sin[kMaxRotaryDim / 2];
  };

  ROPE_INLINE_MEMBER static void arrange(const float* cos, const float* sin, int32_t pairs, Angles* angles) {
    __builtin_memcpy(angles->cos, cos, sizeof(float) * size_t(pairs));
    __builtin_memcpy(angles->sin, sin, sizeof(float) * size_t(pairs));
  }

  ROPE_INLINE_MEMBER static void rotate(const typename D::Storage* in, typename D::Storage* out, int32_t pairs,
                                        const Angles& angles) {
    constexpr bool kNeox = kLayout == Layout::kNeox;
#pragma GCC ivdep  // pairs are independent, even where in == out
    for (int32_t i = 0; i < pairs; ++i) {
      const int32_t first = kNeox ? i : 2 * i, second = kNeox ? i + pairs : 2 * i + 1;
      const Pair y = rotate_pair({D::widen(in[first]), D::widen(in[second])}, CosSin{angles.cos[i], angles.sin[i]});
      out[first] = D::narrow(y.first);
      out[second] = D::narrow(y.second);
    }
  }
};

#endif

}  // namespace rope::cpu
