// Scalings: each turns its parameters, a descriptor that has been checked and whose defaults are filled in, into one
// frequency per pair and one magnitude.
#pragma once

#include <cstdint>

#include "double_double.h"
#include "roperope/roperope.h"

namespace rope {

// inv_freq[rotary_dim / 2], radians per position. Returns what cos and sin are multiplied with.
double scaled_frequencies(const rope_frequencies_desc& s, DoubleDouble* inv_freq);

// inv_freq / (2 pi) modulo 1 as a 64-bit fraction of a turn, to the nearest. |inv_freq| < 2^30.
uint64_t turns_per_position(DoubleDouble inv_freq);

}  // namespace rope
