// How a pipeline is laid out on the device: pure arithmetic on its shape.
//
// The heads of a token, of all operands, are one list, dealt out in groups of `unroll` heads of one operand. A block
// takes some groups of some tokens: threadIdx.x runs over the slots of a head, y over groups, z over tokens;
// blockIdx.x over tokens, y over groups.
#pragma once

#include "../../operations/pipeline.h"
#include "../parts/plan.h"

namespace rope::cuda {

// What a kernel has code for, of what is one token's. Code that a call does not take stands in its way all the same.
enum class Form {
  kUsual,  // positions that are read or counted, exact angles, slots of a cache whose page is found by a shift, and all
           // slots of all heads with their chunks equally far apart
  kTables,  // angles from rows of cos and sin, and places from a page table, too
  kAny,     // any position, angle and place of what is rotated in a head, and copies of tokens that are left alone
};

// What tells the kernels of one dtype apart.
struct PipelineCode {
  int access_bytes;  // of an input: 16 or 8 where everything is a multiple of it, else one element
  int unroll;        // heads in flight in a thread
  bool reduce;       // a norm, or scales that are computed
  bool quantised;    // some output is
  bool many;         // pairs, more than kFewPairs
  Form form;

  constexpr bool operator==(const PipelineCode& x) const {
    return access_bytes == x.access_bytes && unroll == x.unroll && reduce == x.reduce && quantised == x.quantised &&
           many == x.many && form == x.form;
  }
};

// All that are compiled. What none of them does is the general kernel's (kernels/general).
template <int kElementBytes>
inline constexpr PipelineCode kPipelineCodes[] = {
    {8, 1, false, false, false, Form::kUsual},
    {8, 2, false, false, false, Form::kUsual},
    {16, 2, false, false, false, Form::kUsual},
    {16, 4, false, false, false, Form::kUsual},
    {16, 4, false, false, true, Form::kUsual},
    {8, 1, false, true, false, Form::kUsual},
    {16, 2, false, true, false, Form::kUsual},
    {8, 1, true, false, false, Form::kUsual},
    {8, 2, true, false, false, Form::kUsual},
    {16, 2, true, false, false, Form::kUsual},
    {8, 1, true, true, false, Form::kUsual},
    {8, 2, true, true, false, Form::kUsual},
    {16, 2, true, true, false, Form::kUsual},

    {8, 1, false, false, false, Form::kTables},
    {8, 2, false, false, false, Form::kTables},
    {16, 2, false, false, false, Form::kTables},
    {16, 4, false, false, false, Form::kTables},
    {8, 1, false, true, false, Form::kTables},
    {16, 2, false, true, false, Form::kTables},
    {8, 1, true, true, false, Form::kTables},
    {16, 2, true, true, false, Form::kTables},

    {kElementBytes, 2, false, false, false, Form::kAny},
    {8, 1, false, false, false, Form::kAny},
    {8, 1, false, false, true, Form::kAny},
    {16, 4, false, false, false, Form::kAny},
    {16, 4, false, false, true, Form::kAny},
    {8, 1, false, true, false, Form::kAny},
    {16, 2, false, true, false, Form::kAny},
    {8, 1, true, true, false, Form::kAny},
    {16, 2, true, true, false, Form::kAny},
};

// Angles of a block's tokens, at most; of code for few pairs, and for many.
inline constexpr int32_t kMaxAngles[] = {2 * kFewPairs, kMaxRotaryDim / 2};

// An operand in the list. Heads of it that lie one behind the other, and are only stored, may be counted as more and
// narrower ones.
struct OperandPlan {
  int32_t first_group, heads, dim;
  int64_t in_head_stride, out_head_stride;
  int32_t slots, stored_slots;  // of a head; of what is not rotated
};

struct PipelinePlan {
  bool general;  // the general kernel's; the rest is not set
  PipelineCode code;
  OperandPlan operands[kMaxOperands];
  int32_t groups, rotated_groups;  // of the list; of its first operands, those that are rotated
  int32_t start;                   // but of Form::kAny: of the first slot's first chunk, elements
  bool linear;                     // the cache's entries are equally far apart, whatever their page
  bool direct;                     // a slot's page is found by a shift, or needs not be
  bool prefetch, release_early;    // of a dependent launch: heads are asked for before the wait, the next is let in
  bool rows_first;                 // rows of cos and sin are asked for ahead of heads
  int32_t turns;                   // of a thread, over its groups
  unsigned block_x, block_y, block_z, grid_x, grid_y;
};

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes);

}  // namespace rope::cuda
