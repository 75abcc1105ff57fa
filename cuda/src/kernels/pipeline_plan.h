// How a pipeline is laid out on the device.
#pragma once

#include "../pipeline.h"

namespace rope::cuda {

inline constexpr int kPipelineBlock = 128;  // threads

struct PipelinePlan {
  int access_bytes;  // of an input: 16 or 8 where everything is a multiple of it, else one element
  bool reduce, prefetch, release_early;
  unsigned block_x, block_y, block_z, grid_x, grid_y, grid_z;
};

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes);

// False: a block cannot hold a head, which a norm or dynamic scales need.
bool pipeline_fits(const PipelineParams& p, int element_bytes);

// Heads in flight in a thread. (Element by element, two heads and a reduction spill a register.)
constexpr int pipeline_unroll(int access_bytes, bool reduce) { return access_bytes < 8 && reduce ? 1 : 2; }

}  // namespace rope::cuda
