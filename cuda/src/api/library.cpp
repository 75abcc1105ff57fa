// What this library is, and what it has.
#include <cstdio>

#include "../kernels/parts/device.h"
#include "checks.h"

extern "C" {

rope_status rope_query_support(const rope_support_query* query, int32_t* supported) {
  rope_support_query q;
  ROPE_TRY(rope::api::read_descriptor(query, sizeof(rope_support_query), "rope_support_query", &q));
  if (!supported) return rope::api::fail(ROPE_ERR_INVALID_ARG, "supported: NULL");
  const rope::Operations* operations;  // each serves every layout and angle
  const rope_status status = rope::api::find_operations(q.backend, q.dtype, q.layout, q.angle, &operations);
  if (status == ROPE_ERR_INVALID_ARG) return status;
  *supported = status == ROPE_OK;
  rope::api::clear_last_error();
  return ROPE_OK;
}

int32_t rope_device_count(void) { return rope::cuda::device_count(); }

int32_t rope_current_device(void) { return rope::cuda::current_device(); }

uint32_t rope_version(void) { return ROPE_VERSION_MAJOR << 16 | ROPE_VERSION_MINOR << 8 | ROPE_VERSION_PATCH; }

const char* rope_build_info(void) {
  static char text[256];
  static const int length = std::snprintf(text, sizeof(text), "%s; CPU %s; gcc %s", rope::cuda::toolkit_info(),
                                          rope::cpu::set_name(), __VERSION__);
  (void)length;
  return text;
}

}  // extern "C"
