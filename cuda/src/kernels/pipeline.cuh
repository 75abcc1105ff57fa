// The pipeline kernel: one token's q, k and v through every stage in one pass (../pipeline.h).
//
// A block works on one operand, so that all that tells operands apart is uniform: blockIdx.x counts blocks of the first
// operand, then those of the next; z counts slots that do not fit one block. A block's threads are dealt out to slots
// of a head, two chunks each, then to heads, then to tokens. What needs a whole head, the norm and dynamic scales
// (kReduce), is in rows.cuh; every thread of a block then takes the same number of turns.
#pragma once

#include <type_traits>

#include "../stages.h"
#include "chunk.h"
#include "launch.h"
#include "pipeline_plan.h"
#include "quantised.cuh"
#include "rows.cuh"
#include "slot.h"
#include "words.h"

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

namespace detail {

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

}  // namespace detail

// kQuantised: some output is. kGeneral: any kind of position, angle, cache index, norm weight and head, and xPos;
// else what is_general() leaves (pipeline_plan.cpp), which is what most calls want and a fraction of the code. kEarly:
// positions and cache indices may be read, and angles formed, before the wait.
template <class D, Layout kLayout, int kVec, int kUnroll, bool kReduce, bool kQuantised, bool kGeneral, bool kEarly>
__global__ void __launch_bounds__(kPipelineBlock, kGeneral ? kGeneralBlocks : 0)
    pipeline_kernel(const __grid_constant__ PipelineArgs<kGeneral> args) {
  using C = Chunk<D, kVec>;
  const PipelineParams& p = args.params;
  int which = 0;
#pragma unroll
  for (int i = 1; i < kMaxOperands; ++i) which += blockIdx.x >= args.first_block[i];
  const PipelineOperand& o = p.operands[which];
  const OperandPlan& plan = args.plans[which];
  uint32_t token_block = blockIdx.x - args.first_block[which], head_block = 0;
  if (plan.blocks > 1) {
    head_block = token_block % uint32_t(plan.blocks);
    token_block /= uint32_t(plan.blocks);
  }
  const int32_t row = plan.row_of(threadIdx.x), lane = threadIdx.x - row * plan.lanes;
  const int32_t row_token = plan.token_of(row), step = plan.columns;
  const int32_t slot_index = blockIdx.z * plan.lanes + lane;
  const uint32_t token = token_block * uint32_t(plan.tokens) + uint32_t(row_token);
  int32_t head = int32_t(head_block) * plan.heads + row - row_token * plan.columns;
  const bool inside = row_token < plan.tokens && token < p.num_tokens && slot_index < plan.slots;
  if (!kReduce && !inside) return;
  const auto live = [&](int u) { return inside && head + u * step < o.heads; };
  const bool across = kReduce && kGeneral && o.weight && p.norm.across_heads;

  // Everything that needs no memory but the arguments comes before the wait.
  const Slot slot =
      slot_of<kLayout, kVec, true>(o.rotated ? p.rotary_dim : 0, p.rotary_offset, o.dim, plan.stored_slots, slot_index);
  const PairMap<kLayout, kVec> map{slot.rotated ? slot_index : 0, p.rotary_dim / 2};
  const int64_t first = int64_t(slot.first) * C::kElementBytes, second = int64_t(slot.second) * C::kElementBytes;
  const char* in = o.in + token * o.in_token_stride + head * o.in_head_stride;
  char* out = o.out + head * o.out_head_stride + (o.cached ? 0 : token * o.out_token_stride);
  const int64_t in_step = step * o.in_head_stride, out_step = step * o.out_head_stride;
  const bool quantised = kQuantised && o.quantize.type != OutType::kSame;
  ScalePlace given = quantised ? scale_place(o.quantize, token, head) : ScalePlace{};
  uint64_t digest =
      digest_of(in, out, first, second, in_step, out_step, inside, given.scales, o.heads, o.cached, o.out_page_stride,
                o.out_token_stride, p.positions.kind, p.positions.ids, p.positions.offset, p.cache.indices,
                p.cache.index_is_int32, p.cache.page_shift, p.cache.num_pages, p.cache.page_table);
  uint64_t word[kVec], streams = 0;
  if constexpr (!kGeneral) {
    load_words(as_memory(args.words), map, word);
    if (p.positions.sections.streams) streams = load_streams(as_memory(args.own.streams), map);
    digest ^= streams;
#pragma unroll
    for (int j = 0; j < kVec; ++j) digest ^= word[j];
  }
  bool moves = inside;
  const bool reports = plan.reports && head == 0 && slot_index == 0;
  TokenState state = {};
  CacheIndex index = {};
  CachePlace place = {};
  CosSin angle[kVec] = {};
  const auto read_indices = [&] {
    if (inside && o.cached) index = cache_index(p.cache, token);
    if (!kGeneral && inside) state.position = simple_position(p.positions, token);
  };
  const auto take_place = [&] {
    if constexpr (kGeneral) {
      moves = moves && token_state(p, token, reports, &state);
    } else {
      moves = moves && !is_skipped(p.positions, state.position);
    }
    if (o.cached) {
      moves = moves && cache_place<kGeneral>(p.cache, index, reports, &place);
      out += place.page * o.out_page_stride + place.entry * o.out_token_stride;
    }
    if (!moves || !slot.rotated) return;
    if constexpr (kGeneral) {
#pragma unroll
      for (int j = 0; j < kVec; ++j)
        angle[j] = pair_angle(p, {args.words, &args.own}, o.xpos_sign, state, token, map.pair(j));
    } else {
      uint64_t phase[kVec];
      if (p.positions.sections.streams) {
        section_phases<SectionForm::kAny, Angle::kExact, kVec>(p.positions, streams, token, word, phase);
      } else {
#pragma unroll
        for (int j = 0; j < kVec; ++j) phase[j] = phase_at<Angle::kExact>(state.position, word[j]);
      }
#pragma unroll
      for (int j = 0; j < kVec; ++j) angle[j] = scaled_angle(phase[j], p.cos_scale, p.sin_scale);
    }
  };
  if (args.release_early) release_next();
  if (args.dependent) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      prefetch(in + u * in_step + first);
      prefetch(in + u * in_step + second);
    }
  }
  if constexpr (kEarly) {
    read_indices();
    take_place();
    digest ^= digest_of(out, moves);
#pragma unroll
    for (int j = 0; j < kVec; ++j) digest ^= bits_of(angle[j].cos, angle[j].sin);
  }
  wait_for_previous(digest);
  release_next();

  // All loads are in flight before the first is waited for.
  C a[kUnroll], b[kUnroll];
  float scale[kUnroll] = {};
  const auto load_heads = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      if (given.scales) scale[u] = given.scales[u * step * given.head_step];
      a[u] = *reinterpret_cast<const C*>(in + u * in_step + first);
      b[u] = *reinterpret_cast<const C*>(in + u * in_step + second);
    }
  };
  load_heads();
  if constexpr (!kEarly) read_indices();
  float weight[2 * kVec] = {};
  const auto load_weight = [&] {
    if (!kReduce || !o.weight || !(kGeneral ? live(0) : inside)) return;
    const int32_t from = kGeneral ? first_weight(p.norm, o, head) : 0;
    detail::load_weights<D, kVec, !kGeneral>(p.norm, o.weight, from + slot.first, weight);
    detail::load_weights<D, kVec, !kGeneral>(p.norm, o.weight, from + slot.second, weight + kVec);
  };
  if (!across) load_weight();
  if constexpr (!kEarly) take_place();
  if (!kReduce && !moves) return;

  const auto rotate_head = [&](float* x) {
    if (!slot.rotated) return;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const Pair y = rotate({x[map.element0(j)], x[map.element1(j)]}, angle[j]);
      x[map.element0(j)] = y.first;
      x[map.element1(j)] = y.second;
    }
  };
  const float first_factor = given.scales ? 1.0f / scale[0] : o.quantize.factor;
  const auto store_head = [&](int u, const float* x, float dynamic_factor) {
    char* const row = out + u * out_step;
    if (!quantised) {
      if (slot.rotated || (kReduce && o.weight)) {  // else a copy, bit for bit
        a[u].narrow(x);
        b[u].narrow(x + kVec);
      }
      *reinterpret_cast<C*>(row + first) = a[u];
      *reinterpret_cast<C*>(row + second) = b[u];
    } else {
      const bool dynamic = kReduce && o.quantize.kind == ScaleKind::kDynamic;
      const float factor = dynamic ? dynamic_factor : given.head_step ? 1.0f / scale[u] : first_factor;
      detail::store_quantised<kVec>(o.quantize.type, row, slot, factor, x);
    }
  };

  const auto make_rows = [&] {
    if constexpr (kReduce && kGeneral) {
      using Rows = BlockRows<kVec>;
      __shared__ float shared[Rows::kFloats];
      return Rows{plan.lanes,
                  lane,
                  o.dim,
                  plan.rows_in_warps,
                  row_token < plan.tokens,
                  slot,
                  shared + row * Rows::floats(plan.lanes)};
    } else {
      return WarpRows<kVec>{plan.lanes};
    }
  };
  const auto next_heads = [&](int32_t turns) {
    head += turns * step * kUnroll;
    in += turns * kUnroll * in_step;
    out += turns * kUnroll * out_step;
    if (given.scales) given.scales += turns * kUnroll * step * given.head_step;
  };

  // A norm across heads goes through them twice: first to add up, then with the mean to normalise.
  bool summed = false;
  float mean_across = 0.0f;
  const auto head_sums = [] {
    __shared__ float sums[kMaxNormHeads];
    return sums;
  };

  // A thread's first kHeads heads, together: what they wait for overlaps.
  const auto reduce_heads = [&](auto count) {
    constexpr int kHeads = decltype(count)::value;
    const auto rows = make_rows();
    float x[kHeads][2 * kVec] = {}, dynamic_factor[kHeads] = {};
#pragma unroll
    for (int u = 0; u < kHeads; ++u) {
      if (!live(u)) continue;
      a[u].widen(x[u]);
      b[u].widen(x[u] + kVec);
      if (p.norm.after) rotate_head(x[u]);
    }
    if (o.weight) {
      float total[kHeads];
      if (across && summed) {
        load_weight();
        total[0] = mean_across;
      } else {
        rows.sums_of_squares(x, inside, total);
      }
      if (across && !summed) {
        if (live(0) && slot_index == 0) head_sums()[head] = total[0];
        return;
      }
#pragma unroll
      for (int u = 0; u < kHeads; ++u) {
        const float r = norm_factor(total[u], p.norm.inverse_dim, p.norm.eps);
#pragma unroll
        for (int j = 0; j < 2 * kVec; ++j) x[u][j] = x[u][j] * r * weight[j];
      }
    }
    if (!p.norm.after)
#pragma unroll
      for (int u = 0; u < kHeads; ++u) rotate_head(x[u]);
    if (kQuantised && o.quantize.kind == ScaleKind::kDynamic) {
      float largest[kHeads] = {};
#pragma unroll
      for (int u = 0; u < kHeads; ++u)
#pragma unroll
        for (int j = 0; inside && j < 2 * kVec; ++j) largest[u] = larger_magnitude(largest[u], x[u][j]);
      rows.largest(largest);
#pragma unroll
      for (int u = 0; u < kHeads; ++u) {
        const float scale = dynamic_scale(o.quantize.type, largest[u]);
        dynamic_factor[u] = 1.0f / scale;
        if (slot_index == 0 && live(u) && moves)
          o.quantize.scales[scale_row(p, o, token, place) * o.heads + head + u * step] = scale;
      }
    }
#pragma unroll
    for (int u = 0; u < kHeads; ++u)
      if (live(u) && moves) store_head(u, x[u], dynamic_factor[u]);
  };

  for (int32_t turn = 0;; ++turn) {
    if constexpr (kReduce) {
      if (kUnroll == 1 || plan.in_flight == 1) {
        reduce_heads(std::integral_constant<int, 1>());
      } else {
        reduce_heads(std::integral_constant<int, kUnroll>());
      }
    } else {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!live(u)) continue;
        float x[2 * kVec];
        a[u].widen(x);
        b[u].widen(x + kVec);
        rotate_head(x);
        store_head(u, x, 1.0f);
      }
    }
    if (turn + 1 < plan.turns) {
      next_heads(1);
    } else if (across && !summed) {
      mean_across = sum_together(head_sums(), o.heads) / float(o.heads);
      summed = true;
      next_heads(-turn);
      turn = -1;
    } else {
      return;
    }
    load_heads();
  }
}

}  // namespace rope::cuda
