// What every call checks: numbers, enumerations, pointers, where to run; and what became of it.
#pragma once

#include "../operations/operations.h"
#include "memory.h"
#include "status.h"

namespace rope::api {

// Their common way out is inline: a call makes dozens of them.
rope_status fail_range(const char* name, int64_t value, int64_t low, int64_t high);
inline rope_status check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  return value >= low && value <= high ? ROPE_OK : fail_range(name, value, low, high);
}
rope_status check_between(const char* name, double value, double low, double high);
rope_status check_positive(const char* name, float value);  // or 0, the default
rope_status check_flags(uint32_t flags, uint32_t allowed);
rope_status check_position_dtype(int32_t value);
rope_status read_attention_factor(float* factor);  // 0 becomes 1

int64_t dtype_bytes(int32_t dtype);                 // of a valid one
inline PositionKind id_kind(int32_t index_dtype) {  // of positions that are given one by one
  constexpr PositionKind kKinds[] = {PositionKind::kIds64, PositionKind::kIds32, PositionKind::kFloat32};
  return kKinds[index_dtype];
}
inline int64_t index_bytes(int32_t index_dtype) { return index_dtype == ROPE_INDEX_INT64 ? 8 : 4; }

// Memory of the backend, aligned to `bytes`; null is allowed, or required `when`. Of CUDA it is asked, where that can
// be told, that it is no host memory.
rope_status check_pointer(int32_t backend, const char* name, const void* pointer, int64_t bytes);
rope_status require_pointer(int32_t backend, const char* name, const void* pointer, int64_t bytes, const char* when);
rope_status check_not_host(const char* name, const void* pointer);
inline rope_status check_device_pointer(int32_t backend, const char* name, const void* pointer) {
  return backend == ROPE_BACKEND_CUDA && pointer ? check_not_host(name, pointer) : ROPE_OK;
}

// What is compiled for the backend and dtype. Fails by name on an unknown value, and where there is nothing.
rope_status find_operations(int32_t backend, int32_t dtype, int32_t layout, int32_t angle,
                            const Operations** operations);

// Where to run: a stream on CUDA, threads on the CPU.
rope_status read_execution(int32_t backend, uint32_t flags, void* stream, const Threads& threads, Execution* execution);

rope_status status_of(const Outcome& outcome);

}  // namespace rope::api
