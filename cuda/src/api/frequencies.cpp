#include "../frequencies/frequencies.h"

#include <cmath>

#include "../float_environment.h"
#include "../math/annotate.h"
#include "../params.h"
#include "status.h"

namespace rope::api {
namespace {

static_assert(kMaxRotaryDim == ROPE_MAX_ROTARY_DIM);

// 0 means the default.
double or_default(double value, double otherwise) { return value == 0 ? otherwise : value; }

rope_status check_positive(const char* name, double value) {
  if (std::isfinite(value) && value > 0) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be a finite number above 0", name, value);
}

rope_status validate(const rope_frequencies_desc& d, ScalingParams* s) {
  if (d.scaling < ROPE_SCALING_NONE || d.scaling > ROPE_SCALING_CUSTOM)
    return fail(ROPE_ERR_INVALID_ARG, "scaling: %d, must be one of ROPE_SCALING_NONE (0) to ROPE_SCALING_CUSTOM (3)",
                d.scaling);
  if (d.angle != ROPE_ANGLE_EXACT && d.angle != ROPE_ANGLE_FP32)
    return fail(ROPE_ERR_INVALID_ARG, "angle: %d, must be one of ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1)", d.angle);
  if (d.rotary_dim < 2 || d.rotary_dim > kMaxRotaryDim || d.rotary_dim % 2)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even and 2 to %d", d.rotary_dim, kMaxRotaryDim);
  *s = {};
  s->scaling = static_cast<Scaling>(d.scaling);
  s->rotary_dim = d.rotary_dim;
  s->theta = or_default(d.theta, 10000.0);
  ROPE_TRY(check_positive("theta", s->theta));
  if (s->scaling == Scaling::kLinear || s->scaling == Scaling::kLlama3) {
    s->factor = d.factor;
    ROPE_TRY(check_positive("factor", s->factor));
  }
  if (s->scaling == Scaling::kLlama3) {
    s->low_freq_factor = or_default(d.low_freq_factor, 1.0);
    s->high_freq_factor = or_default(d.high_freq_factor, 4.0);
    s->original_max_position = or_default(double(d.original_max_position), 8192.0);
    ROPE_TRY(check_positive("low_freq_factor", s->low_freq_factor));
    ROPE_TRY(check_positive("high_freq_factor", s->high_freq_factor));
    ROPE_TRY(check_positive("original_max_position", s->original_max_position));
    if (s->high_freq_factor <= s->low_freq_factor)
      return fail(ROPE_ERR_INVALID_ARG, "high_freq_factor: %g, must be above low_freq_factor, %g", s->high_freq_factor,
                  s->low_freq_factor);
  }
  if ((s->scaling == Scaling::kCustom) != (d.inv_freq != nullptr))
    return fail(ROPE_ERR_INVALID_ARG, "inv_freq: %s",
                d.inv_freq ? "only allowed with ROPE_SCALING_CUSTOM" : "NULL, required with ROPE_SCALING_CUSTOM");
  s->inv_freq = d.inv_freq;
  return ROPE_OK;
}

rope_status frequencies(const rope_frequencies_desc* desc, uint64_t* table, double* inv_freq,
                        double* attention_factor) {
  rope_frequencies_desc d;
  ROPE_TRY(read_descriptor(desc, offsetof(rope_frequencies_desc, factor), "rope_frequencies_desc", &d));
  if (!table) return fail(ROPE_ERR_INVALID_ARG, "table: NULL");
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
    table[i] = d.angle == ROPE_ANGLE_EXACT ? turns_per_position(exact[i]) : bit_cast<uint32_t>(float(exact[i].high));
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

rope_status rope_frequencies(const rope_frequencies_desc* desc, uint64_t* table, double* inv_freq,
                             double* attention_factor) {
  return rope::api::frequencies(desc, table, inv_freq, attention_factor);
}

}  // extern "C"
