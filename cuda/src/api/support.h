// The one place that maps public enumerations to what is compiled.
#pragma once

#include "../build_cos_sin.h"
#include "../pipeline.h"
#include "roperope/roperope.h"

namespace rope::api {

// The rotation for the combination. Fails by name on an unknown value, and where nothing is compiled.
rope_status find_rotation(int32_t backend, int32_t dtype, int32_t layout, int32_t angle, RotateFn* rotation);

// The pipeline for the combination, likewise.
rope_status find_pipeline(int32_t backend, int32_t dtype, int32_t layout, int32_t angle, PipelineFn* pipeline);

// What fills a table of cos and sin, likewise.
rope_status find_cos_sin_builder(int32_t backend, int32_t dtype, int32_t angle, CosSinFn* build);

// The rotation in a cache of the dtype, or of a quantised type, likewise.
rope_status find_cache_rotation(int32_t backend, int32_t dtype, int32_t layout, int32_t angle, bool quantised,
                                PipelineFn* rotation);

int32_t dtype_bytes(int32_t dtype);  // of a valid dtype

}  // namespace rope::api
