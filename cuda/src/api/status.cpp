#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace {
thread_local char last_error[512];
}

namespace rope::api {

rope_status fail(rope_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return status;
}

void clear_last_error() { last_error[0] = '\0'; }

}  // namespace rope::api

extern "C" {

const char* rope_last_error(void) { return last_error; }

const char* rope_status_string(rope_status status) {
  switch (status) {
    case ROPE_OK: return "success";
    case ROPE_ERR_INVALID_ARG: return "invalid argument";
    case ROPE_ERR_UNSUPPORTED: return "unsupported by this build";
    case ROPE_ERR_CUDA: return "CUDA error";
    case ROPE_ERR_NO_DEVICE: return "no CUDA device";
    case ROPE_ERR_VERSION: return "descriptor of a newer version";
    case ROPE_ERR_INTERNAL: return "internal error";
    default: return "unknown status";
  }
}

}  // extern "C"
