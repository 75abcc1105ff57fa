#include "status.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

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

// Apart from its callers, whose limits would let gcc copy by `rep movs`, in twice the C library's time (KERNELS.md).
rope_status copy_descriptor(const void* caller, size_t given, const char* name, void* out, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(caller);
  for (size_t i = size; i < given; ++i)
    if (bytes[i])
      return fail(ROPE_ERR_VERSION, "%s: sets a field at byte %zu that version %d.%d.%d does not know", name, i,
                  ROPE_VERSION_MAJOR, ROPE_VERSION_MINOR, ROPE_VERSION_PATCH);
  const size_t known = std::min(given, size);
  std::memcpy(out, caller, known);
  std::memset(static_cast<char*>(out) + known, 0, size - known);
  return ROPE_OK;
}

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
