// Scalings: each turns its parameters, a descriptor that has been checked and whose defaults are filled in, into one
// frequency per pair (radians per position) and one magnitude, which cos and sin are multiplied with.
#pragma once

#include <cmath>
#include <cstdint>

#include "double_double.h"
#include "roperope/roperope.h"

namespace rope {

// A field that a scaling reads, and what it may be: above `above`, at most `most`, and no less than another field.
template <class T>
struct ScalingField {
  using Member = T rope_frequencies_desc::*;
  const char* name;
  Member member;
  double otherwise;  // what 0 means; 0: a value is required; below 0: 0 is one
  double above = 0, most = HUGE_VAL;
  Member no_less = nullptr;
  const char* no_less_name = "";
};

struct ScalingList {
  const char* name;
  const double* rope_frequencies_desc::* member;  // [rotary_dim / 2]
  bool any_number;                                // else above 0
};

struct ScalingMethod {
  const char* name;  // of the rope_scaling
  double (*frequencies)(const rope_frequencies_desc& s, DoubleDouble* inv_freq);
  ScalingField<double> reals[6] = {};
  ScalingField<int64_t> integers[3] = {};
  ScalingList lists[2] = {};
};

// By rope_scaling.
inline constexpr int kNumScalings = 10;
extern const ScalingMethod kScalings[kNumScalings];

// inv_freq / (2 pi) in fixed point, to the nearest: whole turns in two's complement, and 64 bits of a turn.
// |inv_freq| < 2^30.
struct Turns {
  uint64_t whole, fraction;
};

Turns turns_per_position(DoubleDouble inv_freq);

}  // namespace rope
