// Where a thread of the pipeline kernel works, and what its token's threads share. kForm: see plan.h.
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
  const StageArgs* stage;
  int32_t head, live;    // the first, of the token's list; heads that there are
  int32_t first, apart;  // elements: where the slot's first chunk lies, and how far behind it the second
  bool rotated;          // the slot is
  const char* in;
  char* out;  // but for the place in a cache
};

template <class D, int kVec, int kUnroll, bool kQuantised, Form kForm, int kMaxPairs>
__device__ __forceinline__ Group group_of(const PipelineArgs<kMaxPairs>& args, int32_t token, bool inside,
                                          int32_t index) {
  constexpr int32_t kElementBytes = sizeof(typename D::Storage);
  int32_t which = 0;
#pragma unroll
  for (int i = 0; i < kMaxOperands - 1; ++i) which += index >= args.later_groups[i];
  const OperandArgs& o = args.operands[which];
  const int32_t lane = int32_t(threadIdx.x);
  const bool live = inside && index < args.groups;
  Group g;
  g.operand = &o;
  g.stage = &args.stages[which];
  g.head = index * kUnroll;
  g.live = !live ? 0 : kUnroll == 1 ? 1 : o.end_head - g.head;
  g.first = lane * kVec;
  g.apart = args.apart;
  g.rotated = index < args.rotated_groups;
  if constexpr (kForm == Form::kAny) {
    const StageArgs& x = *g.stage;
    const Slot slot = slot_of<kVec, true>(args.layout(), g.rotated ? args.params.rotary_dim : 0,
                                          args.params.rotary_offset, x.dim, x.stored_slots, lane);
    g.first = slot.first;
    g.apart = slot.second - slot.first;
    g.rotated = slot.rotated;
    if (lane >= x.slots) g.live = 0;
  }
  g.in = advance(advance(advance(o.in, token, o.in_token_stride), g.head, o.in_head_stride), g.first, kElementBytes);
  g.out = advance(advance(advance(o.out, token, o.out_token_stride), g.head, o.out_head_stride), g.first,
                  kQuantised && g.stage->quantize.type != OutType::kSame ? 1 : kElementBytes);
  return g;
}

// An index as it is loaded. Its sign is extended where it is used: ptxas would wait for that before the next loads.
struct Index {
  uint32_t low, high;
};

__device__ __forceinline__ Index load_index(const char* indices, bool wide, int32_t i) {
  const int32_t high = wide ? 4 : 0;
  const char* const at = advance(indices, i, 4 + high);
  return {load_here(at), load_here(at + high)};
}

__device__ __forceinline__ int64_t value_of(Index at, bool wide) {
  const uint32_t high = wide ? at.high : uint32_t(int32_t(at.low) >> 31);
  return int64_t(uint64_t(high) << 32 | at.low);
}

// The first pair whose angle a thread forms.
struct FirstPair {
  int32_t pair;
  uint32_t stream;
  uint64_t word;  // or a table's cosine, and above it the sine
};

template <Form kForm, int kMaxPairs>
__device__ __forceinline__ FirstPair first_pair(const PipelineArgs<kMaxPairs>& args) {
  FirstPair at = {int32_t(threadIdx.y * blockDim.x + threadIdx.x), 0, 0};
  if (kForm == Form::kAny || (kForm == Form::kTables && args.is(kTable))) return at;
  const int32_t pair = at.pair & (kMaxPairs - 1);  // some pair, for a thread that has none
  at.word = as_memory(args.words)[pair];
  if (args.is(kStreams)) at.stream = as_memory(args.stream_of)[pair];
  return at;
}

// What says where a token stands.
struct TokenIndices {
  Index position, slot;
  int32_t request;
};

template <Form kForm, int kMaxPairs>
__device__ __forceinline__ TokenIndices load_indices(const PipelineArgs<kMaxPairs>& args, int32_t token) {
  TokenIndices at = {};
  if (kForm != Form::kAny && !args.is(kCounted)) at.position = load_index(args.positions, args.is(kPositions64), token);
  if (args.is(kCached)) at.slot = load_index(args.indices, args.is(kIndices64), token);
  if (kForm != Form::kUsual && args.is(kPaged) && args.params.cache.request_ids)
    at.request = args.params.cache.request_ids[token];
  return at;
}

template <int kMaxPairs>
__device__ __forceinline__ int64_t first_position(const PipelineArgs<kMaxPairs>& args, int32_t token, Index position) {
  return args.is(kCounted) ? int64_t(uint64_t(args.offset) + uint64_t(token))
                           : value_of(position, args.is(kPositions64));
}

// A pair of a row of cos and sin, as it lies there.
__device__ __forceinline__ uint64_t load_row_pair(const CosSinRows& rows, int64_t position, int32_t pair) {
  const int64_t i = position * rows.stride + pair;
  return bits_at(rows.cos, rows.dtype, i) | uint64_t(bits_at(rows.sin, rows.dtype, i)) << 32;
}

// Of a token's row of cos and sin.
template <int kMaxPairs>
__device__ __forceinline__ void load_first_pair(const PipelineArgs<kMaxPairs>& args, int32_t token, Index position,
                                                FirstPair* first) {
  const int64_t row = first_position(args, token, position);
  if (uint64_t(row) < uint64_t(args.params.cos_sin.rows) && first->pair < args.pairs)
    first->word = load_row_pair(args.params.cos_sin, row, first->pair);
}

// A token's angles, by its threads together, into shared memory. False: the token is to be left alone. `reports`: this
// thread counts that.
template <Form kForm, int kMaxPairs>
__device__ __forceinline__ bool form_angles(const PipelineArgs<kMaxPairs>& args, int32_t token, Index position,
                                            FirstPair at, bool rotates, bool reports, CosSin* angles) {
  const int32_t threads = int32_t(blockDim.x * blockDim.y);
  if constexpr (kForm == Form::kAny) {
    TokenState state = {};
    if (!token_state(args.params, token, reports, &state)) return false;
    for (int32_t i = at.pair; rotates && i < args.pairs; i += threads)
      angles[i] = pair_angle(args.params, {as_memory(args.words), nullptr}, 0, state, token, i);
    return true;
  }
  const int64_t first = first_position(args, token, position);
  if (first == -1 && !args.is(kCounted)) return false;
  if (kForm == Form::kTables && args.is(kTable)) {
    const CosSinRows& rows = args.params.cos_sin;
    if (uint64_t(first) >= uint64_t(rows.rows)) {
      if (reports) count_one(rows.num_skipped);
      return false;
    }
    while (rotates && at.pair < args.pairs) {
      angles[at.pair] = {float_of(rows.dtype, uint32_t(at.word)) * args.cos_scale,
                         float_of(rows.dtype, uint32_t(at.word >> 32)) * args.sin_scale};
      at.pair += threads;
      if (at.pair < args.pairs) at.word = load_row_pair(rows, first, at.pair);
    }
    return true;
  }
  const bool wide = args.is(kPositions64);
  while (rotates && at.pair < args.pairs) {
    int64_t own = first;
    if (args.is(kStreams))
      own = value_of(load_index(args.positions + at.stream * args.stream_stride, wide, token), wide);
    angles[at.pair] = scaled_angle(phase_at<Angle::kExact>(own, at.word), args.cos_scale, args.sin_scale);
    at.pair += threads;
    if (at.pair >= args.pairs) break;
    at.word = as_memory(args.words)[at.pair];
    if (args.is(kStreams)) at.stream = as_memory(args.stream_of)[at.pair];
  }
  return true;
}

// Those of a slot: kVec / 2 from each of two on, or one.
template <int kVec>
__device__ __forceinline__ void load_angles(const CosSin* first, int32_t apart, CosSin* own) {
  constexpr int kHalf = kVec > 1 ? kVec / 2 : 1;
  struct alignas(kHalf > 1 ? 16 : 8) Half {
    CosSin x[kHalf];
  };
#pragma unroll
  for (int i = 0; i < kVec; i += kHalf) {
    const Half half = *reinterpret_cast<const Half*>(first + (i ? apart : 0));
#pragma unroll
    for (int j = 0; j < kHalf; ++j) own[i + j] = half.x[j];
  }
}

// Where a token goes in the caches.
struct Entry {
  bool found;
  int32_t page, entry;
  int64_t row;  // of all entries
};

template <int kMaxPairs>
__device__ __forceinline__ CacheIndex index_of(const PipelineArgs<kMaxPairs>& args, const TokenIndices& at) {
  return {value_of(at.slot, args.is(kIndices64)), at.request};
}

// `named`: the token has a place, which was looked up where it is kPaged.
template <Form kForm, int kMaxPairs>
__device__ __forceinline__ Entry find_entry(const PipelineArgs<kMaxPairs>& args, const TokenIndices& at, bool named,
                                            CachePlace place, bool reports) {
  const int64_t index = value_of(at.slot, args.is(kIndices64));
  if (kForm != Form::kUsual && args.is(kPaged)) {
    const CacheMap& cache = args.params.cache;
    const bool found = named && is_in_cache(cache, reports, &place);
    return {found, int32_t(place.page), int32_t(place.entry), place.page * cache.page_size + place.entry};
  }
  const bool found = uint64_t(index) < args.entries;
  if (args.is(kCounts)) {
    if (!found && reports && index >= 0) count_one(args.params.cache.num_skipped);
  }
  return {found, int32_t(at.slot.low >> args.page_shift), int32_t(at.slot.low & args.entry_mask), index};
}

}  // namespace rope::cuda
