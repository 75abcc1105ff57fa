#include "checks.h"

#include <cmath>
#include <cstdio>

#include "../kernels/parts/device.h"

namespace rope::api {
namespace {

rope_status check_enum(const char* name, int32_t value, int32_t count, const char* allowed) {
  if (value >= 0 && value < count) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %d, must be one of %s", name, value, allowed);
}

#define ROPE_ENTRY(D) int64_t(sizeof(D::Storage)),
constexpr int64_t kDtypeBytes[kNumDtypes] = {ROPE_FOR_EACH_DTYPE(ROPE_ENTRY)};
#undef ROPE_ENTRY

const struct {
  uint32_t bit;
  const char* name;
} kFlags[] = {{ROPE_FLAG_INVERSE, "ROPE_FLAG_INVERSE"},
              {ROPE_FLAG_PDL, "ROPE_FLAG_PDL"},
              {ROPE_FLAG_POSITIONS_READY, "ROPE_FLAG_POSITIONS_READY"},
              {ROPE_FLAG_IN_CACHE, "ROPE_FLAG_IN_CACHE"},
              {ROPE_FLAG_NO_ROTATION, "ROPE_FLAG_NO_ROTATION"},
              {ROPE_FLAG_CHECK_PLACES, "ROPE_FLAG_CHECK_PLACES"}};

}  // namespace

rope_status fail_range(const char* name, int64_t value, int64_t low, int64_t high) {
  return fail(ROPE_ERR_INVALID_ARG, "%s: %lld, must be %lld to %lld", name, static_cast<long long>(value),
              static_cast<long long>(low), static_cast<long long>(high));
}

rope_status check_between(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be %g to %g", name, value, low, high);
}

rope_status check_positive(const char* name, float value) {
  if (value >= 0 && std::isfinite(value)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be 0 (the default) or above, and finite", name, double(value));
}

rope_status check_flags(uint32_t flags, uint32_t allowed) {
  if (!(flags & ~allowed)) return ROPE_OK;
  char names[256] = "";
  int length = 0;
  for (const auto& flag : kFlags)
    if (flag.bit & allowed)
      length += std::snprintf(names + length, sizeof(names) - size_t(length), "%s%s (%u)", length ? ", " : "",
                              flag.name, flag.bit);
  return fail(ROPE_ERR_INVALID_ARG, "flags: %#x has bits other than %s", flags, names);
}

rope_status check_position_dtype(int32_t value) {
  return check_enum("position_dtype", value, 3, "ROPE_INDEX_INT64 (0), ROPE_INDEX_INT32 (1), ROPE_INDEX_FLOAT32 (2)");
}

rope_status read_attention_factor(float* factor) {
  if (!std::isfinite(*factor))
    return fail(ROPE_ERR_INVALID_ARG, "attention_factor: %g, must be finite", double(*factor));
  if (*factor == 0) *factor = 1.0f;
  return ROPE_OK;
}

int64_t dtype_bytes(int32_t dtype) { return kDtypeBytes[dtype]; }

rope_status check_not_host(const char* name, const void* pointer) {
  if (!cuda::is_host_only(pointer)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %p is host memory, which the CUDA backend cannot read", name, pointer);
}

rope_status check_pointer(int32_t backend, const char* name, const void* pointer, int64_t bytes) {
  if (!pointer) return ROPE_OK;
  ROPE_TRY(check_address(name, pointer, bytes));
  return check_device_pointer(backend, name, pointer);
}

rope_status require_pointer(int32_t backend, const char* name, const void* pointer, int64_t bytes, const char* when) {
  if (!pointer) return fail(ROPE_ERR_INVALID_ARG, "%s: NULL, required %s", name, when);
  return check_pointer(backend, name, pointer, bytes);
}

rope_status find_operations(int32_t backend, int32_t dtype, int32_t layout, int32_t angle,
                            const Operations** operations) {
  ROPE_TRY(check_enum("backend", backend, 2, "ROPE_BACKEND_CUDA (0), ROPE_BACKEND_CPU (1)"));
  ROPE_TRY(check_enum("dtype", dtype, kNumDtypes, "ROPE_DTYPE_F32 (0), ROPE_DTYPE_F16 (1), ROPE_DTYPE_BF16 (2)"));
  ROPE_TRY(check_enum("layout", layout, 2, "ROPE_LAYOUT_NEOX (0), ROPE_LAYOUT_GPTJ (1)"));
  ROPE_TRY(check_enum("angle", angle, 3, "ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1), ROPE_ANGLE_COS_SIN (2)"));
  *operations = backend == ROPE_BACKEND_CUDA ? cuda::operations(Dtype(dtype)) : cpu::operations(Dtype(dtype));
  if (*operations) return ROPE_OK;
  return fail(ROPE_ERR_UNSUPPORTED, "backend: this library was built without CUDA; use ROPE_BACKEND_CPU");
}

rope_status read_execution(int32_t backend, uint32_t flags, void* stream, const Threads& threads,
                           Execution* execution) {
  const bool cpu = backend == ROPE_BACKEND_CPU;
  if (cpu && stream) return fail(ROPE_ERR_INVALID_ARG, "stream: must be NULL on the CPU backend");
  if (cpu ? threads.num_threads < 0 : threads.num_threads != 0)
    return fail(ROPE_ERR_INVALID_ARG, "num_threads: %d, must be %s", threads.num_threads,
                cpu ? "0 (all) or more" : "0 on the CUDA backend");
  if (!cpu && threads.parallel_for) return fail(ROPE_ERR_INVALID_ARG, "parallel_for: must be NULL on the CUDA backend");
  if (threads.parallel_for && threads.num_threads)
    return fail(ROPE_ERR_INVALID_ARG, "num_threads: %d, must be 0 with parallel_for", threads.num_threads);
  if (threads.parallel_context && !threads.parallel_for)
    return fail(ROPE_ERR_INVALID_ARG, "parallel_context: %p, must be NULL without parallel_for",
                threads.parallel_context);
  const bool dependent = !cpu && (flags & ROPE_FLAG_PDL) && cuda::has_dependent_launch();
  *execution = {stream, dependent, (flags & ROPE_FLAG_POSITIONS_READY) != 0, threads};
  return ROPE_OK;
}

rope_status status_of(const Outcome& outcome) {
  if (outcome.unsupported) return fail(ROPE_ERR_UNSUPPORTED, "%s", outcome.unsupported);
  if (outcome.error == 0) return ROPE_OK;
  return fail(cuda::is_no_device(outcome.error) ? ROPE_ERR_NO_DEVICE : ROPE_ERR_CUDA, "launch failed: %s",
              cuda::error_name(outcome.error));
}

}  // namespace rope::api
