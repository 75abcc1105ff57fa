// The argument of the decode kernels.
#pragma once

#include <type_traits>

#include "shape.h"

namespace rope::cuda {

// In the place of a dtype: either of 16 bits, which the argument says.
struct AnyHalf {};

template <class D>
ROPE_INLINE float widen_from(Dtype dtype, uint16_t x) {
  if constexpr (!std::is_same_v<D, AnyHalf>) return D::widen(x);
  return dtype == Dtype::kBF16 ? BF16::widen(x) : F16::widen(x);
}

template <class D>
ROPE_INLINE uint16_t narrow_to(Dtype dtype, float x) {
  if constexpr (!std::is_same_v<D, AnyHalf>) return D::narrow(x);
  return dtype == Dtype::kBF16 ? BF16::narrow(x) : F16::narrow(x);
}

struct DecodeArgs {
  DecodeParams params;
  Dtype dtype;         // of q and o, where the kernel has AnyHalf
  int32_t row_blocks;  // see DecodePlan
  int32_t split, splits;
  int32_t* counters;   // [units]
  float* sums;         // [units, splits, rows, 2]: the largest score and the sum of powers, of base 2
  float* partial;      // [units, splits, rows, head_dim]: not divided by the sum
  float score_scale;   // of scores, for powers of 2: of which weights are, or with a softcap tanh
  float softcap_log2;  // what tanh is multiplied with, for powers of 2; 0: there is no softcap
  alignas(16) uint64_t words[kFewPairs];
};

}  // namespace rope::cuda
