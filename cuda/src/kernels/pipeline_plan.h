// How a pipeline is laid out on the device.
#pragma once

#include "../pipeline.h"

namespace rope::cuda {

inline constexpr int kPipelineBlock = 128;  // threads
inline constexpr int kFewPairs = 64;        // rotary_dim / 2 of the code for most calls, see pipeline.cuh

struct PipelinePlan {
  int access_bytes;  // of an input: 16 or 8 where everything is a multiple of it, else one element
  bool reduce, quantised, general;
  bool prefetch, release_early;
  int32_t blocks[kMaxOperands], turns;  // see PipelineArgs
  unsigned block_x, block_y, block_z, grid_x, grid_y, grid_z;
};

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes);

// False: a block cannot hold a head, which a norm or dynamic scales need.
bool pipeline_fits(const PipelineParams& p, int element_bytes);

// Heads in flight in a thread. (Two of them with a reduction take registers that more warps make better use of.)
constexpr int pipeline_unroll(bool reduce) { return reduce ? 1 : 2; }

}  // namespace rope::cuda
