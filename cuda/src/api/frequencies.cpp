#include <cmath>

#include "../frequencies/scaling.h"
#include "../math/annotate.h"
#include "../math/float_environment.h"
#include "status.h"

namespace rope::api {
namespace {

using Desc = rope_frequencies_desc;

rope_status check_positive(const char* name, double value) {
  if (std::isfinite(value) && value > 0) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be a finite number above 0", name, value);
}

// What a scaling reads: a number above 0, and what 0 means. A default of 0: it is required.
template <class T>
struct Field {
  int32_t scaling;
  const char* name;
  T Desc::* field;
  T otherwise;
};

constexpr Field<double> kReals[] = {
    {ROPE_SCALING_LINEAR, "factor", &Desc::factor, 0},
    {ROPE_SCALING_LLAMA3, "factor", &Desc::factor, 0},
    {ROPE_SCALING_LLAMA3, "low_freq_factor", &Desc::low_freq_factor, 1},
    {ROPE_SCALING_LLAMA3, "high_freq_factor", &Desc::high_freq_factor, 4},
    {ROPE_SCALING_NTK, "factor", &Desc::factor, 0},
    {ROPE_SCALING_DYNAMIC_NTK, "factor", &Desc::factor, 0},
    {ROPE_SCALING_YARN, "factor", &Desc::factor, 0},
    {ROPE_SCALING_YARN, "beta_fast", &Desc::beta_fast, 32},
    {ROPE_SCALING_YARN, "beta_slow", &Desc::beta_slow, 1},
    {ROPE_SCALING_YARN, "mscale", &Desc::mscale, 1},
    {ROPE_SCALING_LONGROPE, "factor", &Desc::factor, 0},
    {ROPE_SCALING_PROPORTIONAL, "factor", &Desc::factor, 1},
    {ROPE_SCALING_PROPORTIONAL, "proportion", &Desc::proportion, 0},
};

constexpr Field<int64_t> kIntegers[] = {
    {ROPE_SCALING_LLAMA3, "original_max_position", &Desc::original_max_position, 8192},
    {ROPE_SCALING_DYNAMIC_NTK, "original_max_position", &Desc::original_max_position, 0},
    {ROPE_SCALING_YARN, "original_max_position", &Desc::original_max_position, 0},
    {ROPE_SCALING_LONGROPE, "original_max_position", &Desc::original_max_position, 0},
};

struct List {
  int32_t scaling;
  const char *name, *scaling_name;
  const double* Desc::* field;
};

constexpr List kLists[] = {
    {ROPE_SCALING_CUSTOM, "inv_freq", "ROPE_SCALING_CUSTOM", &Desc::inv_freq},
    {ROPE_SCALING_PAIR_FACTORS, "pair_factors", "ROPE_SCALING_PAIR_FACTORS", &Desc::pair_factors},
    {ROPE_SCALING_LONGROPE, "short_factors", "ROPE_SCALING_LONGROPE", &Desc::short_factors},
    {ROPE_SCALING_LONGROPE, "long_factors", "ROPE_SCALING_LONGROPE", &Desc::long_factors},
};

template <class T, size_t N>
rope_status read_fields(const Field<T> (&fields)[N], Desc* d) {
  for (const Field<T>& f : fields) {
    if (f.scaling != d->scaling) continue;
    T& value = d->*f.field;
    if (value == 0) value = f.otherwise;
    ROPE_TRY(check_positive(f.name, double(value)));
  }
  return ROPE_OK;
}

rope_status check_lists(const Desc& d) {
  for (const List& list : kLists) {
    const double* values = d.*list.field;
    if ((list.scaling == d.scaling) != (values != nullptr))
      return fail(ROPE_ERR_INVALID_ARG, "%s: %s %s", list.name, values ? "only allowed with" : "NULL, required with",
                  list.scaling_name);
    if (!values || d.scaling == ROPE_SCALING_CUSTOM) continue;
    for (int i = 0; i < d.rotary_dim / 2; ++i)
      if (!(std::isfinite(values[i]) && values[i] > 0))
        return fail(ROPE_ERR_INVALID_ARG, "%s: value %d is %g, must be a finite number above 0", list.name, i,
                    values[i]);
  }
  return ROPE_OK;
}

// What concerns more than one field, or allows more or less than a number above 0.
rope_status check_scaling(const Desc& d) {
  switch (d.scaling) {
    case ROPE_SCALING_LLAMA3:
      if (d.high_freq_factor < d.low_freq_factor)
        return fail(ROPE_ERR_INVALID_ARG, "high_freq_factor: %g, must be at least low_freq_factor, %g",
                    d.high_freq_factor, d.low_freq_factor);
      break;
    case ROPE_SCALING_YARN:
      if (d.theta <= 1) return fail(ROPE_ERR_INVALID_ARG, "theta: %g, must be above 1 with YaRN", d.theta);
      if (d.beta_fast < d.beta_slow)
        return fail(ROPE_ERR_INVALID_ARG, "beta_fast: %g, must be at least beta_slow, %g", d.beta_fast, d.beta_slow);
      if (d.mscale_all_dim != 0) ROPE_TRY(check_positive("mscale_all_dim", d.mscale_all_dim));
      if (d.no_truncate != 0 && d.no_truncate != 1)
        return fail(ROPE_ERR_INVALID_ARG, "no_truncate: %lld, must be 0 or 1", (long long)d.no_truncate);
      break;
    case ROPE_SCALING_LONGROPE:
      if (d.original_max_position <= 1)
        return fail(ROPE_ERR_INVALID_ARG, "original_max_position: %lld, must be above 1 with LongRoPE",
                    (long long)d.original_max_position);
      [[fallthrough]];
    case ROPE_SCALING_DYNAMIC_NTK:
      if (d.seq_len < 0) return fail(ROPE_ERR_INVALID_ARG, "seq_len: %lld, must not be negative", (long long)d.seq_len);
      break;
    case ROPE_SCALING_PROPORTIONAL:
      if (d.proportion > 1)
        return fail(ROPE_ERR_INVALID_ARG, "proportion: %g, must be above 0 and at most 1", d.proportion);
      break;
    default: break;
  }
  return ROPE_OK;
}

// Checks the descriptor and fills its defaults in.
rope_status validate(Desc* d) {
  if (d->scaling < ROPE_SCALING_NONE || d->scaling > ROPE_SCALING_PROPORTIONAL)
    return fail(ROPE_ERR_INVALID_ARG,
                "scaling: %d, must be one of ROPE_SCALING_NONE (0) to ROPE_SCALING_PROPORTIONAL (9)", d->scaling);
  if (d->angle != ROPE_ANGLE_EXACT && d->angle != ROPE_ANGLE_FP32)
    return fail(ROPE_ERR_INVALID_ARG, "angle: %d, must be one of ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1)", d->angle);
  if (d->rotary_dim < 2 || d->rotary_dim > ROPE_MAX_ROTARY_DIM || d->rotary_dim % 2)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even and 2 to %d", d->rotary_dim, ROPE_MAX_ROTARY_DIM);
  if (d->theta == 0) d->theta = 10000.0;
  ROPE_TRY(check_positive("theta", d->theta));
  ROPE_TRY(read_fields(kReals, d));
  ROPE_TRY(read_fields(kIntegers, d));
  ROPE_TRY(check_lists(*d));
  return check_scaling(*d);
}

rope_status frequencies(const rope_frequencies_desc* desc, uint64_t* words, double* inv_freq,
                        double* attention_factor) {
  rope_frequencies_desc d;
  ROPE_TRY(read_descriptor(desc, offsetof(rope_frequencies_desc, factor), "rope_frequencies_desc", &d));
  if (!words) return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL");
  const DefaultFloatEnvironment environment;
  ROPE_TRY(validate(&d));
  DoubleDouble exact[ROPE_MAX_ROTARY_DIM / 2] = {};
  const double magnitude = scaled_frequencies(d, exact);
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
