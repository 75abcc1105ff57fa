// The rotation of one pair, and which elements of a head form a pair.
#pragma once

#include "angle.h"
#include "annotate.h"

namespace rope {

enum class Layout : int32_t { kNeox = 0, kGptj = 1 };

// A worker takes two chunks of kVec consecutive elements, at first() and second(), which hold kVec whole pairs; there
// are `half` / kVec such slots, half = rotary_dim / 2. Pair j of a slot has frequency pair(slot, j).
template <Layout kLayout, int kVec>
struct PairMap {
  static constexpr bool kAdjacent = kLayout == Layout::kGptj && kVec == 1;
  int32_t slot, half;

  ROPE_INLINE_MEMBER int32_t first() const { return kAdjacent ? 2 * slot : slot * kVec; }
  ROPE_INLINE_MEMBER int32_t second() const { return kAdjacent ? 2 * slot + 1 : slot * kVec + half; }

  ROPE_INLINE_MEMBER int32_t pair(int32_t j) const {
    if constexpr (kLayout == Layout::kNeox || kVec == 1) {
      return slot * kVec + j;
    } else {
      constexpr int kPairs = kVec / 2;  // in each chunk
      return (j < kPairs ? slot * kVec : slot * kVec + half) / 2 + j % kPairs;
    }
  }

  // Where pair j lies in the concatenation of the two chunks.
  ROPE_INLINE_MEMBER static constexpr int32_t element0(int32_t j) {
    return kLayout == Layout::kNeox || kVec == 1 ? j : 2 * j;
  }
  ROPE_INLINE_MEMBER static constexpr int32_t element1(int32_t j) {
    return kLayout == Layout::kNeox || kVec == 1 ? j + kVec : 2 * j + 1;
  }
};

struct Pair {
  float first, second;
};

// (first, second) turned by the angle; RoFormer, arXiv:2104.09864, equation 34.
ROPE_INLINE Pair rotate_pair(Pair x, CosSin a) {
  return {__builtin_fmaf(x.first, a.cos, -(x.second * a.sin)), __builtin_fmaf(x.second, a.cos, x.first * a.sin)};
}

// By an angle for each element, which may differ.
struct PairTurn {
  CosSin first, second;
};

ROPE_INLINE Pair rotate_pair(Pair x, PairTurn a) {
  return {__builtin_fmaf(x.first, a.first.cos, -(x.second * a.first.sin)),
          __builtin_fmaf(x.second, a.second.cos, x.first * a.second.sin)};
}

// cos and sin of a phase, times the scaling's magnitude; the sine's is negated for the transposed rotation.
ROPE_INLINE CosSin scaled_angle(uint64_t phase, float cos_scale, float sin_scale) {
  const CosSin a = cos_sin(phase);
  return {a.cos * cos_scale, a.sin * sin_scale};
}

}  // namespace rope
