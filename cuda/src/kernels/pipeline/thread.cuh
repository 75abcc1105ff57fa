// Where a thread of the pipeline kernel works, and what its token's threads share.
#pragma once

#include "../../operations/token.h"
#include "../parts/launch.h"
#include "../parts/slot.h"
#include "../parts/words.h"
#include "args.h"

namespace rope::cuda {

// A thread's heads in flight: where its slot of the first is read and written, and how far it is to the next.
struct Group {
  const OperandArgs* operand;
  int32_t head, live;    // the first; heads that there are
  int32_t first, apart;  // elements: where the slot's first chunk lies, and how far behind it the second
  bool rotated;          // the slot is
  const char* in;        // the first chunk
  char* out;             // the head, but for its place in a cache
  int32_t in_step, out_step;
};

template <class D, int kVec, int kUnroll, int kMaxPairs>
__device__ __forceinline__ Group group_of(const PipelineArgs<kMaxPairs>& args, int32_t token, bool inside,
                                          int32_t index) {
  int32_t which = 0;
#pragma unroll
  for (int i = 0; i < kMaxOperands - 1; ++i) which += index >= args.later_groups[i];
  const OperandArgs& o = args.operands[which];
  const int32_t lane = int32_t(threadIdx.x), group = index - o.first_group;
  Group g;
  g.operand = &o;
  g.head = group * kUnroll;
  g.live = !inside || index >= args.groups ? 0 : kUnroll == 1 ? 1 : o.heads - g.head;
  if (args.is(kUniform)) {
    g.first = args.start + lane * kVec;
    g.apart = args.span;
    g.rotated = o.rotated;
  } else {
    const Slot slot = slot_of<kVec, true>(args.layout(), o.rotated ? 2 * args.pairs : 0, args.params.rotary_offset,
                                          o.dim, o.stored_slots, lane);
    g.first = slot.first;
    g.apart = slot.second - slot.first;
    g.rotated = slot.rotated;
    if (lane >= o.slots) g.live = 0;
  }
  g.in = advance(advance(advance(o.in, token, o.in_token_stride), g.head, o.in_head_stride), g.first,
                 int32_t(sizeof(typename D::Storage)));
  g.out = advance(advance(o.out, token, o.out_token_stride), g.head, o.out_head_stride);
  g.in_step = o.in_head_stride;
  g.out_step = o.out_head_stride;
  return g;
}

// Two words, for which both widths are loaded in the same way: ptxas would extend a sign, and so wait, before it issues
// the loads that follow.
__device__ __forceinline__ int64_t index_at(const IndexArgs& x, int64_t stream_bytes, int32_t token) {
  const char* const at = advance(x.data + stream_bytes, token, x.bytes);
  assume_global(at);
  const int32_t low = *reinterpret_cast<const int32_t*>(at), high = *reinterpret_cast<const int32_t*>(at + x.bytes - 4);
  return x.bytes == 4 ? low : int64_t(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}

// What says where a token stands.
struct TokenIndices {
  int64_t position;
  CacheIndex cache;
};

template <int kMaxPairs>
__device__ __forceinline__ TokenIndices read_indices(const PipelineArgs<kMaxPairs>& args, int32_t token) {
  TokenIndices at = {};
  if (args.is(kSimple))
    at.position =
        args.is(kCounted) ? int64_t(uint64_t(args.offset) + uint64_t(token)) : index_at(args.positions, 0, token);
  if (args.is(kCached)) {
    if (args.is(kDirect)) {
      at.cache.index = index_at(args.indices, 0, token);
    } else {
      at.cache = cache_index(args.params.cache, token);
    }
  }
  return at;
}

// ---- a token's angles, in shared memory. False: the token is to be left alone.

// Of one position, or one of a token's streams, and exact phases.
template <int kMaxPairs>
__device__ __forceinline__ bool form_simple_angles(const PipelineArgs<kMaxPairs>& args, int32_t token, bool rotates,
                                                   int64_t position, CosSin* angles) {
  if (!args.is(kCounted) && position == -1) return false;
  if (!rotates) return true;
  int64_t at[kMaxStreams] = {position};
  if (args.streams) {
#pragma unroll
    for (int i = 1; i < kMaxStreams; ++i)
      if (i < args.streams) at[i] = index_at(args.positions, i * args.stream_stride, token);
  }
  const int32_t threads = int32_t(blockDim.x * blockDim.y);
  for (int32_t i = int32_t(threadIdx.y * blockDim.x + threadIdx.x); i < args.pairs; i += threads) {
    if (args.streams) {
      const uint32_t s = as_memory(args.stream_of)[i];
      position = s == 0 ? at[0] : s == 1 ? at[1] : s == 2 ? at[2] : at[3];
    }
    angles[i] =
        scaled_angle(phase_at<Angle::kExact>(position, as_memory(args.words)[i]), args.cos_scale, args.sin_scale);
  }
  return true;
}

template <int kMaxPairs>
__device__ __forceinline__ bool form_any_angles(const PipelineArgs<kMaxPairs>& args, int32_t token, bool rotates,
                                                bool reports, CosSin* angles) {
  const PipelineParams& p = args.params;
  TokenState state = {};
  if (!token_state(p, token, reports, &state)) return false;
  const int32_t threads = int32_t(blockDim.x * blockDim.y);
  for (int32_t i = int32_t(threadIdx.y * blockDim.x + threadIdx.x); rotates && i < args.pairs; i += threads)
    angles[i] = pair_angle(p, {as_memory(args.words), nullptr}, 0, state, token, i);
  return true;
}

// Those of a slot: kVec / 2 from each of two on, or one.
template <int kVec>
__device__ __forceinline__ void load_angles(const CosSin* angles, Layout layout, int32_t slot, int32_t pairs,
                                            CosSin* own) {
  if constexpr (kVec == 1) {
    own[0] = angles[slot];
  } else {
    constexpr int kHalf = kVec / 2;
    struct alignas(kHalf > 1 ? 16 : 8) Half {
      CosSin x[kHalf];
    };
    const CosSin* const first = angles + slot * (layout == Layout::kGptj ? kHalf : kVec);
    const Half a = *reinterpret_cast<const Half*>(first);
    const Half b = *reinterpret_cast<const Half*>(first + (layout == Layout::kGptj ? pairs / 2 : kHalf));
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      own[j] = a.x[j];
      own[kHalf + j] = b.x[j];
    }
  }
}

// ---- where a token goes in the caches

struct Entry {
  bool found;
  int32_t page, entry;
  int64_t row;  // of all entries
};

template <int kMaxPairs>
__device__ __forceinline__ Entry find_entry(const PipelineArgs<kMaxPairs>& args, const CacheIndex& at, bool reports) {
  if (args.is(kDirect)) {
    const bool found = uint64_t(at.index) < args.entries;
    if (!found && reports && at.index >= 0) count_one(args.params.cache.num_skipped);
    const uint32_t slot = found ? uint32_t(at.index) : 0;
    return {found, int32_t(slot >> args.page_shift), int32_t(slot & args.entry_mask), slot};
  }
  CachePlace place = {};
  const bool found = cache_place<true>(args.params.cache, at, reports, &place);
  return {found, int32_t(place.page), int32_t(place.entry), place.page * args.params.cache.page_size + place.entry};
}

}  // namespace rope::cuda
