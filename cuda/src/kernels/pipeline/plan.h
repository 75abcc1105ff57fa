// How a pipeline is laid out on the device: pure arithmetic on its shape.
#pragma once

#include "../../operations/pipeline.h"
#include "../parts/plan.h"

namespace rope::cuda {

// What tells the kernels of one dtype and layout apart.
struct PipelineCode {
  int access_bytes;  // of an input: 16 or 8 where everything is a multiple of it, else one element
  int unroll;        // heads in flight in a thread
  bool reduce;       // a norm, or scales that are computed
  bool quantised;    // some output is
  bool general;      // any kind of position, angle, cache index, norm weight and head, and xPos
  bool early;        // positions and cache indices are read, and angles formed, before the wait

  constexpr bool operator==(const PipelineCode& x) const {
    return access_bytes == x.access_bytes && unroll == x.unroll && reduce == x.reduce && quantised == x.quantised &&
           general == x.general && early == x.early;
  }
};

// All that are compiled. The general code serves outputs of every type.
template <int kElementBytes>
inline constexpr PipelineCode kPipelineCodes[] = {
    {8, 2, false, false, false, false},
    {8, 2, false, false, false, true},
    {16, 2, false, false, false, false},
    {16, 2, false, false, false, true},
    // quantised
    {8, 1, false, true, false, false},
    {16, 1, false, true, false, false},
    {16, 2, false, true, false, false},
    {16, 2, false, true, false, true},
    {16, 4, false, true, false, false},
    // reduced
    {8, 1, true, false, false, false},
    {8, 1, true, false, false, true},
    {16, 2, true, false, false, false},
    {16, 2, true, false, false, true},
    {16, 4, true, false, false, false},
    // both
    {8, 1, true, true, false, false},
    {8, 1, true, true, false, true},
    {16, 2, true, true, false, false},
    {16, 2, true, true, false, true},
    // general
    {kElementBytes, 1, false, true, true, false},
    {8, 1, false, true, true, false},
    {16, 1, false, true, true, false},
    {kElementBytes, 1, true, true, true, false},
    {8, 1, true, true, true, false},
    {16, 1, true, true, true, false},
};

// Where a thread of an operand's block works.
struct PipelinePlace {
  int32_t row, lane;  // of a head's threads in the block; a thread in the row
  int32_t row_token;  // of the block's tokens
  uint32_t token;
  int32_t head, slot;
};

// How an operand is dealt out. A block's threads are dealt out to slots of a head, then to heads, then to tokens.
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

  ROPE_INLINE_MEMBER PipelinePlace place(uint32_t block, uint32_t block_z, uint32_t thread) const {
    uint32_t token_block = block, head_block = 0;
    if (blocks > 1) {
      head_block = token_block % uint32_t(blocks);
      token_block /= uint32_t(blocks);
    }
    PipelinePlace at;
    at.row = int32_t(thread * lane_share >> 16);
    at.lane = int32_t(thread) - at.row * lanes;
    at.row_token = int32_t(uint32_t(at.row) * column_share >> 16);
    at.token = token_block * uint32_t(tokens) + uint32_t(at.row_token);
    at.head = int32_t(head_block) * heads + at.row - at.row_token * columns;
    at.slot = int32_t(block_z) * lanes + at.lane;
    return at;
  }
};

struct PipelinePlan {
  const char* unsupported;  // why there is no plan, or null
  PipelineCode code;
  bool release_early;  // the next kernel is let in before the wait
  OperandPlan operands[kMaxOperands];
  uint32_t first_block[kMaxOperands];  // of an operand, ascending; UINT32_MAX where there is none
  unsigned threads, grid_x, grid_z;    // z: slots that do not fit one block
};

// early: positions and cache indices may be read before the wait.
PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes, bool early);

}  // namespace rope::cuda
