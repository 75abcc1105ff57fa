// RMS norm (arXiv:1910.07467) of a head. The order of its sum is fixed, so that every mapping of elements to threads
// gives the same bits: groups of four neighbours are summed first, then group 4i + c is added to sum c, i ascending.
#pragma once

#include "annotate.h"

namespace rope {

inline constexpr int kNormGroup = 4, kNormSums = 4;

// The squares of one group.
ROPE_INLINE float norm_group(float a, float b, float c, float d) { return (a * a + b * b) + (c * c + d * d); }

ROPE_INLINE float norm_total(const float* sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

// What the elements of a row are multiplied with, before their weights.
ROPE_INLINE float norm_factor(float total, float inverse_dim, float eps) {
  return 1.0f / __builtin_sqrtf(total * inverse_dim + eps);
}

}  // namespace rope
