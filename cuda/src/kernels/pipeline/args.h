// The pipeline kernel's argument. What every call reads stands first, small and folded on the host: a constant that is
// not at hand costs a launch of few tokens time (KERNELS.md).
#pragma once

#include "../../operations/pipeline.h"
#include "plan.h"

namespace rope::cuda {

// Heads count from the first of the token's list on, and so do `in` and `out`, which need not be in the operand.
// Strides in bytes.
struct alignas(16) OperandArgs {
  const char* in;
  char* out;
  int32_t in_token_stride, in_head_stride;
  int32_t out_token_stride, out_head_stride;
  int32_t out_page_stride, out_entry_stride;  // of an operand in a cache, which no token strides through; else 0
  int32_t end_head, cached;
};

// What stages ask of one.
struct StageArgs {
  const void* weight;
  Quantize quantize;
  int32_t first_head;
  int32_t dim, slots, stored_slots;
};

// What a call is like, for PipelineArgs::flags.
enum PipelineFlag : uint32_t {
  kPositions64 = 1 << 0,    // positions are of 8 bytes, else 4
  kIndices64 = 1 << 1,      // cache indices are
  kCounted = 1 << 2,        // positions are offset + token, else read
  kStreams = 1 << 3,        // a token has several
  kTable = 1 << 4,          // angles are read from rows of cos and sin
  kGptj = 1 << 5,           // pairs are neighbours
  kCached = 1 << 6,         // some operand is
  kPaged = 1 << 7,          // a slot is looked up in a page table, or its page is found by a division
  kCounts = 1 << 8,         // tokens that have no place in the cache are counted
  kEarly = 1 << 9,          // of a dependent launch: positions and indices may be read before the wait,
  kPrefetch = 1 << 10,      // heads are asked for before it,
  kReleaseEarly = 1 << 11,  // and the next kernel is let in at once
  kRowsFirst = 1 << 12,     // of kTable: rows are asked for ahead of heads
  kCopies = 1 << 13         // of Form::kAny, neither reduced nor quantised: tokens that are left alone are copied
};

// Words of 32 bits and more: parts of one take more instructions, and ptxas loads them in a slower way.
template <int kMaxPairs>
struct PipelineArgs {
  // Of every call, before its loads: with the operands behind them, as few lines of the constant cache as may be.
  uint32_t flags;
  int32_t num_tokens;
  const char *positions, *indices;         // [tokens]
  int32_t later_groups[kMaxOperands - 1];  // where the operands behind the first begin in the list
  int32_t groups, block_groups;            // of all operands; of a block
  int32_t apart;  // elements, from a slot's first chunk to its second: `pairs`, here because loads of heads need it
  OperandArgs operands[kMaxOperands];

  // Of every call, behind them.
  int32_t pairs, rotated_groups, turns;
  float cos_scale, sin_scale;
  int32_t angle_step, angle_apart;  // of a slot's angles: from slot to slot, and from its first half to its second
  uint32_t entries, entry_mask;     // a slot's page is index >> page_shift, its entry index & entry_mask
  int32_t page_shift;

  // Of some.
  TokenParams params;  // a page table and rows of cos and sin first, which few tokens wait for
  StageArgs stages[kMaxOperands];
  int64_t offset, stream_stride;  // stream_stride: bytes
  uint8_t stream_of[kMaxPairs];   // which of a token's positions each pair turns by
  alignas(16) uint64_t words[kMaxPairs];

  ROPE_INLINE_MEMBER bool is(PipelineFlag flag) const { return flags & flag; }
  ROPE_INLINE_MEMBER Layout layout() const { return is(kGptj) ? Layout::kGptj : Layout::kNeox; }
};

}  // namespace rope::cuda
