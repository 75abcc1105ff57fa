// xPos (arXiv:2212.10554): the magnitude of a pair at a position, zeta^(position / scale_base) for q and its reciprocal
// for k, with zeta = (2i / rotary_dim + gamma) / (1 + gamma) for pair i.
#pragma once

#include "annotate.h"

namespace rope {

inline constexpr int kMaxXPosPairs = 256;

struct XPos {
  int64_t center;               // the position whose magnitude is 1
  double rates[kMaxXPosPairs];  // log2(zeta) / scale_base of each pair
};

// 2^x within 7.8e-8 of the truth, relative (all floats t tried: 6.8e-8; the rounding of t to one adds 1.0e-8); below
// 2^-126, down to 0, within 1.2 of the smallest denormal; infinity where it is too large for a float. x is split into
// the nearest integer, which the low bits of `shifted` hold, and t, |t| <= 1/2. The coefficients are near-minimax
// relative to 2^t over that range (3.0e-9).
ROPE_INLINE float power_of_2(double x) {
  const double inside = x < -250.0 ? -250.0 : x > 250.0 ? 250.0 : x;
  const double shifted = inside + 0x1.8p52;
  const int32_t n = int32_t(uint32_t(bit_cast<uint64_t>(shifted)));
  const float t = float(inside - (shifted - 0x1.8p52));

  float p = __builtin_fmaf(0x1.416b5ep-13f, t, 0x1.5f082ep-10f);
  p = __builtin_fmaf(p, t, 0x1.3b2de0p-7f);
  p = __builtin_fmaf(p, t, 0x1.c6af7cp-5f);
  p = __builtin_fmaf(p, t, 0x1.ebfbdcp-3f);
  p = __builtin_fmaf(p, t, 0x1.62e430p-1f);
  p = __builtin_fmaf(p, t, 1.0f);

  // Times 2^n in two steps: the first product is exact, the second is where it overflows or is rounded.
  const int32_t half = n >> 1;
  return p * bit_cast<float>(uint32_t(half + 127) << 23) * bit_cast<float>(uint32_t(n - half + 127) << 23);
}

// `sign`: 1 for q, -1 for k. What the exponent's double arithmetic adds to the error is below 1e-13.
ROPE_INLINE float xpos_magnitude(double rate, double distance, int32_t sign) {
  return power_of_2(distance * (sign < 0 ? -rate : rate));
}

}  // namespace rope
