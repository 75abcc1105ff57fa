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

// All loads are in flight before the first is waited for.
template <bool kQuantised, class C, int kUnroll>
__device__ __forceinline__ void load_group(const Group& g, int32_t token, Chunks<C, kUnroll>& x) {
  const OperandArgs& o = *g.operand;
  ScalePlace given = {};
  const Quantize& quantize = g.stage->quantize;
  if (kQuantised && quantize.type != OutType::kSame) given = scale_place(quantize, token, g.head - g.stage->first_head);
  const char* const second = advance(g.in, g.apart, C::kElementBytes);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (u >= g.live) continue;
    x.a[u] = *reinterpret_cast<const C*>(u ? advance(g.in, u, o.in_head_stride) : g.in);
    x.b[u] = *reinterpret_cast<const C*>(u ? advance(second, u, o.in_head_stride) : second);
    if (given.scales) {
      assume_global(given.scales);
      x.scale[u] = given.scales[u * given.head_step];
    }
  }
}

template <int kUnroll, int kElementBytes>
__device__ __forceinline__ void prefetch_group(const Group& g) {
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (u >= g.live) continue;
    const char* const head = advance(g.in, u, g.operand->in_head_stride);
    prefetch(head);
    prefetch(head + g.apart * kElementBytes);
  }
}

// Of what is computed before the wait (parts/launch.h).
template <int kMaxPairs>
__device__ __forceinline__ uint64_t digest_of(const PipelineArgs<kMaxPairs>& args, const Group& g) {
  uint64_t digest = 0;
  fold(digest, g.in, g.out, g.apart, g.live, g.rotated, args.positions, args.indices, args.entries,
       g.operand->out_page_stride, g.operand->out_entry_stride);
  return digest;
}

// What the codes of a head are multiplied with, whose scale is given.
__device__ __forceinline__ float given_factor(const Quantize& q, float scale) {
  return q.kind == ScaleKind::kHost ? q.factor : 1.0f / scale;
}

// A group's heads, x: those of norm and computed scales, in float32. `row`: of its scales.
template <class D, int kVec, int kUnroll, bool kQuantised>
__device__ __forceinline__ void reduce_group(const TokenParams& p, const Group& g, Layout layout, const CosSin* angle,
                                             bool writes, int64_t row, float (&x)[kUnroll][2 * kVec],
                                             float (&factor)[kUnroll]) {
  const StageArgs& stage = *g.stage;
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
    if (stage.weight && g.live > 0) {
      float weight[2 * kVec];
      load_weights<D, kVec, true>(p.norm, stage.weight, g.first, weight);
      load_weights<D, kVec, true>(p.norm, stage.weight, g.first + g.apart, weight + kVec);
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
  if (stage.quantize.kind != ScaleKind::kDynamic) return;
  const int32_t heads = g.operand->end_head - stage.first_head;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u)
    factor[u] = renew_scale(stage.quantize, row * heads + g.head - stage.first_head + u, largest[u],
                            threadIdx.x == 0 && u < g.live && writes);
}

// Through the stages and to where the group is stored.
template <class D, int kVec, int kUnroll, bool kReduce, bool kQuantised, int kMaxPairs>
__device__ __forceinline__ void finish_group(const PipelineArgs<kMaxPairs>& args, const Group& g, int32_t token,
                                             bool moves, const Entry& entry, const CosSin* angle,
                                             Chunks<Chunk<D, kVec>, kUnroll>& heads) {
  using C = Chunk<D, kVec>;
  const OperandArgs& o = *g.operand;
  const Quantize& quantize = g.stage->quantize;
  const bool writes = moves && (entry.found || !o.cached);
  const bool quantised = kQuantised && quantize.type != OutType::kSame;
  char* const out = advance(advance(g.out, entry.page, o.out_page_stride), entry.entry, o.out_entry_stride);
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
    char* const to = u ? advance(out, u, o.out_head_stride) : out;
    const bool changes = g.rotated || (kReduce && g.stage->weight);  // else a copy, bit for bit
    if (!kReduce && (changes || quantised)) {
      heads.a[u].widen(x[u]);
      heads.b[u].widen(x[u] + kVec);
      if (g.rotated) turn_pairs<kVec>(args.layout(), angle, x[u]);
    }
    if (quantised) {
      if (!kReduce || quantize.kind != ScaleKind::kDynamic) factor[u] = given_factor(quantize, heads.scale[u]);
      store_codes<kVec>(quantize.type, to, 0, g.apart, factor[u], x[u]);
    } else {
      if (changes) {
        heads.a[u].narrow(x[u]);
        heads.b[u].narrow(x[u] + kVec);
      }
      *reinterpret_cast<C*>(to) = heads.a[u];
      *reinterpret_cast<C*>(advance(to, g.apart, C::kElementBytes)) = heads.b[u];
    }
  }
}

// To where the group is stored, as it is.
template <class C, int kUnroll>
__device__ __forceinline__ void copy_group(const Group& g, const Chunks<C, kUnroll>& heads) {
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (u >= g.live) continue;
    char* const to = u ? advance(g.out, u, g.operand->out_head_stride) : g.out;
    assume_global(to);
    *reinterpret_cast<C*>(to) = heads.a[u];
    *reinterpret_cast<C*>(advance(to, g.apart, C::kElementBytes)) = heads.b[u];
  }
}

// Blocks that must fit a multiprocessor; 0: ptxas chooses, which gives short code few registers, but spills of long
// code so that more blocks fit.
constexpr int min_blocks(int unroll, bool reduce, bool quantised, Form form) {
  return unroll == 4 || reduce || quantised || form == Form::kTables ? kUnspilledBlocks : 0;
}

// See PipelineCode. kDependent: the launch is, and waits (parts/launch.h); else none of that code is in the way.
template <class D, int kVec, int kUnroll, bool kReduce, bool kQuantised, Form kForm, bool kDependent, int kMaxPairs>
__global__ void __launch_bounds__(kMaxBlock, min_blocks(kUnroll, kReduce, kQuantised, kForm))
    pipeline_kernel(const __grid_constant__ PipelineArgs<kMaxPairs> args) {
  constexpr auto kPlace = group_of<D, kVec, kUnroll, kQuantised, kForm, kMaxPairs>;
  __shared__ CosSin angles[kMaxAngles[kMaxPairs > kFewPairs]];
  FirstPair pair = first_pair<kForm>(args);
  const int32_t token = int32_t(blockIdx.x * blockDim.z + threadIdx.z);
  const int32_t first_of_block = int32_t(blockIdx.y) * args.block_groups;
  int32_t index = first_of_block + int32_t(threadIdx.y);
  const bool inside = uint32_t(token) < uint32_t(args.num_tokens);  // the last block's numbers may wrap
  const int32_t real_token = inside ? token : args.num_tokens - 1;
  const bool early = kDependent && kForm == Form::kUsual && args.is(kEarly);
  CosSin* const own = angles + threadIdx.z * args.pairs;
  Chunks<Chunk<D, kVec>, kUnroll> heads;
  TokenIndices at = {};
  if (!kDependent) at = load_indices<kForm>(args, real_token);
  Group g = kPlace(args, token, inside, index);
  if constexpr (kDependent) {
    if (args.is(kReleaseEarly)) release_next();
    if (args.is(kPrefetch)) prefetch_group<kUnroll, sizeof(typename D::Storage)>(g);
    if (!early) {
      release_next();
      wait_for_previous(digest_of(args, g));
    }
  }

  // Where positions may be read before the wait, heads come behind the angles, else they are under way meanwhile.
  if (kDependent) at = load_indices<kForm>(args, real_token);
  const bool table = kForm == Form::kTables && args.is(kTable);
  if (table && args.is(kRowsFirst)) load_first_pair(args, real_token, at.position, &pair);
  if (!early) load_group<kQuantised>(g, token, heads);
  if (table && !args.is(kRowsFirst)) load_first_pair(args, real_token, at.position, &pair);
  CachePlace place = {};
  const bool named =
      kForm == Form::kUsual || !args.is(kPaged) || look_up_place<false>(args.params.cache, index_of(args, at), &place);
  const bool rotates = first_of_block < args.rotated_groups;
  const bool reports = inside && index == 0 && threadIdx.x == 0;  // of its token
  const bool moves = form_angles<kForm>(args, real_token, at.position, pair, rotates && inside, reports, own) && inside;
  if (early) {
    uint64_t digest = digest_of(args, g);
    fold(digest, at.slot.low, at.slot.high, moves);
    release_next();
    wait_for_previous(digest);
    load_group<kQuantised>(g, token, heads);
  }
  if (rotates) synchronize(false);
  if (!kReduce && !moves) {
    if (kForm != Form::kAny || kQuantised || !inside || !args.is(kCopies)) return;
    for (int32_t turn = 1;; ++turn) {
      copy_group(g, heads);
      if (turn == args.turns) return;
      index += int32_t(blockDim.y);
      g = kPlace(args, token, inside, index);
      load_group<kQuantised>(g, token, heads);
    }
  }

  CosSin angle[kVec] = {};
  const int32_t slot = int32_t(threadIdx.x);
  if (kForm != Form::kAny || slot * kVec < args.pairs)
    load_angles<kVec>(own + slot * args.angle_step, args.angle_apart, angle);
  Entry entry = {true, 0, 0, 0};
  if (args.is(kCached)) entry = find_entry<kForm>(args, at, named, place, reports && moves);
  for (int32_t turn = 1;; ++turn) {
    finish_group<D, kVec, kUnroll, kReduce, kQuantised>(args, g, token, moves, entry, angle, heads);
    if (turn == args.turns) return;
    index += int32_t(blockDim.y);
    g = kPlace(args, token, inside, index);
    load_group<kQuantised>(g, token, heads);
  }
}

}  // namespace rope::cuda
