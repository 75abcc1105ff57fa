// The pipeline kernel's argument. What every call reads stands first, small and folded on the host: a constant that is
// not at hand costs a launch of few tokens time (KERNELS.md).
#pragma once

#include "../../operations/pipeline.h"
#include "plan.h"

namespace rope::cuda {

// Strides in bytes.
struct alignas(16) OperandArgs {
  const char* in;
  char* out;
  int32_t in_token_stride, in_head_stride;
  int32_t out_token_stride, out_head_stride;
  int32_t out_page_stride, out_entry_stride;  // of an operand in a cache, which no token strides through
  int32_t first_group, heads;
  bool rotated, cached;
  const void* weight;
  Quantize quantize;
  int32_t dim, slots, stored_slots;
};

// [tokens], of 4 or 8 bytes.
struct IndexArgs {
  const char* data;
  int32_t bytes;
};

// What a call is like, for PipelineArgs::flags.
enum PipelineFlag : uint32_t {
  kUniform = 1,         // all slots of all heads: chunks at `start` + slot * vec and `span` behind that
  kSimple = 2,          // exact angles, of positions that are read or counted
  kCounted = 4,         // positions are offset + token
  kCached = 8,          // some operand is
  kDirect = 16,         // the index is a slot: its page is index >> page_shift, its entry index & entry_mask
  kGptj = 32,           // pairs are neighbours
  kDependent = 64,      // launched while the kernel before may run
  kEarly = 128,         // of such a launch: positions and indices may be read before the wait,
  kReleaseEarly = 256,  // the next kernel is let in before it,
  kPrefetch = 512,      // heads are asked for before it
};

template <int kMaxPairs>
struct PipelineArgs {
  // Of every call.
  uint32_t flags;
  int32_t num_tokens;
  IndexArgs positions;
  int32_t pairs;
  int32_t groups, rotated_groups, turns;
  int32_t later_groups[kMaxOperands - 1];  // where the operands behind the first begin in the list
  int32_t start, span;                     // elements
  float cos_scale, sin_scale;
  int32_t streams;  // of positions; 0: a token has one
  IndexArgs indices;
  uint32_t entries, entry_mask;
  int32_t page_shift;
  OperandArgs operands[kMaxOperands];

  // Of some.
  int64_t offset, stream_stride;  // stream_stride: bytes
  PipelineParams params;
  uint8_t stream_of[kMaxPairs];  // which of a token's positions each pair turns by
  alignas(16) uint64_t words[kMaxPairs];

  ROPE_INLINE_MEMBER bool is(PipelineFlag flag) const { return flags & flag; }
  ROPE_INLINE_MEMBER Layout layout() const { return is(kGptj) ? Layout::kGptj : Layout::kNeox; }
};

}  // namespace rope::cuda
