#include "scaling.h"

#include <algorithm>
#include <cmath>

namespace rope {
namespace {

using Desc = rope_frequencies_desc;

// theta^(-2i / rotary_dim); RoFormer, arXiv:2104.09864, section 3.2.2.
double none(const Desc& s, DoubleDouble* inv_freq) {
  const DoubleDouble ratio = DoubleDouble(1.0) / root(s.theta, s.rotary_dim / 2);
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = power(ratio, i);
  return 1.0;
}

double custom(const Desc& s, DoubleDouble* inv_freq) {
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = s.inv_freq[i];
  return 1.0;
}

// Position interpolation, arXiv:2306.15595: positions, hence frequencies, divided by factor.
double linear(const Desc& s, DoubleDouble* inv_freq) {
  none(s, inv_freq);
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = inv_freq[i] / s.factor;
  return 1.0;
}

// Llama 3.1 (apply_scaling in Meta's llama-models): a wavelength above original / low_freq_factor is divided by
// factor, one below original / high_freq_factor kept, and between the two the frequency is interpolated.
double llama3(const Desc& s, DoubleDouble* inv_freq) {
  none(s, inv_freq);
  for (int i = 0; i < s.rotary_dim / 2; ++i) {
    const DoubleDouble f = inv_freq[i], slow = f / s.factor;
    const DoubleDouble rotations = f * double(s.original_max_position) / kTwoPi;  // original / wavelength
    if (rotations < s.low_freq_factor) {
      inv_freq[i] = slow;
    } else if (rotations < s.high_freq_factor) {
      const DoubleDouble smooth = (rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      inv_freq[i] = slow + smooth * (f - slow);
    }
  }
  return 1.0;
}

// theta replaced by theta * stretch^(r / (r - 2)), so that the slowest pair, i = r/2 - 1, is divided by stretch.
void stretch_base(const Desc& s, DoubleDouble stretch, DoubleDouble* inv_freq) {
  none(s, inv_freq);
  if (s.rotary_dim == 2) return;  // its one pair does not depend on theta
  const DoubleDouble ratio = DoubleDouble(1.0) / root(stretch, s.rotary_dim / 2 - 1);
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = inv_freq[i] * power(ratio, i);
}

// NTK-aware scaling (bloc97, 2023; YaRN, arXiv:2309.00071, definition 1).
double ntk(const Desc& s, DoubleDouble* inv_freq) {
  stretch_base(s, s.factor, inv_freq);
  return 1.0;
}

// Dynamic NTK (emozilla, 2023): stretched as far as the context has grown beyond the original one.
double dynamic_ntk(const Desc& s, DoubleDouble* inv_freq) {
  const double original = double(s.original_max_position), grown = std::max(double(s.seq_len), original);
  const DoubleDouble beyond = DoubleDouble(grown - original) / original;
  stretch_base(s, DoubleDouble(1.0) + beyond * s.factor, inv_freq);
  return 1.0;
}

// YaRN, arXiv:2309.00071, sections 3.2 and 3.4, with the ramp of its authors' code: linear in the pair's index between
// the pairs that turn beta_fast and beta_slow times within the original context. mscale_all_dim is DeepSeek-V2's,
// arXiv:2405.04434.
double yarn(const Desc& s, DoubleDouble* inv_freq) {
  none(s, inv_freq);
  const auto pair_that_turns = [&](double times) {
    return log(DoubleDouble(double(s.original_max_position)) / (kTwoPi * times)) * (s.rotary_dim / 2) / log(s.theta);
  };
  DoubleDouble low = pair_that_turns(s.beta_fast), high = pair_that_turns(s.beta_slow);
  if (!s.no_truncate) {
    low = std::floor(low.high);
    high = std::ceil(high.high);
  }
  if (low < 0.0) low = 0.0;
  if (s.rotary_dim - 1.0 < high) high = s.rotary_dim - 1.0;
  DoubleDouble width = high - low;
  if (width.high == 0) width = 0.001;
  for (int i = 0; i < s.rotary_dim / 2; ++i) {
    const DoubleDouble ramp = (DoubleDouble(double(i)) - low) / width;
    if (DoubleDouble(1.0) < ramp)
      inv_freq[i] = inv_freq[i] / s.factor;
    else if (DoubleDouble(0.0) < ramp)
      inv_freq[i] = inv_freq[i] / s.factor * ramp + inv_freq[i] * (DoubleDouble(1.0) - ramp);
  }
  const double growth = std::log(std::max(s.factor, 1.0));
  return (0.1 * s.mscale * growth + 1) / (0.1 * s.mscale_all_dim * growth + 1);
}

void divide(const Desc& s, const double* factors, DoubleDouble* inv_freq) {
  none(s, inv_freq);
  for (int i = 0; i < s.rotary_dim / 2; ++i) inv_freq[i] = inv_freq[i] / factors[i];
}

// LongRoPE, arXiv:2402.13753, with the magnitude of Phi-3 (arXiv:2404.14219): sqrt(1 + ln(factor) / ln(original)).
double longrope(const Desc& s, DoubleDouble* inv_freq) {
  divide(s, s.seq_len > s.original_max_position ? s.long_factors : s.short_factors, inv_freq);
  return std::sqrt(1 + std::log(std::max(s.factor, 1.0)) / std::log(double(s.original_max_position)));
}

// rope_freqs of a GGUF file; ggml divides the angle by it.
double pair_factors(const Desc& s, DoubleDouble* inv_freq) {
  divide(s, s.pair_factors, inv_freq);
  return 1.0;
}

// p-RoPE, arXiv:2410.06205, section 6: the slowest pairs carry no position.
double proportional(const Desc& s, DoubleDouble* inv_freq) {
  linear(s, inv_freq);
  std::fill(inv_freq + int(s.proportion * s.rotary_dim / 2), inv_freq + s.rotary_dim / 2, DoubleDouble(0.0));
  return 1.0;
}

constexpr ScalingField<double> kFactor = {"factor", &Desc::factor, 0};
constexpr ScalingField<int64_t> kOriginal = {"original_max_position", &Desc::original_max_position, 0},
                                kLength = {"seq_len", &Desc::seq_len, -1};

}  // namespace

const ScalingMethod kScalings[kNumScalings] = {
    {"ROPE_SCALING_NONE", none},
    {"ROPE_SCALING_LINEAR", linear, {kFactor}},
    {"ROPE_SCALING_LLAMA3",
     llama3,
     {kFactor,
      {"low_freq_factor", &Desc::low_freq_factor, 1},
      {"high_freq_factor", &Desc::high_freq_factor, 4, 0, HUGE_VAL, &Desc::low_freq_factor, "low_freq_factor"}},
     {{"original_max_position", &Desc::original_max_position, 8192}}},
    {"ROPE_SCALING_CUSTOM", custom, {}, {}, {{"inv_freq", &Desc::inv_freq, true}}},
    {"ROPE_SCALING_NTK", ntk, {kFactor}},
    {"ROPE_SCALING_DYNAMIC_NTK", dynamic_ntk, {kFactor}, {kOriginal, kLength}},
    {"ROPE_SCALING_YARN",
     yarn,
     {kFactor,
      {"theta", &Desc::theta, 0, 1},
      {"beta_slow", &Desc::beta_slow, 1},
      {"beta_fast", &Desc::beta_fast, 32, 0, HUGE_VAL, &Desc::beta_slow, "beta_slow"},
      {"mscale", &Desc::mscale, 1},
      {"mscale_all_dim", &Desc::mscale_all_dim, -1}},
     {kOriginal, {"no_truncate", &Desc::no_truncate, -1, 0, 1}}},
    {"ROPE_SCALING_LONGROPE",
     longrope,
     {kFactor},
     {{"original_max_position", &Desc::original_max_position, 0, 1}, kLength},
     {{"short_factors", &Desc::short_factors, false}, {"long_factors", &Desc::long_factors, false}}},
    {"ROPE_SCALING_PAIR_FACTORS", pair_factors, {}, {}, {{"pair_factors", &Desc::pair_factors, false}}},
    {"ROPE_SCALING_PROPORTIONAL",
     proportional,
     {{"factor", &Desc::factor, 1}, {"proportion", &Desc::proportion, 0, 0, 1}}},
};

Turns turns_per_position(DoubleDouble inv_freq) {
  const DoubleDouble turns = inv_freq / kTwoPi;
  const double whole = std::floor(turns.high);
  const DoubleDouble fraction = (turns - whole) * 0x1p64;  // in [0, 2^64], or just below 0
  // Both halves as integers; the low half is rounded to the nearest after the high one's own fraction.
  const double high = std::floor(fraction.high);
  const auto rounded = static_cast<__int128>(std::nearbyint((fraction.high - high) + fraction.low));
  const auto turns_64 = static_cast<__int128>(whole) * (__int128(1) << 64) + static_cast<__int128>(high) + rounded;
  return {uint64_t(turns_64 >> 64), uint64_t(turns_64)};
}

}  // namespace rope
