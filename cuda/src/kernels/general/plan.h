// How a pipeline is laid out for the general kernel: pure arithmetic on its shape.
#pragma once

#include "../../operations/pipeline.h"
#include "../parts/plan.h"

namespace rope::cuda {

// What tells the kernels of one dtype apart.
struct GeneralCode {
  int access_bytes;  // of an input: 16 where everything is a multiple of it, or 8 to reduce, else one element
  bool reduce;       // a norm, or scales that are computed: of heads that a block can hold
  bool grouped;      // some of them of groups

  constexpr bool operator==(const GeneralCode& x) const {
    return access_bytes == x.access_bytes && reduce == x.reduce && grouped == x.grouped;
  }
};

// All that are compiled.
template <int kElementBytes>
inline constexpr GeneralCode kGeneralCodes[] = {{kElementBytes, false, false},
                                                {16, false, false},
                                                {kElementBytes, true, false},
                                                {8, true, false},
                                                {16, true, false},
                                                {kElementBytes, true, true},
                                                {16, true, true}};

// Where a thread of an operand's block works.
struct GeneralPlace {
  int32_t row, lane;  // of a head's threads in the block; a thread in the row
  int32_t row_token;  // of the block's tokens
  uint32_t token;
  int32_t head, slot;
};

// How an operand is dealt out. A block's threads are dealt out to slots of a head, then to heads, then to tokens.
struct GeneralOperand {
  int32_t slots, stored_slots;  // of a head; of what is not rotated
  int32_t lanes;                // threads along a head, in one block
  int32_t columns;              // threads along heads
  int32_t tokens;               // of a block
  int32_t turns;                // of a thread, over its heads
  int32_t blocks;               // along heads
  bool rows_in_warps;           // the threads of a head lie in one warp
  bool reports;                 // counts tokens that have no place

  ROPE_INLINE_MEMBER GeneralPlace place(uint32_t block, uint32_t block_z, uint32_t thread) const {
    const uint32_t token_block = block / uint32_t(blocks);
    GeneralPlace at;
    at.row = int32_t(thread) / lanes;
    at.lane = int32_t(thread) % lanes;
    at.row_token = at.row / columns;
    at.token = token_block * uint32_t(tokens) + uint32_t(at.row_token);
    at.head = int32_t(block % uint32_t(blocks)) * columns * turns + at.row % columns;
    at.slot = int32_t(block_z) * lanes + at.lane;
    return at;
  }
};

struct GeneralPlan {
  const char* unsupported;  // why there is no plan, or null
  GeneralCode code;
  GeneralOperand operands[kMaxOperands];
  uint32_t first_block[kMaxOperands];  // of an operand, ascending; UINT32_MAX where there is none
  unsigned grid_x, grid_z;             // z: slots that do not fit one block
};

GeneralPlan plan_general(const PipelineCall& p, int element_bytes);

}  // namespace rope::cuda
