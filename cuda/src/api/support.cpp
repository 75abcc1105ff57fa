#include "support.h"

#include <cstdio>

#include "../cpu/build_cos_sin.h"
#include "../cpu/cache_rotation.h"
#include "../cpu/pipeline.h"
#include "../cpu/rotate.h"
#include "../kernels/build_cos_sin.h"
#include "../kernels/cache_rotation.h"
#include "../kernels/device.h"
#include "../kernels/pipeline.h"
#include "../kernels/rotate.h"
#include "status.h"

namespace rope::api {
namespace {

#ifdef ROPEROPE_WITH_CUDA
#define ROPE_ENTRY(dtype) &cuda::kRotate##dtype,
const RotateTable* const kCudaTables[kNumDtypes] = {ROPE_FOR_EACH_DTYPE(ROPE_ENTRY)};
#undef ROPE_ENTRY
#define ROPE_ENTRY(dtype) &cuda::kPipeline##dtype,
const PipelineTable* const kCudaPipelines[kNumDtypes] = {ROPE_FOR_EACH_DTYPE(ROPE_ENTRY)};
#undef ROPE_ENTRY
#endif

#define ROPE_ENTRY(dtype) int32_t(sizeof(dtype::Storage)),
constexpr int32_t kDtypeBytes[kNumDtypes] = {ROPE_FOR_EACH_DTYPE(ROPE_ENTRY)};
#undef ROPE_ENTRY

rope_status check_enum(const char* name, int32_t value, int32_t count, const char* allowed) {
  if (value >= 0 && value < count) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %d, must be one of %s", name, value, allowed);
}

rope_status check_key(int32_t backend, int32_t dtype, int32_t layout, int32_t angle) {
  ROPE_TRY(check_enum("backend", backend, 2, "ROPE_BACKEND_CUDA (0), ROPE_BACKEND_CPU (1)"));
  ROPE_TRY(check_enum("dtype", dtype, kNumDtypes, "ROPE_DTYPE_F32 (0), ROPE_DTYPE_F16 (1), ROPE_DTYPE_BF16 (2)"));
  ROPE_TRY(check_enum("layout", layout, kNumLayouts, "ROPE_LAYOUT_NEOX (0), ROPE_LAYOUT_GPTJ (1)"));
  ROPE_TRY(
      check_enum("angle", angle, kNumAngles + 1, "ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1), ROPE_ANGLE_COS_SIN (2)"));
#ifndef ROPEROPE_WITH_CUDA
  if (backend == ROPE_BACKEND_CUDA)
    return fail(ROPE_ERR_UNSUPPORTED, "backend: this library was built without CUDA; use ROPE_BACKEND_CPU");
#endif
  return ROPE_OK;
}

rope_status check_compiled(bool compiled, int32_t dtype, int32_t layout, int32_t angle) {
  if (compiled) return ROPE_OK;
  return fail(ROPE_ERR_UNSUPPORTED, "dtype %d with layout %d and angle %d is not compiled", dtype, layout, angle);
}

}  // namespace

int32_t dtype_bytes(int32_t dtype) { return kDtypeBytes[dtype]; }

rope_status find_rotation(int32_t backend, int32_t dtype, int32_t layout, int32_t angle, RotateFn* rotation) {
  ROPE_TRY(check_key(backend, dtype, layout, angle));
  const RotateTable* table = &cpu::rotate_set().tables[dtype];
#ifdef ROPEROPE_WITH_CUDA
  if (backend == ROPE_BACKEND_CUDA) table = kCudaTables[dtype];
#endif
  *rotation = angle < kNumAngles ? table->entries[layout][angle] : nullptr;
  return check_compiled(*rotation, dtype, layout, angle);
}

rope_status find_pipeline(int32_t backend, int32_t dtype, int32_t layout, int32_t angle, PipelineFn* pipeline) {
  ROPE_TRY(check_key(backend, dtype, layout, angle));
  const PipelineTable* table = &cpu::pipeline_set().tables[dtype];
#ifdef ROPEROPE_WITH_CUDA
  if (backend == ROPE_BACKEND_CUDA) table = kCudaPipelines[dtype];
#endif
  *pipeline = table->entries[layout];
  return check_compiled(*pipeline, dtype, layout, angle);
}

rope_status find_cos_sin_builder(int32_t backend, int32_t dtype, int32_t angle, CosSinFn* build) {
  ROPE_TRY(check_key(backend, dtype, ROPE_LAYOUT_NEOX, ROPE_ANGLE_EXACT));
  ROPE_TRY(check_enum("angle", angle, kNumAngles, "ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1)"));
  const BuildTableSet* set = &cpu::build_cos_sins();
#ifdef ROPEROPE_WITH_CUDA
  if (backend == ROPE_BACKEND_CUDA) set = &cuda::kBuildTable;
#endif
  *build = set->entries[dtype][angle];
  return ROPE_OK;
}

rope_status find_cache_rotation(int32_t backend, int32_t dtype, int32_t layout, int32_t angle, bool quantised,
                                PipelineFn* rotation) {
  ROPE_TRY(check_key(backend, dtype, layout, angle));
  const CacheRotationTable* table = &cpu::cache_rotations();
#ifdef ROPEROPE_WITH_CUDA
  if (backend == ROPE_BACKEND_CUDA) table = &cuda::kCacheRotation;
#endif
  *rotation = table->stored[quantised ? kStoredBytes : dtype].entries[layout];
  return check_compiled(*rotation, dtype, layout, angle);
}

}  // namespace rope::api

extern "C" {

rope_status rope_query_support(const rope_support_query* query, int32_t* supported) {
  rope_support_query q;
  ROPE_TRY(rope::api::read_descriptor(query, sizeof(rope_support_query), "rope_support_query", &q));
  if (!supported) return rope::api::fail(ROPE_ERR_INVALID_ARG, "supported: NULL");
  rope::PipelineFn pipeline;  // serves every angle, and plain rotations are compiled wherever it is
  const rope_status status = rope::api::find_pipeline(q.backend, q.dtype, q.layout, q.angle, &pipeline);
  if (status == ROPE_ERR_INVALID_ARG) return status;
  *supported = status == ROPE_OK;
  rope::api::clear_last_error();
  return ROPE_OK;
}

int32_t rope_device_count(void) { return rope::cuda::device_count(); }

uint32_t rope_version(void) { return ROPE_VERSION_MAJOR << 16 | ROPE_VERSION_MINOR << 8 | ROPE_VERSION_PATCH; }

const char* rope_build_info(void) {
  static char text[256];
  static const int length = std::snprintf(text, sizeof(text), "%s; CPU %s; gcc %s", rope::cuda::toolkit_info(),
                                          rope::cpu::rotate_set().name, __VERSION__);
  (void)length;
  return text;
}

}  // extern "C"
