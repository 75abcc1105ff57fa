// The pipeline kernel: a token's q, k and v through every stage in one pass (operations/pipeline.h), of which a plain
// rotation is the shortest. Why it is made this way, with measurements: ../../../KERNELS.md.
//
// The threads of a block first form the angles of its tokens, each once, in shared memory; then a thread takes its slot
// of a few heads, two chunks that hold whole pairs (math/pair.h), through the stages. What needs a whole head, the norm
// and computed scales (kReduce), is in parts/rows.cuh; a head's threads then lie in one warp.
#pragma once

#include "../parts/chunk.h"
#include "../parts/codes.cuh"
#include "../parts/rows.cuh"
#include "../parts/turn.cuh"
#include "../parts/weights.cuh"
#include "thread.cuh"

namespace rope::cuda {

// What a thread has loaded of its heads in flight.
template <class C, int kUnroll>
struct Chunks {
  C a[kUnroll], b[kUnroll];
  float scale[kUnroll];
};

template <bool kQuantised>
__device__ __forceinline__ ScalePlace given_scales(const Group& g, int32_t token) {
  return kQuantised && g.operand->quantize.type != OutType::kSame ? scale_place(g.operand->quantize, token, g.head)
                                                                  : ScalePlace{};
}

// All loads are in flight before the first is waited for.
template <bool kQuantised, class C, int kUnroll>
__device__ __forceinline__ void load_group(const Group& g, int32_t token, Chunks<C, kUnroll>& x) {
  const ScalePlace given = given_scales<kQuantised>(g, token);
  const char* const second = advance(g.in, g.apart, C::kElementBytes);
  assume_global(g.in);
  assume_global(second);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (u >= g.live) continue;
    x.a[u] = *reinterpret_cast<const C*>(advance(g.in, u, g.in_step));
    x.b[u] = *reinterpret_cast<const C*>(advance(second, u, g.in_step));
    if (given.scales) x.scale[u] = given.scales[u * given.head_step];
  }
}

// What the codes of a head are multiplied with, whose scale is given.
__device__ __forceinline__ float given_factor(const Quantize& q, float scale) {
  return q.kind == ScaleKind::kHost ? q.factor : 1.0f / scale;
}

// A group's heads, x: those of norm and computed scales, in float32. `row`: of its scales.
template <class D, int kVec, int kUnroll, bool kQuantised>
__device__ __forceinline__ void reduce_group(const PipelineParams& p, const Group& g, Layout layout, const CosSin* angle,
                                             bool writes, int64_t row, float (&x)[kUnroll][2 * kVec],
                                             float (&factor)[kUnroll]) {
  const OperandArgs& o = *g.operand;
  const WarpRows<kVec> rows{int32_t(blockDim.x)};
  const auto turn_all = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (g.rotated) turn_pairs<kVec>(layout, angle, x[u]);
  };
  if (p.norm.after) turn_all();
  if (p.norm.on) {
    float total[kUnroll];
    rows.sums_of_squares(x, true, total);
    if (o.weight && g.live > 0) {
      float weight[2 * kVec];
      load_weights<D, kVec, true>(p.norm, o.weight, g.first, weight);
      load_weights<D, kVec, true>(p.norm, o.weight, g.first + g.apart, weight + kVec);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const float r = norm_factor(total[u], p.norm.inverse_dim, p.norm.eps);
#pragma unroll
        for (int j = 0; j < 2 * kVec; ++j) x[u][j] = x[u][j] * r * weight[j];
      }
    }
  }
  if (!p.norm.after) turn_all();
  if (!kQuantised || !p.dynamic) return;
  float largest[kUnroll] = {};
#pragma unroll
  for (int u = 0; u < kUnroll; ++u)
#pragma unroll
    for (int j = 0; j < 2 * kVec; ++j) largest[u] = larger_magnitude(largest[u], x[u][j]);
  rows.largest(largest);
  if (o.quantize.kind != ScaleKind::kDynamic) return;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u)
    factor[u] = renew_scale(o.quantize, row * o.heads + g.head + u, largest[u],
                            threadIdx.x == 0 && u < g.live && writes);
}

// Through the stages and to where the group is stored.
template <class D, int kVec, int kUnroll, bool kReduce, bool kQuantised, int kMaxPairs>
__device__ __forceinline__ void finish_group(const PipelineArgs<kMaxPairs>& args, const Group& g, int32_t token,
                                             bool moves, const Entry& entry, const CosSin* angle,
                                             Chunks<Chunk<D, kVec>, kUnroll>& heads) {
  using C = Chunk<D, kVec>;
  const OperandArgs& o = *g.operand;
  const bool writes = moves && (entry.found || !o.cached), quantised = kQuantised && o.quantize.type != OutType::kSame;
  char* const out =
      advance(advance(advance(g.out, entry.page, o.out_page_stride), entry.entry, o.out_entry_stride), g.first,
              quantised ? 1 : C::kElementBytes);
  const int32_t apart = g.apart * (quantised ? 1 : C::kElementBytes);
  float x[kUnroll][2 * kVec] = {}, factor[kUnroll];
  if constexpr (kReduce) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (u >= g.live) continue;
      heads.a[u].widen(x[u]);
      heads.b[u].widen(x[u] + kVec);
    }
    reduce_group<D, kVec, kUnroll, kQuantised>(args.params, g, args.layout(), angle, writes,
                                               o.cached ? entry.row : int64_t(token), x, factor);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (u >= g.live || !writes) continue;
    char* const to = advance(out, u, g.out_step);
    assume_global(to);
    const bool changes = g.rotated || (kReduce && o.weight);  // else a copy, bit for bit
    if (!kReduce && (changes || quantised)) {
      heads.a[u].widen(x[u]);
      heads.b[u].widen(x[u] + kVec);
      if (g.rotated) turn_pairs<kVec>(args.layout(), angle, x[u]);
    }
    if (quantised) {
      if (!kReduce || o.quantize.kind != ScaleKind::kDynamic) factor[u] = given_factor(o.quantize, heads.scale[u]);
      store_codes<kVec>(o.quantize.type, to, 0, g.apart, factor[u], x[u]);
    } else {
      if (changes) {
        heads.a[u].narrow(x[u]);
        heads.b[u].narrow(x[u] + kVec);
      }
      *reinterpret_cast<C*>(to) = heads.a[u];
      *reinterpret_cast<C*>(to + apart) = heads.b[u];
    }
  }
}

template <class D, int kVec, int kUnroll, bool kReduce, bool kQuantised, int kMaxPairs>
__global__ void __launch_bounds__(kMaxBlock) pipeline_kernel(const __grid_constant__ PipelineArgs<kMaxPairs> args) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  __shared__ CosSin angles[kMaxAngles[kMaxPairs > kFewPairs]];
  const int32_t token = int32_t(blockIdx.x * blockDim.z + threadIdx.z);
  const int32_t first_of_block = int32_t(blockIdx.y * blockDim.y) * args.turns;
  int32_t index = first_of_block + int32_t(threadIdx.y);
  const bool inside = token < args.num_tokens, rotates = first_of_block < args.rotated_groups;
  const bool reports = index == 0 && threadIdx.x == 0;  // of its token
  CosSin* const own = angles + threadIdx.z * args.pairs;
  Group g = group_of<D, kVec, kUnroll>(args, token, inside, index);

  TokenIndices at = {};
  bool moves = false;
  if (args.is(kDependent)) {
    if (args.is(kReleaseEarly)) release_next();
    if (args.is(kPrefetch))
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (u >= g.live) continue;
        prefetch(advance(g.in, u, g.in_step));
        prefetch(advance(g.in, u, g.in_step) + g.apart * kElementBytes);
      }
    uint64_t digest = 0;
    fold(digest, g.in, g.out, g.first, g.apart, g.in_step, g.out_step, g.live, g.rotated, args.positions.data,
         args.positions.bytes, args.indices.data, args.indices.bytes, args.pairs, args.entries,
         g.operand->out_page_stride, g.operand->out_entry_stride);
    if (args.is(kEarly) && inside) {
      at = read_indices(args, token);
      moves = form_simple_angles(args, token, rotates, at.position, own);
      fold(digest, at.cache.index, moves);
    }
    wait_for_previous(digest);
    release_next();
  }
  const bool late = inside && !args.is(kEarly);
  if (late) at = read_indices(args, token);
  Chunks<Chunk<D, kVec>, kUnroll> heads;
  load_group<kQuantised>(g, token, heads);
  if (late)
    moves = args.is(kSimple) ? form_simple_angles(args, token, rotates, at.position, own)
                             : form_any_angles(args, token, rotates, reports, own);
  if (rotates) synchronize(false);
  if (!kReduce && !moves) return;

  CosSin angle[kVec] = {};
  const int32_t slot = int32_t(threadIdx.x);
  if (rotates && moves && slot * kVec < args.pairs) load_angles<kVec>(own, args.layout(), slot, args.pairs, angle);
  Entry entry = {};
  if (args.is(kCached) && moves) entry = find_entry(args, at.cache, reports);
  for (int32_t turn = 1;; ++turn) {
    finish_group<D, kVec, kUnroll, kReduce, kQuantised>(args, g, token, moves, entry, angle, heads);
    if (turn == args.turns) return;
    index += int32_t(blockDim.y);
    g = group_of<D, kVec, kUnroll>(args, token, inside, index);
    load_group<kQuantised>(g, token, heads);
  }
}

}  // namespace rope::cuda
