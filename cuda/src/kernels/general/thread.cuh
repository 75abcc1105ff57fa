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
  const GeneralOperand& plan;
  const GeneralPlace at;
  const bool inside;     // there is a token and a slot here
  const bool across;     // the norm is over all heads of a token, which go round twice
  const bool quantised;  // this operand is
  const bool grouped;    // in groups or blocks
  const Slot slot;

  int32_t head;
  bool moves;  // the token is not left alone
  PlacedToken state = {};
  CachePlace place = {};

  __device__ __forceinline__ GeneralThread(const GeneralArgs& args, int which)
      : args(args),
        p(args.params),
        which(which),
        o(p.operands[which]),
        plan(args.plans[which]),
        at(plan.place(blockIdx.x - args.first_block[which], blockIdx.z, threadIdx.x)),
        inside(at.row_token < plan.tokens && at.token < p.num_tokens && at.slot < plan.slots),
        across(kReduce && o.weight && p.norm.across_heads),
        quantised(o.quantize.type != OutType::kSame),
        grouped(kGrouped && o.quantize.kind == ScaleKind::kGroup),
        slot(in_block(slot_of<kVec, true>(p.layout, o.rotated ? p.rotary_dim : 0, p.rotary_offset, o.dim,
                                          plan.stored_slots, at.slot))),
        head(at.head),
        moves(inside) {}

  // A slot of pairs that lie in blocks: `of` without them.
  __device__ __forceinline__ Slot in_block(Slot of) const {
    if (p.blocks == 1 || !of.rotated) return of;
    const int32_t half = p.rotary_dim / 2 / p.blocks, block = (of.first - p.rotary_offset) / half;
    return {true, of.first + block * half, of.first + (block + 1) * half};
  }

  __device__ __forceinline__ bool live() const { return inside && head < o.heads; }

  // Where the token stands, and the angles of the slot's pairs.
  __device__ __forceinline__ void take_place(PairTurn* angle) {
    const bool reports = plan.reports && at.head == 0 && at.slot == 0;
    moves = moves && token_state(p, at.token, reports, &state);
    if (o.cached) moves = moves && cache_place<true>(p.cache, cache_index(p.cache, at.token), reports, &place);
    if (!moves || !slot.rotated) return;
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
    const char* const row = o.in + at.token * o.in_token_stride + head * o.in_head_stride;
    a = *reinterpret_cast<const C*>(row + int64_t(slot.first) * C::kElementBytes);
    b = *reinterpret_cast<const C*>(row + int64_t(slot.second) * C::kElementBytes);
  }

  __device__ __forceinline__ void normalise(float total, float* x) const {
    if (!live()) return;
    const int32_t from = first_weight(p.norm, o, head);
    float weight[2 * kVec];
    load_weights<D, kVec, false>(p.norm, o.weight, from + slot.first, weight);
    load_weights<D, kVec, false>(p.norm, o.weight, from + slot.second, weight + kVec);
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
                       at.slot == 0 && live() && moves);
  }

  __device__ __forceinline__ float given_factor() const {
    const ScalePlace given = scale_place(o.quantize, at.token, head);
    return given.scales ? 1.0f / *given.scales : o.quantize.factor;
  }

  __device__ __forceinline__ char* out_row() const {
    char* const row = o.out + head * o.out_head_stride + (o.cached ? 0 : at.token * o.out_token_stride) +
                      place.page * o.out_page_stride + place.entry * o.out_token_stride;
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
         stores,
         out_row(),
         group_scales(groups, o, at.token, head, place)}
        .store(x);
  }

  __device__ __forceinline__ void store_head(C& a, C& b, const float* x, float factor) const {
    char* const row = out_row();
    if (quantised) {
      store_codes<kVec>(o.quantize.type, row, slot.first, slot.second, factor, x);
      return;
    }
    if (slot.rotated || (kReduce && o.weight)) {  // else a copy, bit for bit
      a.narrow(x);
      b.narrow(x + kVec);
    }
    *reinterpret_cast<C*>(row + int64_t(slot.first) * C::kElementBytes) = a;
    *reinterpret_cast<C*>(row + int64_t(slot.second) * C::kElementBytes) = b;
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

  // Sums of squares of a token's heads, for a norm across them.
  __device__ __forceinline__ static float* head_sums() {
    __shared__ float sums[kMaxNormHeads];
    return sums;
  }
};

}  // namespace rope::cuda
