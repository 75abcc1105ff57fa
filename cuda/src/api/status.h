// How a call fails, and how a versioned descriptor is read.
#pragma once

#include <cstddef>

#include "roperope/roperope.h"

namespace rope::api {

// Sets this thread's last error and returns `status`. printf format; the text names the field first.
__attribute__((format(printf, 2, 3))) rope_status fail(rope_status status, const char* format, ...);

void clear_last_error();

// Copies `given` bytes of a descriptor, which the caller says it has, into the `size` of *out, zero where it is
// shorter.
rope_status copy_descriptor(const void* caller, size_t given, const char* name, void* out, size_t size);

// Copies the caller's descriptor into *out. `required`: the size of the first release's obligatory fields.
template <class Desc>
rope_status read_descriptor(const Desc* caller, size_t required, const char* name, Desc* out) {
  if (!caller) return fail(ROPE_ERR_INVALID_ARG, "%s: NULL", name);
  const size_t size = caller->struct_size;
  if (size < required)
    return fail(ROPE_ERR_INVALID_ARG, "%s.struct_size: %zu, must be at least %zu (set it to sizeof(%s))", name, size,
                required, name);
  if (size > 4096)
    return fail(ROPE_ERR_INVALID_ARG, "%s.struct_size: %zu, must be at most 4096 (is it initialised?)", name, size);
  return copy_descriptor(caller, size, name, out, sizeof(Desc));
}

#define ROPE_TRY(expression)                                      \
  do {                                                            \
    if (const rope_status status_ = (expression)) return status_; \
  } while (0)

}  // namespace rope::api
