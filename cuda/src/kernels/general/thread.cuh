// One thread's share of a pipeline in the general kernel: what it works on, and the steps it takes, in the order in
// which it takes them.
#pragma once

#include "../../operations/general.h"
#include "../parts/chunk.h"
#include "../parts/codes.cuh"
#include "../parts/groups.cuh"
#include "../parts/launch.h"
#include "../parts/rows.cuh"
#include "../parts/slot.h"
#include "../parts/turn.cuh"
#include "../parts/weights.cuh"
#include "../parts/words.h"
#include "plan.h"

namespace rope::cuda {

struct GeneralArgs {
  PipelineCall params;
  GeneralOperand plans[kMaxOperands];
  uint32_t first_block[kMaxOperands];  // of an operand, ascending; UINT32_MAX where there is none
  XPos xpos;
  uint8_t streams[kMaxRotaryDim / 2];
  alignas(16) uint64_t words[kMaxRotaryDim / 2];
};

template <class D, int kVec, bool kReduce, bool kGrouped>
struct GeneralThread {
  using C = Chunk<D, kVec>;

  const GeneralArgs& args;
  const PipelineCall& p;
  const int32_t which;  // operand
  const PipelineOperand& o;
  const OperandExtras& extras;
  const GeneralOperand& plan;
  const GeneralPlace at;
  const bool inside;     // there is a token and a slot here
  const bool across;     // the norm is over all heads of a token, which go round twice
  const bool quantised;  // this operand is, or it is stored in another dtype
  const bool grouped;    // in groups or blocks
  const Slot slot;
  const SequencePlace sequence;

  int32_t head;
  bool moves;  // the token is not left alone
  bool found;  // and has a place in the cache, where the operand goes there
  PlacedToken state = {};
  CachePlace place = {};

  __device__ __forceinline__ GeneralThread(const GeneralArgs& args, int which)
      : args(args),
        p(args.params),
        which(which),
        o(p.operands[which]),
        extras(p.extras[which]),
        plan(args.plans[which]),
        at(plan.place(blockIdx.x - args.first_block[which], blockIdx.z, threadIdx.x)),
        inside(at.row_token < plan.tokens && at.token < p.num_tokens && at.slot < plan.slots),
        across(kReduce && o.weight && p.norm.across_heads),
        quantised(o.quantize.type != OutType::kSame),
        grouped(kGrouped && o.quantize.kind == ScaleKind::kGroup),
        slot(own_slot(p.layout)),
        sequence(place_in_sequence(at.token, p.sequence_length)),
        head(at.head),
        moves(inside),
        found(inside) {}

  // Where the slot's elements are of pairs in that layout; another than the call's is served one by one.
  __device__ __forceinline__ Slot own_slot(Layout layout) const {
    return in_block(
        slot_of<kVec, true>(layout, o.rotated ? p.rotary_dim : 0, p.rotary_offset, o.dim, plan.stored_slots, at.slot));
  }

  // A slot of pairs that lie in blocks: `of` without them.
  __device__ __forceinline__ Slot in_block(Slot of) const {
    if (p.blocks == 1 || !of.rotated) return of;
    const int32_t half = p.rotary_dim / 2 / p.blocks, block = (of.first - p.rotary_offset) / half;
    return {true, of.first + block * half, of.first + (block + 1) * half};
  }

  __device__ __forceinline__ bool live() const { return inside && head < o.heads; }

  // Whether anything of the token is stored.
  __device__ __forceinline__ bool acts() const {
    if (kReduce && p.writes_sums) return moves;
    return o.cached && !extras.kept ? moves && found : moves || (inside && extras.copies);
  }

  // Where the token stands, and the angles of the slot's pairs.
  __device__ __forceinline__ void take_place(PairTurn* angle) {
    const bool reports = plan.reports && at.head == 0 && at.slot == 0 && !p.writes_sums;
    moves = moves && token_state(p, at.token, reports, &state);
    if (o.cached || p.slot_skips) {
      const CacheIndex index = moves ? cache_index(p.cache, at.token) : CacheIndex{-1, 0};
      if (p.slot_skips) moves = moves && !is_negative(index);
      if (o.cached) found = moves && cache_place<true>(p.cache, index, reports, &place);
    }
    if (!acts() || !moves || !slot.rotated) return;
    const PairMap<Layout::kNeox, kVec> neox{at.slot, p.rotary_dim / 2};
    const PairMap<Layout::kGptj, kVec> gptj{at.slot, p.rotary_dim / 2};
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const int32_t pair = p.layout == Layout::kGptj ? gptj.pair(j) : neox.pair(j);
      angle[j] = pair_turn(p, {as_memory(args.words), &args.xpos, as_memory(args.streams)}, o.xpos_sign,
                           rows_of(p, which), state, pair);
    }
  }

  __device__ __forceinline__ void load_head(C& a, C& b) const {
    if (!live()) return;
    const char* const row = o.in + in_offset(o, extras, sequence, head);
    const int64_t step = C::kElementBytes + extras.in_gap;
    a = *reinterpret_cast<const C*>(row + slot.first * step);
    b = *reinterpret_cast<const C*>(row + slot.second * step);
  }

  // f(D()), or of its twin, whichever the operand has.
  template <class F>
  __device__ __forceinline__ void for_own_dtype(F f) const {
    if (!std::is_same_v<D, typename D::Twin> && extras.twin) {
      f(typename D::Twin());
    } else {
      f(D());
    }
  }

  __device__ __forceinline__ void widen(const C& a, const C& b, float* x) const {
    for_own_dtype([&](auto d) {
      a.template widen<decltype(d)>(x);
      b.template widen<decltype(d)>(x + kVec);
    });
  }

  __device__ __forceinline__ void normalise(float total, float* x) const {
    if (!live()) return;
    const int32_t from = first_weight(p.norm, o, head);
    float weight[2 * kVec];
    for_own_dtype([&](auto d) {
      load_weights<decltype(d), kVec, false>(p.norm, o.weight, from + slot.first, weight);
      load_weights<decltype(d), kVec, false>(p.norm, o.weight, from + slot.second, weight + kVec);
    });
    const float r = norm_factor(total, p.norm.inverse_dim, p.norm.eps);
#pragma unroll
    for (int j = 0; j < 2 * kVec; ++j) x[j] = x[j] * r * weight[j];
  }

  __device__ __forceinline__ void rotate_head(const PairTurn* angle, float* x) const {
    if (slot.rotated) turn_pairs<kVec>(p.layout, angle, x);
  }

  // What the head's codes are multiplied with, by its largest magnitude.
  template <class Rows>
  __device__ __forceinline__ float renew_factor(const Rows& rows, const float* x) const {
    float largest[1] = {};
#pragma unroll
    for (int j = 0; inside && j < 2 * kVec; ++j) largest[0] = larger_magnitude(largest[0], x[j]);
    rows.largest(largest);
    return renew_scale(o.quantize, scale_row(p, o, at.token, place) * o.heads + head, largest[0],
                       at.slot == 0 && live() && moves && found);
  }

  __device__ __forceinline__ float given_factor() const {
    const ScalePlace given = scale_place(o.quantize, at.token, head);
    return given.scales ? 1.0f / *given.scales : o.quantize.factor;
  }

  __device__ __forceinline__ Slot out_slot() const {
    return kVec == 1 && p.rare && moves ? own_slot(p.out_layout) : slot;
  }

  __device__ __forceinline__ char* out_row() const {
    char* const row =
        o.out + (o.cached ? head * o.out_head_stride + place.page * o.out_page_stride + place.entry * o.out_token_stride
                          : out_offset(o, extras, sequence, head));
    assume_global(row);
    return row;
  }

  // All threads of the block.
  __device__ __forceinline__ void store_groups(const float* x, bool stores) const {
    using Rows = GroupRows<kVec>;
    __shared__ float shared[Rows::kFloats];
    const Groups& groups = p.groups_of(o);
    Rows{plan.lanes,
         at.lane,
         plan.rows_in_warps,
         slot,
         shared + at.row * Rows::floats(plan.lanes),
         o.quantize.type,
         groups,
         o.dim / groups.size,
         stores && moves && found,
         out_row(),
         group_scales(groups, o, at.token, head, place)}
        .store(x);
  }

  __device__ __forceinline__ void store_chunks(char* row, int64_t gap, const C& a, const C& b) const {
    assume_global(row);
    const Slot to = out_slot();
    const int64_t step = C::kElementBytes + gap;
    *reinterpret_cast<C*>(row + to.first * step) = a;
    *reinterpret_cast<C*>(row + to.second * step) = b;
  }

  __device__ __forceinline__ void store_other(char* row, float factor, const float* x) const {
    const Slot to = out_slot();
    if (is_dtype(o.quantize.type)) {
      store_dtype<kVec>(o.quantize.type, row, to.first, to.second, extras.out_gap, x);
    } else {
      const int32_t step = kVec == 1 ? int32_t(1 + extras.out_gap) : 1;  // a code is a byte, maybe with a gap behind it
      store_codes<kVec>(o.quantize.type, row, to.first * step, to.second * step, factor, x);
    }
  }

  // A token that is left alone is stored as it came. Groups are stored before.
  __device__ __forceinline__ void store_head(C& a, C& b, const float* x, float factor) const {
    const bool changes = slot.rotated || (kReduce && o.weight);  // else a copy, bit for bit
    if (moves && changes) {
      for_own_dtype([&](auto d) {
        a.template narrow<decltype(d)>(x);
        b.template narrow<decltype(d)>(x + kVec);
      });
    }
    if (!grouped && (!o.cached || found)) {
      if (quantised) {
        store_other(out_row(), factor, x);
      } else {
        store_chunks(out_row(), extras.out_gap, a, b);
      }
    }
    if (extras.kept && (changes || extras.kept_whole))
      store_chunks(extras.kept + kept_offset(extras, sequence, head), extras.kept_gap, a, b);
  }

  // Where a head's threads meet.
  __device__ __forceinline__ BlockRows<kVec> rows() const {
    using Rows = BlockRows<kVec>;
    __shared__ float shared[Rows::kFloats];
    return {plan.lanes,
            at.lane,
            o.dim,
            plan.rows_in_warps,
            at.row_token < plan.tokens,
            slot,
            shared + at.row * Rows::floats(plan.lanes)};
  }

  // A norm across heads of several ranks, whose sums the call reads.
  __device__ __forceinline__ bool reads_sums() const { return kReduce && p.sums[which].of_tokens && !p.writes_sums; }

  // Sums of squares of a token's heads, for a norm across them.
  __device__ __forceinline__ static float* head_sums() {
    __shared__ float sums[kMaxNormHeads];
    return sums;
  }
};

}  // namespace rope::cuda
