// RMS norm (arXiv:1910.07467) of a head. The order of its sum is fixed, so that every mapping of elements to threads
// gives the same bits: the squares of four neighbours, a group; then a group of the first half and the one in its place
// in the second; then two neighbours of these; then, as often as needed, the first half and the second half of a power
// of two. What is missing is zero.
#pragma once

#include "annotate.h"

namespace rope {

inline constexpr int kNormGroup = 4;

// The squares of one group.
ROPE_INLINE float norm_group(float a, float b, float c, float d) { return (a * a + b * b) + (c * c + d * d); }

// Groups of a head of `dim` elements, and their half.
ROPE_INLINE int32_t norm_groups(int32_t dim) { return (dim + kNormGroup - 1) / kNormGroup; }
ROPE_INLINE int32_t norm_half(int32_t dim) { return (norm_groups(dim) + 1) / 2; }

// The i-th sum of four groups, of (norm_half + 1) / 2; group(j) is a group's sum.
template <class Group>
ROPE_INLINE float norm_four_groups(int32_t dim, int32_t i, Group group) {
  const int32_t groups = norm_groups(dim), half = norm_half(dim);
  const auto pair = [&](int32_t at) { return group(at) + (at + half < groups ? group(at + half) : 0.0f); };
  return pair(2 * i) + (2 * i + 1 < half ? pair(2 * i + 1) : 0.0f);
}

// The least power of two that is at least n.
ROPE_INLINE int32_t power_of_two(int32_t n) {
  int32_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// What the elements of a row are multiplied with, before their weights.
ROPE_INLINE float norm_factor(float total, float inverse_dim, float eps) {
  return 1.0f / __builtin_sqrtf(total * inverse_dim + eps);
}

}  // namespace rope
