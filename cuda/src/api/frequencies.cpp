#include <cmath>

#include "../frequencies/scaling.h"
#include "../math/annotate.h"
#include "../math/float_environment.h"
#include "../operations/call.h"
#include "status.h"

namespace rope::api {
namespace {

static_assert(kMaxRotaryDim == ROPE_MAX_ROTARY_DIM);

using Desc = rope_frequencies_desc;
using Params = ScalingParams;

rope_status check_positive(const char* name, double value) {
  if (std::isfinite(value) && value > 0) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be a finite number above 0", name, value);
}

// What a scaling reads: a number above 0, and what 0 means. A default of 0: it is required.
template <class T>
struct Field {
  Scaling scaling;
  const char* name;
  T Desc::* field;
  double Params::* parameter;
  double otherwise;
};

constexpr Field<double> kReals[] = {
    {Scaling::kLinear, "factor", &Desc::factor, &Params::factor, 0},
    {Scaling::kLlama3, "factor", &Desc::factor, &Params::factor, 0},
    {Scaling::kLlama3, "low_freq_factor", &Desc::low_freq_factor, &Params::low_freq_factor, 1},
    {Scaling::kLlama3, "high_freq_factor", &Desc::high_freq_factor, &Params::high_freq_factor, 4},
    {Scaling::kNtk, "factor", &Desc::factor, &Params::factor, 0},
    {Scaling::kDynamicNtk, "factor", &Desc::factor, &Params::factor, 0},
    {Scaling::kYarn, "factor", &Desc::factor, &Params::factor, 0},
    {Scaling::kYarn, "beta_fast", &Desc::beta_fast, &Params::beta_fast, 32},
    {Scaling::kYarn, "beta_slow", &Desc::beta_slow, &Params::beta_slow, 1},
    {Scaling::kYarn, "mscale", &Desc::mscale, &Params::mscale, 1},
    {Scaling::kLongRope, "factor", &Desc::factor, &Params::factor, 0},
    {Scaling::kProportional, "factor", &Desc::factor, &Params::factor, 1},
    {Scaling::kProportional, "proportion", &Desc::proportion, &Params::proportion, 0},
};

constexpr Field<int64_t> kIntegers[] = {
    {Scaling::kLlama3, "original_max_position", &Desc::original_max_position, &Params::original_max_position, 8192},
    {Scaling::kDynamicNtk, "original_max_position", &Desc::original_max_position, &Params::original_max_position, 0},
    {Scaling::kYarn, "original_max_position", &Desc::original_max_position, &Params::original_max_position, 0},
    {Scaling::kLongRope, "original_max_position", &Desc::original_max_position, &Params::original_max_position, 0},
};

struct List {
  Scaling scaling;
  const char *name, *scaling_name;
  const double* Desc::* field;
  const double* Params::* parameter;
};

constexpr List kLists[] = {
    {Scaling::kCustom, "inv_freq", "ROPE_SCALING_CUSTOM", &Desc::inv_freq, &Params::inv_freq},
    {Scaling::kPairFactors, "pair_factors", "ROPE_SCALING_PAIR_FACTORS", &Desc::pair_factors, &Params::pair_factors},
    {Scaling::kLongRope, "short_factors", "ROPE_SCALING_LONGROPE", &Desc::short_factors, &Params::short_factors},
    {Scaling::kLongRope, "long_factors", "ROPE_SCALING_LONGROPE", &Desc::long_factors, &Params::long_factors},
};

template <class T, size_t N>
rope_status read_fields(const Field<T> (&fields)[N], const Desc& d, Params* s) {
  for (const Field<T>& f : fields) {
    if (f.scaling != s->scaling) continue;
    const double value = double(d.*f.field);
    s->*f.parameter = value == 0 ? f.otherwise : value;
    ROPE_TRY(check_positive(f.name, s->*f.parameter));
  }
  return ROPE_OK;
}

rope_status read_lists(const Desc& d, Params* s) {
  for (const List& list : kLists) {
    const double* values = d.*list.field;
    if ((list.scaling == s->scaling) != (values != nullptr))
      return fail(ROPE_ERR_INVALID_ARG, "%s: %s %s", list.name, values ? "only allowed with" : "NULL, required with",
                  list.scaling_name);
    s->*list.parameter = values;
    if (!values || s->scaling == Scaling::kCustom) continue;
    for (int i = 0; i < d.rotary_dim / 2; ++i)
      if (!(std::isfinite(values[i]) && values[i] > 0))
        return fail(ROPE_ERR_INVALID_ARG, "%s: value %d is %g, must be a finite number above 0", list.name, i,
                    values[i]);
  }
  return ROPE_OK;
}

// What concerns more than one field, or allows more or less than a number above 0.
rope_status check_scaling(const Desc& d, Params* s) {
  switch (s->scaling) {
    case Scaling::kLlama3:
      if (s->high_freq_factor < s->low_freq_factor)
        return fail(ROPE_ERR_INVALID_ARG, "high_freq_factor: %g, must be at least low_freq_factor, %g",
                    s->high_freq_factor, s->low_freq_factor);
      break;
    case Scaling::kYarn:
      if (s->theta <= 1) return fail(ROPE_ERR_INVALID_ARG, "theta: %g, must be above 1 with YaRN", s->theta);
      if (s->beta_fast < s->beta_slow)
        return fail(ROPE_ERR_INVALID_ARG, "beta_fast: %g, must be at least beta_slow, %g", s->beta_fast, s->beta_slow);
      s->mscale_all_dim = d.mscale_all_dim;
      if (s->mscale_all_dim != 0) ROPE_TRY(check_positive("mscale_all_dim", s->mscale_all_dim));
      if (d.no_truncate != 0 && d.no_truncate != 1)
        return fail(ROPE_ERR_INVALID_ARG, "no_truncate: %lld, must be 0 or 1", (long long)d.no_truncate);
      s->no_truncate = d.no_truncate == 1;
      break;
    case Scaling::kLongRope:
      if (s->original_max_position <= 1)
        return fail(ROPE_ERR_INVALID_ARG, "original_max_position: %g, must be above 1 with LongRoPE",
                    s->original_max_position);
      [[fallthrough]];
    case Scaling::kDynamicNtk:
      if (d.seq_len < 0) return fail(ROPE_ERR_INVALID_ARG, "seq_len: %lld, must not be negative", (long long)d.seq_len);
      s->seq_len = double(d.seq_len);
      break;
    case Scaling::kProportional:
      if (s->proportion > 1)
        return fail(ROPE_ERR_INVALID_ARG, "proportion: %g, must be above 0 and at most 1", s->proportion);
      break;
    default: break;
  }
  return ROPE_OK;
}

rope_status validate(const Desc& d, Params* s) {
  if (d.scaling < ROPE_SCALING_NONE || d.scaling > ROPE_SCALING_PROPORTIONAL)
    return fail(ROPE_ERR_INVALID_ARG,
                "scaling: %d, must be one of ROPE_SCALING_NONE (0) to ROPE_SCALING_PROPORTIONAL (9)", d.scaling);
  if (d.angle != ROPE_ANGLE_EXACT && d.angle != ROPE_ANGLE_FP32)
    return fail(ROPE_ERR_INVALID_ARG, "angle: %d, must be one of ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1)", d.angle);
  if (d.rotary_dim < 2 || d.rotary_dim > kMaxRotaryDim || d.rotary_dim % 2)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even and 2 to %d", d.rotary_dim, kMaxRotaryDim);
  *s = {};
  s->scaling = static_cast<Scaling>(d.scaling);
  s->rotary_dim = d.rotary_dim;
  s->theta = d.theta == 0 ? 10000.0 : d.theta;
  ROPE_TRY(check_positive("theta", s->theta));
  ROPE_TRY(read_fields(kReals, d, s));
  ROPE_TRY(read_fields(kIntegers, d, s));
  ROPE_TRY(read_lists(d, s));
  return check_scaling(d, s);
}

rope_status frequencies(const rope_frequencies_desc* desc, uint64_t* words, double* inv_freq,
                        double* attention_factor) {
  rope_frequencies_desc d;
  ROPE_TRY(read_descriptor(desc, offsetof(rope_frequencies_desc, factor), "rope_frequencies_desc", &d));
  if (!words) return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL");
  const DefaultFloatEnvironment environment;
  ScalingParams s;
  ROPE_TRY(validate(d, &s));
  DoubleDouble exact[kMaxRotaryDim / 2] = {};
  const double magnitude = scaled_frequencies(s, exact);
  for (int i = 0; i < d.rotary_dim / 2; ++i)
    if (!(std::fabs(exact[i].high) < 0x1p30))
      return fail(ROPE_ERR_INVALID_ARG, "%s: frequency %d is %g, must be finite and below 2^30 in magnitude",
                  d.inv_freq ? "inv_freq" : "theta", i, exact[i].high);
  for (int i = 0; i < d.rotary_dim / 2; ++i) {
    words[i] = d.angle == ROPE_ANGLE_EXACT ? turns_per_position(exact[i]) : bit_cast<uint32_t>(float(exact[i].high));
    if (inv_freq) inv_freq[i] = exact[i].high;
  }
  if (attention_factor) *attention_factor = magnitude;
  return ROPE_OK;
}

}  // namespace
}  // namespace rope::api

extern "C" {

void rope_frequencies_desc_init(rope_frequencies_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_frequencies(const rope_frequencies_desc* desc, uint64_t* words, double* inv_freq,
                             double* attention_factor) {
  return rope::api::frequencies(desc, words, inv_freq, attention_factor);
}

}  // extern "C"
