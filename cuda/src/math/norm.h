// RMS norm (arXiv:1910.07467) of a head. The order of its sum is fixed, so that every mapping of elements to threads
// gives the same bits: the squares of four neighbours, a group; then a group of the first half and the one in its place
// in the second; then two neighbours of these; then, as often as needed, the first half and the second half of a power
// of two. What is missing is zero. A norm across heads adds their sums in that last way,
// and divides by their number.
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

// 1 / sqrt(v) for v >= 0, within 1.3 * 2^-24. Products and sums only, which have the same bits
// everywhere and take half of the time of a correctly rounded root and division: a guess from the exponent, then twice
// Newton's method with the next term of its series (y (1 + r / 2 + 3 r^2 / 8), r = 1 - v y^2).
ROPE_INLINE float inverse_root(float v) {
  const bool tiny = v < 0x1p-100f;
  const float x = tiny ? v * 0x1p+64f : v;
  float y = bit_cast<float>(0x5f37c000u - (bit_cast<uint32_t>(x) >> 1));
  for (int i = 0; i < 2; ++i) {
    const float r = __builtin_fmaf(-(x * y), y, 1.0f);
    y = __builtin_fmaf(y * r, __builtin_fmaf(0.375f, r, 0.5f), y);
  }
  y = tiny ? y * 0x1p+32f : y;
  y = v == 0.0f ? __builtin_inff() : y;
  return v == __builtin_inff() ? 0.0f : y;
}

// What the elements of a row are multiplied with, before their weights.
ROPE_INLINE float norm_factor(float total, float inverse_dim, float eps) {
  return inverse_root(total * inverse_dim + eps);
}

}  // namespace rope
