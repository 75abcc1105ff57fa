// One thread's share of a pipeline: what it works on, and the steps it takes, in the order in which it takes them.
#pragma once

#include <type_traits>

#include "../../operations/token.h"
#include "../parts/chunk.h"
#include "../parts/codes.cuh"
#include "../parts/launch.h"
#include "../parts/rows.cuh"
#include "../parts/slot.h"
#include "../parts/turn.cuh"
#include "../parts/words.h"
#include "plan.h"

namespace rope::cuda {

// Of positions, of each pair.
struct PairStreams {
  uint8_t streams[kFewPairs];
};

template <bool kGeneral>
struct PipelineArgs {
  PipelineParams params;
  OperandPlan plans[kMaxOperands];
  uint32_t first_block[kMaxOperands];  // of an operand, ascending; UINT32_MAX where there is none
  bool dependent, release_early;
  std::conditional_t<kGeneral, XPos, PairStreams> own;  // what only this code reads
  alignas(16) uint64_t words[kGeneral ? kMaxRotaryDim / 2 : kFewPairs];
};

// Weights of kVec elements from `element` on; kWide: they lie on a multiple of 16 bytes.
template <class D, int kVec, bool kWide>
__device__ __forceinline__ void load_weights(const Norm& n, const void* weights, int32_t element, float* w) {
  if constexpr (!kWide) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) w[j] = norm_weight<D>(n, weights, element + j);
  } else {
    if (n.weight_is_f32) {
      struct alignas(4 * (kVec < 4 ? kVec : 4)) Floats {
        float x[kVec < 4 ? kVec : 4];
      } floats;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if (j % 4 == 0) floats = *reinterpret_cast<const Floats*>(static_cast<const float*>(weights) + element + j);
        w[j] = floats.x[j % 4];
      }
    } else {
      (reinterpret_cast<const Chunk<D, kVec>*>(static_cast<const typename D::Storage*>(weights) + element))->widen(w);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) w[j] += n.weight_bias;
  }
}

// What a thread has for each of its pairs.
template <int kVec>
struct ThreadPairs {
  uint64_t word[kVec], streams = 0;
  CosSin angle[kVec] = {};
};

// What a thread has for each of its heads in flight.
template <class C, int kUnroll, int kVec>
struct ThreadHeads {
  C a[kUnroll], b[kUnroll];
  float scale[kUnroll] = {}, weight[2 * kVec] = {};  // weight: of its elements

  __device__ __forceinline__ void widen(int u, float* x) const {
    a[u].widen(x);
    b[u].widen(x + kVec);
  }
};

// Where a thread works, in scalars alone: the compiler takes a struct with arrays apart too late to know whose memory
// its pointers are, and then loads and stores it in a way that costs registers. See PipelineCode for the parameters.
template <class D, Layout kLayout, int kVec, int kUnroll, bool kReduce, bool kQuantised, bool kGeneral>
struct PipelineThread {
  using C = Chunk<D, kVec>;
  using Args = PipelineArgs<kGeneral>;
  using Pairs = ThreadPairs<kVec>;
  using Heads = ThreadHeads<C, kUnroll, kVec>;

  const Args& args;
  const PipelineParams& p;
  const PipelineOperand& o;
  const OperandPlan& plan;
  const PipelinePlace at;
  const bool inside;     // there is a token and a slot here
  const bool across;     // the norm is over all heads of a token, which go round twice
  const bool quantised;  // this operand is
  const bool reports;    // of a token: this thread counts it, if it is left alone
  const int32_t step;    // to the next head in flight

  // Where the first head in flight is read and written, and the step from it to the next.
  int32_t head;
  Slot slot;
  int64_t first, second;
  const char* in;
  char* out;
  int64_t in_step, out_step;
  ScalePlace given;    // scales
  float first_factor;  // by the first of them, which the heads may share

  bool moves;  // the token is not left alone
  CacheIndex index = {};
  TokenState state = {};
  CachePlace place = {};

  __device__ __forceinline__ PipelineThread(const Args& args, int which)
      : args(args),
        p(args.params),
        o(p.operands[which]),
        plan(args.plans[which]),
        at(plan.place(blockIdx.x - args.first_block[which], blockIdx.z, threadIdx.x)),
        inside(at.row_token < plan.tokens && at.token < p.num_tokens && at.slot < plan.slots),
        across(kReduce && kGeneral && o.weight && p.norm.across_heads),
        quantised(kQuantised && o.quantize.type != OutType::kSame),
        reports(plan.reports && at.head == 0 && at.slot == 0),
        step(plan.columns),
        head(at.head),
        moves(inside) {}

  __device__ __forceinline__ bool live(int u) const { return inside && head + u * step < o.heads; }
  __device__ __forceinline__ PairMap<kLayout, kVec> map() const {
    return {slot.rotated ? at.slot : 0, p.rotary_dim / 2};
  }

  // ---- before the wait: what needs no memory but the arguments. Returns a digest of it.

  __device__ __forceinline__ uint64_t prepare(Pairs& pairs) {
    slot =
        slot_of<kLayout, kVec, true>(o.rotated ? p.rotary_dim : 0, p.rotary_offset, o.dim, plan.stored_slots, at.slot);
    first = int64_t(slot.first) * C::kElementBytes;
    second = int64_t(slot.second) * C::kElementBytes;
    in = o.in + at.token * o.in_token_stride + head * o.in_head_stride;
    out = o.out + head * o.out_head_stride + (o.cached ? 0 : at.token * o.out_token_stride);
    in_step = step * o.in_head_stride;
    out_step = step * o.out_head_stride;
    given = quantised ? scale_place(o.quantize, at.token, head) : ScalePlace{};
    uint64_t digest = 0;
    fold(digest, in, out, first, second, in_step, out_step, inside, given.scales, o.heads, o.cached, o.out_page_stride,
         o.out_token_stride, p.positions.kind, p.positions.ids, p.positions.offset, p.cache.indices,
         p.cache.index_is_int32, p.cache.page_shift, p.cache.num_pages, p.cache.page_table);
    if constexpr (!kGeneral) {
      load_words(as_memory(args.words), map(), pairs.word);
      if (p.positions.sections.streams) pairs.streams = load_streams(as_memory(args.own.streams), map());
      fold(digest, pairs.streams);
      fold(digest, pairs.word);
    }
    return digest;
  }

  __device__ __forceinline__ void prefetch_heads() const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      prefetch(in + u * in_step + first);
      prefetch(in + u * in_step + second);
    }
  }

  // ---- where the token stands: before the wait or behind it

  __device__ __forceinline__ void read_indices() {
    if (inside && o.cached) index = cache_index(p.cache, at.token);
    if (!kGeneral && inside) state.position = simple_position(p.positions, at.token);
  }

  __device__ __forceinline__ void take_place(Pairs& pairs) {
    if constexpr (kGeneral) {
      moves = moves && token_state(p, at.token, reports, &state);
    } else {
      moves = moves && !is_skipped(p.positions, state.position);
    }
    if (o.cached) {
      moves = moves && cache_place<kGeneral>(p.cache, index, reports, &place);
      out += place.page * o.out_page_stride + place.entry * o.out_token_stride;
    }
    if (moves && slot.rotated) form_angles(pairs);
  }

  __device__ __forceinline__ void form_angles(Pairs& pairs) const {
    if constexpr (kGeneral) {
#pragma unroll
      for (int j = 0; j < kVec; ++j)
        pairs.angle[j] = pair_angle(p, {args.words, &args.own}, o.xpos_sign, state, at.token, map().pair(j));
    } else {
      uint64_t phase[kVec];
      if (p.positions.sections.streams) {
        section_phases<SectionForm::kAny, Angle::kExact, kVec>(p.positions, pairs.streams, at.token, pairs.word, phase);
      } else {
#pragma unroll
        for (int j = 0; j < kVec; ++j) phase[j] = phase_at<Angle::kExact>(state.position, pairs.word[j]);
      }
#pragma unroll
      for (int j = 0; j < kVec; ++j) pairs.angle[j] = scaled_angle(phase[j], p.cos_scale, p.sin_scale);
    }
  }

  // ---- behind the wait: load -> [norm] -> rotate -> [scale] -> store, of the heads in flight

  // All loads are in flight before the first is waited for.
  __device__ __forceinline__ void load_heads(Heads& heads) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      if (given.scales) heads.scale[u] = given.scales[u * step * given.head_step];
      heads.a[u] = *reinterpret_cast<const C*>(in + u * in_step + first);
      heads.b[u] = *reinterpret_cast<const C*>(in + u * in_step + second);
    }
  }

  __device__ __forceinline__ void invert_scale(const Heads& heads) {
    first_factor = given.scales ? 1.0f / heads.scale[0] : o.quantize.factor;
  }

  __device__ __forceinline__ void load_weight(Heads& heads) const {
    if (!kReduce || !o.weight || !(kGeneral ? live(0) : inside)) return;
    const int32_t from = kGeneral ? first_weight(p.norm, o, head) : 0;
    load_weights<D, kVec, !kGeneral>(p.norm, o.weight, from + slot.first, heads.weight);
    load_weights<D, kVec, !kGeneral>(p.norm, o.weight, from + slot.second, heads.weight + kVec);
  }

  __device__ __forceinline__ void rotate_head(const Pairs& pairs, float* x) const {
    if (slot.rotated) turn_pairs<kLayout, kVec>(pairs.angle, x);
  }

  __device__ __forceinline__ void normalise(const Heads& heads, float total, float* x) const {
    const float r = norm_factor(total, p.norm.inverse_dim, p.norm.eps);
#pragma unroll
    for (int j = 0; j < 2 * kVec; ++j) x[j] = x[j] * r * heads.weight[j];
  }

  // What the codes of kHeads heads are multiplied with, by their largest magnitudes.
  template <class Rows, int kHeads>
  __device__ __forceinline__ void renew_scales(const Rows& rows, const float (&x)[kHeads][2 * kVec],
                                               float (&factor)[kHeads]) const {
    float largest[kHeads] = {};
#pragma unroll
    for (int u = 0; u < kHeads; ++u)
#pragma unroll
      for (int j = 0; inside && j < 2 * kVec; ++j) largest[u] = larger_magnitude(largest[u], x[u][j]);
    rows.largest(largest);
#pragma unroll
    for (int u = 0; u < kHeads; ++u)
      factor[u] = renew_scale(p, o, at.token, place, head + u * step, largest[u], at.slot == 0 && live(u) && moves);
  }

  __device__ __forceinline__ void store_head(Heads& heads, int u, const float* x, float dynamic_factor) const {
    char* const row = out + u * out_step;
    assume_global(row);
    if (!quantised) {
      if (slot.rotated || (kReduce && o.weight)) {  // else a copy, bit for bit
        heads.a[u].narrow(x);
        heads.b[u].narrow(x + kVec);
      }
      *reinterpret_cast<C*>(row + first) = heads.a[u];
      *reinterpret_cast<C*>(row + second) = heads.b[u];
    } else {
      const bool dynamic = kReduce && o.quantize.kind == ScaleKind::kDynamic;
      const float own = given.head_step ? 1.0f / heads.scale[u] : first_factor;
      store_codes<kVec>(o.quantize.type, row, slot, dynamic ? dynamic_factor : own, x);
    }
  }

  __device__ __forceinline__ void next_heads(int32_t turns) {
    head += turns * step * kUnroll;
    in += turns * kUnroll * in_step;
    out += turns * kUnroll * out_step;
    if (given.scales) given.scales += turns * kUnroll * step * given.head_step;
  }

  // ---- what all threads of a block do together (kReduce)

  // Where a head's threads meet.
  __device__ __forceinline__ auto rows() const {
    if constexpr (kGeneral) {
      using Rows = BlockRows<kVec>;
      __shared__ float shared[Rows::kFloats];
      return Rows{plan.lanes,
                  at.lane,
                  o.dim,
                  plan.rows_in_warps,
                  at.row_token < plan.tokens,
                  slot,
                  shared + at.row * Rows::floats(plan.lanes)};
    } else {
      return WarpRows<kVec>{plan.lanes};
    }
  }

  // Sums of squares of a token's heads, for a norm across them.
  __device__ __forceinline__ static float* head_sums() {
    __shared__ float sums[kMaxNormHeads];
    return sums;
  }
};

}  // namespace rope::cuda
