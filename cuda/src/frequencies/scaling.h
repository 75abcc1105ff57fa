// Scalings: each turns its parameters into one frequency per pair and one magnitude.
#pragma once

#include <cstdint>

#include "double_double.h"

namespace rope {

enum class Scaling : int32_t {
  kNone = 0,
  kLinear = 1,
  kLlama3 = 2,
  kCustom = 3,
  kNtk = 4,
  kDynamicNtk = 5,
  kYarn = 6,
  kLongRope = 7,
  kPairFactors = 8,
  kProportional = 9
};

// Validated.
struct ScalingParams {
  Scaling scaling;
  int32_t rotary_dim;
  bool no_truncate;
  double theta, factor, low_freq_factor, high_freq_factor, original_max_position;
  double beta_fast, beta_slow, mscale, mscale_all_dim, proportion, seq_len;
  const double *inv_freq, *pair_factors, *short_factors, *long_factors;  // [rotary_dim / 2]
};

// inv_freq[rotary_dim / 2], radians per position. Returns what cos and sin are multiplied with.
double scaled_frequencies(const ScalingParams& s, DoubleDouble* inv_freq);

// inv_freq / (2 pi) modulo 1 as a 64-bit fraction of a turn, to the nearest. |inv_freq| < 2^30.
uint64_t turns_per_position(DoubleDouble inv_freq);

}  // namespace rope
