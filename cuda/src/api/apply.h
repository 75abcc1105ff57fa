// What the checks of rotations, of pipelines and of tables share.
#pragma once

#include "memory.h"
#include "status.h"
#include "support.h"

namespace rope::api {

inline int64_t index_bytes(int32_t index_dtype) { return index_dtype == ROPE_INDEX_INT32 ? 4 : 8; }

rope_status check_apart(const char* x_name, const Rows& x, const char* y_name, const Rows& y);

// Memory beside the tensors.
struct Extent {
  const char* name;
  const void* data;  // null: there is none
  int64_t bytes;
};

rope_status check_apart(const char* written_name, const Rows& written, const Extent& read);

rope_status check_positions_apart(const rope_apply_desc& d, const Positions& p, const char* written_name,
                                  const Rows& written);

rope_status check_range(const char* name, int64_t value, int64_t low, int64_t high);

rope_status check_index_dtype(const char* name, int32_t value);

rope_status read_attention_factor(float* factor);  // 0 becomes 1

// Where to run: a stream on CUDA, threads on the CPU.
rope_status check_execution(int32_t backend, const void* stream, int32_t num_threads);
Execution execution_of(int32_t backend, uint32_t flags, void* stream, int32_t num_threads);
rope_status launch_status(int error);  // of what a backend returned

// Host memory given to the CUDA backend, where that can be told.
rope_status check_device_pointer(const char* name, const void* pointer);

// Whether the descriptor asks for more than a rotation.
bool has_stages(const rope_apply_desc& d);

// The checked descriptor's pipeline; d's shape has been checked and its defaults filled in. *xpos is filled where
// d.xpos.scale_base is set.
rope_status read_pipeline(const rope_apply_desc& d, PipelineParams* p, XPos* xpos);

}  // namespace rope::api
