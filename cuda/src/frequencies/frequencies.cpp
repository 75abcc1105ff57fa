#include "frequencies.h"

namespace rope {
namespace {

// theta^(-2i / rotary_dim); RoFormer, arXiv:2104.09864, section 3.2.2.
void base_frequencies(const ScalingParams& s, DoubleDouble* inv_freq) {
  const DoubleDouble ratio = DoubleDouble(1.0) / root(s.theta, s.rotary_dim / 2);
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = power(ratio, i);
}

// Position interpolation, arXiv:2306.15595: positions, hence frequencies, divided by factor.
void linear(const ScalingParams& s, DoubleDouble* inv_freq) {
  base_frequencies(s, inv_freq);
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = inv_freq[i] / s.factor;
}

// Llama 3.1 (apply_scaling in Meta's llama-models): a wavelength above original / low_freq_factor is divided by
// factor, one below original / high_freq_factor kept, and between the two the frequency is interpolated.
void llama3(const ScalingParams& s, DoubleDouble* inv_freq) {
  base_frequencies(s, inv_freq);
  for (int i = 0; i < s.rotary_dim / 2; ++i) {
    const DoubleDouble f = inv_freq[i], slow = f / s.factor;
    const DoubleDouble rotations = f * s.original_max_position / kTwoPi;  // original / wavelength
    if (rotations < s.low_freq_factor) {
      inv_freq[i] = slow;
    } else if (!(s.high_freq_factor < rotations)) {
      const DoubleDouble smooth = (rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      inv_freq[i] = slow + smooth * (f - slow);
    }
  }
}

}  // namespace

double scaled_frequencies(const ScalingParams& s, DoubleDouble* inv_freq) {
  switch (s.scaling) {
    case Scaling::kNone: base_frequencies(s, inv_freq); break;
    case Scaling::kLinear: linear(s, inv_freq); break;
    case Scaling::kLlama3: llama3(s, inv_freq); break;
    case Scaling::kCustom:
      for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = s.inv_freq[i];
      break;
  }
  return 1.0;
}

uint64_t turns_per_position(DoubleDouble inv_freq) {
  const DoubleDouble turns = inv_freq / kTwoPi;
  const double whole = std::floor(turns.high);
  const DoubleDouble fraction = (turns - whole) * 0x1p64;  // in [0, 2^64], or just below 0
  // Both halves as integers modulo 2^64; the low half is rounded to the nearest after the high one's own fraction.
  const double high = std::floor(fraction.high);
  const auto integer = static_cast<__int128>(high);
  return uint64_t(integer) + uint64_t(int64_t(std::nearbyint((fraction.high - high) + fraction.low)));
}

}  // namespace rope
