// How a pipeline is laid out on the device.
#pragma once

#include "../pipeline.h"

namespace rope::cuda {

inline constexpr int kPipelineBlock = 128;  // threads
inline constexpr int kFewPairs = 64;        // rotary_dim / 2 of the code for most calls, see pipeline.cuh

// How an operand is dealt out.
struct OperandPlan {
  int32_t slots;       // threads along a head, in one block
  int32_t columns;     // threads along heads
  int32_t tokens;      // of a block
  int32_t turns;       // of a thread, over so many heads as it has in flight
  int32_t blocks;      // along y
  bool rows_in_warps;  // the threads of a head lie in one warp
};

struct PipelinePlan {
  int access_bytes;  // of an input: 16 or 8 where everything is a multiple of it, else one element
  bool reduce, quantised, general;
  bool prefetch, release_early;
  OperandPlan operands[kMaxOperands];
  unsigned grid_x, grid_y, grid_z;
};

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes);

// False: a block cannot hold a head, which a norm or dynamic scales need.
bool pipeline_fits(const PipelineParams& p, int element_bytes);

// Heads in flight in a thread. (Two of them with a reduction take registers that more warps make better use of.)
constexpr int pipeline_unroll(bool reduce) { return reduce ? 1 : 2; }

}  // namespace rope::cuda
