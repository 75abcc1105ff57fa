// How a pipeline is laid out on the device.
#pragma once

#include "../pipeline.h"

namespace rope::cuda {

inline constexpr int kPipelineBlock = 128;  // threads, at most
// Blocks of code for any kind of token that must fit a multiprocessor. Without that, ptxas spills so that more do.
inline constexpr int kGeneralBlocks = 4;

// How an operand is dealt out.
struct OperandPlan {
  int32_t slots, stored_slots;        // of a head; of what is not rotated
  int32_t lanes;                      // threads along a head, in one block
  int32_t columns;                    // threads along heads
  int32_t tokens;                     // of a block
  int32_t turns, in_flight;           // of a thread: turns, and heads in each
  int32_t heads, blocks;              // of a block; blocks along heads
  bool rows_in_warps;                 // the threads of a head lie in one warp
  bool reports;                       // counts tokens that have no place
  uint32_t lane_share, column_share;  // 2^16 / lanes + 1 and 2^16 / columns + 1: division of a thread's number

  ROPE_INLINE_MEMBER int32_t row_of(uint32_t thread) const { return int32_t(thread * lane_share >> 16); }
  ROPE_INLINE_MEMBER int32_t token_of(uint32_t row) const { return int32_t(row * column_share >> 16); }
};

struct PipelinePlan {
  int access_bytes;  // of an input: 16 or 8 where everything is a multiple of it, else one element
  int unroll;        // heads in flight in a thread
  bool reduce, quantised, general;
  bool release_early, early;  // the next kernel let in before the wait; positions and cache indices read before it
  OperandPlan operands[kMaxOperands];
  uint32_t first_block[kMaxOperands];
  unsigned threads, grid_x, grid_z;
};

// early: positions and cache indices may be read before the wait.
PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes, bool early);

// False: a block cannot hold a head, which a norm or dynamic scales need.
bool pipeline_fits(const PipelineParams& p, int element_bytes);

}  // namespace rope::cuda
