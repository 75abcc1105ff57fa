#include <cmath>

#include "../frequencies/scaling.h"
#include "../math/annotate.h"
#include "../math/float_environment.h"
#include "checks.h"

namespace rope::api {
namespace {

using Desc = rope_frequencies_desc;

template <class T>
rope_status read_field(const ScalingField<T>& f, Desc* d) {
  T& value = d->*f.member;
  if (value == 0) {
    if (f.otherwise < 0) return ROPE_OK;
    value = T(f.otherwise);
  }
  const double x = double(value);
  const char* optional = f.otherwise < 0 ? "0 or " : "";
  if (f.most < HUGE_VAL && !(x > f.above && x <= f.most))
    return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be %sa number above %g and at most %g", f.name, x, optional,
                f.above, f.most);
  if (!(x > f.above && std::isfinite(x)))
    return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be %sa finite number above %g", f.name, x, optional, f.above);
  if (f.no_less && value < d->*f.no_less)
    return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be at least %s, %g", f.name, x, f.no_less_name,
                double(d->*f.no_less));
  return ROPE_OK;
}

// Each list is the scaling's own, or NULL.
rope_status check_lists(const Desc& d) {
  for (const ScalingMethod& method : kScalings)
    for (const ScalingList& list : method.lists) {
      if (!list.name) continue;
      const double* values = d.*list.member;
      const bool own = &method == &kScalings[d.scaling];
      if (own != (values != nullptr))
        return fail(ROPE_ERR_INVALID_ARG, "%s: %s %s", list.name, values ? "only allowed with" : "NULL, required with",
                    method.name);
      for (int i = 0; own && !list.any_number && i < d.rotary_dim / 2; ++i)
        if (!(std::isfinite(values[i]) && values[i] > 0))
          return fail(ROPE_ERR_INVALID_ARG, "%s: value %d is %g, must be a finite number above 0", list.name, i,
                      values[i]);
    }
  return ROPE_OK;
}

// Checks the descriptor and fills its defaults in.
rope_status validate(Desc* d) {
  ROPE_TRY(check_range("scaling", d->scaling, 0, kNumScalings - 1));
  if (d->angle != ROPE_ANGLE_EXACT && d->angle != ROPE_ANGLE_FP32)
    return fail(ROPE_ERR_INVALID_ARG, "angle: %d, must be one of ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1)", d->angle);
  if (d->rotary_dim < 2 || d->rotary_dim > ROPE_MAX_ROTARY_DIM || d->rotary_dim % 2)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even and 2 to %d", d->rotary_dim, ROPE_MAX_ROTARY_DIM);
  ROPE_TRY(check_position_dtype(d->position_dtype));
  ROPE_TRY(check_range("reserved", d->reserved, 0, 0));
  ROPE_TRY(read_field<double>({"theta", &Desc::theta, 10000}, d));
  for (const auto& field : kScalings[d->scaling].reals)
    if (field.name) ROPE_TRY(read_field(field, d));
  for (const auto& field : kScalings[d->scaling].integers)
    if (field.name) ROPE_TRY(read_field(field, d));
  return check_lists(*d);
}

rope_status frequencies(const rope_frequencies_desc* desc, uint64_t* words, double* inv_freq,
                        double* attention_factor) {
  rope_frequencies_desc d;
  ROPE_TRY(read_descriptor(desc, offsetof(rope_frequencies_desc, factor), "rope_frequencies_desc", &d));
  if (!words) return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL");
  const DefaultFloatEnvironment environment;
  ROPE_TRY(validate(&d));
  DoubleDouble exact[ROPE_MAX_ROTARY_DIM / 2] = {};
  const double magnitude = kScalings[d.scaling].frequencies(d, exact);
  for (int i = 0; i < d.rotary_dim / 2; ++i)
    if (!(std::fabs(exact[i].high) < 0x1p30))
      return fail(ROPE_ERR_INVALID_ARG, "%s: frequency %d is %g, must be finite and below 2^30 in magnitude",
                  d.inv_freq ? "inv_freq" : "theta", i, exact[i].high);
  const int pairs = d.rotary_dim / 2;
  for (int i = 0; i < pairs; ++i) {
    Turns word = {0, bit_cast<uint32_t>(float(exact[i].high))};
    if (d.angle == ROPE_ANGLE_EXACT) word = turns_per_position(exact[i]);
    words[i] = word.fraction;
    if (d.position_dtype == ROPE_INDEX_FLOAT32) words[pairs + i] = word.whole;
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
