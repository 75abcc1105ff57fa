// The kernel that rotates keys where they lie in a cache (operations/pipeline.h).
//
// A thread owns one slot of a head, forms its cos and sin once and applies them to every head of its token that is its
// own. Of scales that are computed a head's
// slots, then also those that are not rotated, are all in one block. What is grouped is read an element at a time.
#pragma once

#include <type_traits>

#include "../../operations/general.h"
#include "../parts/chunk.h"
#include "../parts/codes.cuh"
#include "../parts/groups.cuh"
#include "../parts/launch.h"
#include "../parts/rows.cuh"
#include "../parts/slot.h"
#include "../parts/turn.cuh"
#include "../parts/words.h"
#include "plan.h"

namespace rope::cuda {

struct CacheRotationArgs {
  PipelineCall params;
  int32_t slots, stored_slots, turns;  // see CachePlan
  XPos xpos;
  uint8_t streams[kMaxRotaryDim / 2];
  alignas(16) uint64_t words[kMaxRotaryDim / 2];
};

// Where the threads of a head meet that is in groups or blocks; `row` is where it is stored.
template <int kVec>
__device__ __forceinline__ GroupRows<kVec> group_rows(const PipelineCall& p, const Slot& slot, int32_t lane,
                                                      int64_t token, int32_t head, const CachePlace& place, bool live,
                                                      char* row) {
  using Rows = GroupRows<kVec>;
  __shared__ float shared[Rows::kFloats];
  const PipelineOperand& keys = p.operands[0];
  const Groups& groups = p.groups[0];
  const int32_t lanes = blockDim.x, index = threadIdx.z * blockDim.y + threadIdx.y;
  float* const own = shared + index * Rows::floats(lanes);
  char* const scales = group_scales(groups, keys, token, head, place);
  return {lanes, lane, 32 % lanes == 0, slot, own, keys.quantize.type, groups, keys.dim / groups.size,
          live,  row,  scales};
}

// What the x of a head are stored with, whose threads meet: its scale, the n-th, is computed and written.
template <int kVec>
__device__ __forceinline__ float renewed_factor(const PipelineOperand& keys, const Slot& slot, int32_t lane,
                                                const float* x, int64_t n, bool live) {
  __shared__ float largest_of[kMaxBlock];
  const int32_t lanes = blockDim.x, row = threadIdx.z * blockDim.y + threadIdx.y;
  float largest[1] = {};
#pragma unroll
  for (int j = 0; j < 2 * kVec; ++j) largest[0] = larger_magnitude(largest[0], x[j]);
  BlockRows<kVec>{lanes, lane, keys.dim, 32 % lanes == 0, true, slot, largest_of + row * lanes}.largest(largest);
  return renew_scale(keys.quantize, n, largest[0], lane == 0 && live);
}

// Stored: a dtype, or Codes, whose type is an argument.
template <class Stored, Layout kLayout, int kVec, int kUnroll, bool kDynamic, bool kGrouped>
__global__ void __launch_bounds__(kMaxBlock, kUnspilledBlocks)
    cache_rotation_kernel(const __grid_constant__ CacheRotationArgs args) {
  using C = Chunk<Stored, kVec>;
  constexpr bool kQuantised = std::is_same_v<Stored, Codes>;
  const PipelineCall& p = args.params;
  const PipelineOperand& keys = p.operands[0];
  const GridPlace at = grid_place(blockIdx, threadIdx, blockDim, gridDim);
  const int64_t token = at.token;
  const int32_t slot_index = at.slot, step = at.step;
  int32_t head = at.head;
  const bool inside = token < p.num_tokens && slot_index < args.slots;
  if (!kDynamic && !inside) return;
  const Slot slot =
      slot_of<kVec, kDynamic>(kLayout, p.rotary_dim, p.rotary_offset, keys.dim, args.stored_slots, slot_index);
  const PairMap<kLayout, kVec> map{slot.rotated ? slot_index : 0, p.rotary_dim / 2};
  wait_for_previous();
  release_next();

  PlacedToken state = {};
  CachePlace place = {};
  const bool reports = head == 0 && slot_index == 0;
  const bool moves = inside && token_state(p, token, reports, &state) &&
                     cache_place<true>(p.cache, cache_index(p.cache, token), reports, &place);
  if (!kDynamic && !moves) return;
  char* const rows = keys.out + place.page * keys.out_page_stride + place.entry * keys.out_token_stride;
  const ScalePlace scales = kQuantised ? stored_scales(p, keys, token, place) : ScalePlace{};
  const auto live = [&](int u) { return moves && head + u * step < keys.heads; };
  const auto row_of = [&](int u) { return rows + (head + u * step) * keys.out_head_stride; };
  const auto groups_at = [&](int u) {
    return group_rows<kVec>(p, slot, slot_index, token, head + u * step, place, live(u), row_of(u));
  };

  C a[kUnroll], b[kUnroll];
  float scale[kUnroll] = {};
  const auto load_heads = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (kGrouped || !live(u)) continue;
      const auto* row = reinterpret_cast<const typename Stored::Storage*>(row_of(u));
      a[u] = *reinterpret_cast<const C*>(row + slot.first);
      b[u] = *reinterpret_cast<const C*>(row + slot.second);
      if (kQuantised)
        scale[u] = scales.scales ? scales.scales[(head + u * step) * scales.head_step] : keys.quantize.scale;
    }
  };
  load_heads();  // in flight while the angles are formed
  CosSin angle[kVec] = {};
  const PairData pairs = {as_memory(args.words), &args.xpos, as_memory(args.streams)};
  if (moves && slot.rotated) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) angle[j] = pair_angle(p, pairs, keys.xpos_sign, p.cos_sin, state, map.pair(j));
  }

  const auto turn_head = [&](int u) {
    float x[2 * kVec] = {}, factor = 1.0f;
    if constexpr (kGrouped) {
      groups_at(u).load(x);
    } else if (live(u)) {
      if constexpr (kQuantised) {
        widen_codes(keys.quantize.type, a[u], scale[u], x);
        widen_codes(keys.quantize.type, b[u], scale[u], x + kVec);
        factor = scales.scales ? 1.0f / scale[u] : keys.quantize.factor;
      } else {
        a[u].widen(x);
        b[u].widen(x + kVec);
      }
    }
    if (slot.rotated) turn_pairs<kLayout, kVec>(angle, x);
    if constexpr (kGrouped) {
      groups_at(u).store(x);
    } else if constexpr (kDynamic) {
      const int64_t n = scale_row(p, keys, token, place) * keys.heads + head + u * step;
      factor = renewed_factor<kVec>(keys, slot, slot_index, x, n, live(u));
    }
    if (kGrouped || !live(u)) return;
    if constexpr (kQuantised) {
      store_codes<kVec>(keys.quantize.type, row_of(u), slot.first, slot.second, factor, x);
    } else {
      auto* row = reinterpret_cast<typename Stored::Storage*>(row_of(u));
      a[u].narrow(x);
      b[u].narrow(x + kVec);
      *reinterpret_cast<C*>(row + slot.first) = a[u];
      *reinterpret_cast<C*>(row + slot.second) = b[u];
    }
  };

  for (int32_t turn = 0;; ++turn) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) turn_head(u);
    if (turn + 1 == args.turns) return;
    head += step * kUnroll;
    load_heads();
  }
}

}  // namespace rope::cuda
