// The pipeline kernel: one token's q, k and v through every stage in one pass (operations/pipeline.h).
//
// A block works on one operand, so that all that tells operands apart is uniform: blockIdx.x counts blocks of the first
// operand, then those of the next; z counts slots that do not fit one block. What needs a whole head, the norm and
// computed scales (kReduce), is in parts/rows.cuh; every thread of a block then takes the same number of turns.
#pragma once

#include "thread.cuh"

namespace rope::cuda {

// The operand that a block works on.
template <bool kGeneral>
__device__ __forceinline__ int operand_of(const PipelineArgs<kGeneral>& args) {
  int which = 0;
#pragma unroll
  for (int i = 1; i < kMaxOperands; ++i) which += blockIdx.x >= args.first_block[i];
  return which;
}

// A thread's first kHeads heads, together: what they wait for overlaps. With a norm across heads the first round
// (`summed` is false) only adds up; the second normalises by the `mean` of the heads' sums.
template <int kHeads, bool kQuantised, class Thread, class Pairs, class C, int kUnroll, int kVec>
__device__ __forceinline__ void reduce_heads(const Thread& t, const Pairs& pairs, ThreadHeads<C, kUnroll, kVec>& heads,
                                             bool summed, float mean) {
  const auto rows = t.rows();
  float x[kHeads][2 * kVec] = {}, dynamic_factor[kHeads] = {};
#pragma unroll
  for (int u = 0; u < kHeads; ++u) {
    if (!t.live(u)) continue;
    heads.widen(u, x[u]);
    if (t.p.norm.after) t.rotate_head(pairs, x[u]);
  }
  if (t.o.weight) {
    float total[kHeads];
    if (t.across && summed) {
      t.load_weight(heads);
      total[0] = mean;
    } else {
      rows.sums_of_squares(x, t.inside, total);
    }
    if (t.across && !summed) {
      if (t.live(0) && t.at.slot == 0) Thread::head_sums()[t.head] = total[0];
      return;
    }
#pragma unroll
    for (int u = 0; u < kHeads; ++u) t.normalise(heads, total[u], x[u]);
  }
  if (!t.p.norm.after)
#pragma unroll
    for (int u = 0; u < kHeads; ++u) t.rotate_head(pairs, x[u]);
  if (kQuantised && t.o.quantize.kind == ScaleKind::kDynamic) t.renew_scales(rows, x, dynamic_factor);
#pragma unroll
  for (int u = 0; u < kHeads; ++u)
    if (t.live(u) && t.moves) t.store_head(heads, u, x[u], dynamic_factor[u]);
}

// Blocks that must fit a multiprocessor; 0: ptxas chooses. For sm_90 it gives code that reduces nothing more registers
// than that needs (append of 1024 tokens, warm: 6.5 us with 80, 6.3 with 72); elsewhere such bounds spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
inline constexpr int kPlainBlocks = 7, kQuantisedBlocks = 5;
#else
inline constexpr int kPlainBlocks = 6, kQuantisedBlocks = kUnspilledBlocks;
#endif

template <int kAccessBytes, bool kReduce, bool kQuantised, bool kGeneral>
constexpr int min_blocks() {
  if (kGeneral) return kUnspilledBlocks;
  if (kAccessBytes < 16) return 0;
  if (kReduce) return kQuantised ? kUnspilledBlocks : 0;
  return kQuantised ? kQuantisedBlocks : kPlainBlocks;
}

// See PipelineCode.
template <class D, Layout kLayout, int kVec, int kUnroll, bool kReduce, bool kQuantised, bool kGeneral, bool kEarly>
__global__ void __launch_bounds__(kMaxBlock,
                                  min_blocks<kVec * sizeof(typename D::Storage), kReduce, kQuantised, kGeneral>())
    pipeline_kernel(const __grid_constant__ PipelineArgs<kGeneral> args) {
  using Thread = PipelineThread<D, kLayout, kVec, kUnroll, kReduce, kQuantised, kGeneral>;
  Thread t(args, operand_of(args));
  if (!kReduce && !t.inside) return;
  typename Thread::Pairs pairs;
  uint64_t digest = t.prepare(pairs);
  if (args.release_early) release_next();
  if (args.dependent) t.prefetch_heads();
  if constexpr (kEarly) {
    t.read_indices();
    t.take_place(pairs);
    fold(digest, t.out, t.moves);
    fold(digest, pairs.angle);
  }
  wait_for_previous(digest);
  release_next();

  typename Thread::Heads heads;
  t.load_heads(heads);
  if constexpr (!kEarly) t.read_indices();
  if (!t.across) t.load_weight(heads);
  if constexpr (!kEarly) t.take_place(pairs);
  if (!kReduce && !t.moves) return;
  t.invert_scale(heads);

  bool summed = false;
  float mean = 0.0f;
  for (int32_t turn = 0;; ++turn) {
    if constexpr (!kReduce) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!t.live(u)) continue;
        float x[2 * kVec];
        heads.widen(u, x);
        t.rotate_head(pairs, x);
        t.store_head(heads, u, x, 1.0f);
      }
    } else if (kUnroll == 1 || t.plan.in_flight == 1) {
      reduce_heads<1, kQuantised>(t, pairs, heads, summed, mean);
    } else {
      reduce_heads<kUnroll, kQuantised>(t, pairs, heads, summed, mean);
    }
    if (turn + 1 < t.plan.turns) {
      t.next_heads(1);
    } else if (t.across && !summed) {
      mean = sum_together(t.head_sums(), t.o.heads) / float(t.o.heads);
      summed = true;
      t.next_heads(-turn);
      turn = -1;
    } else {
      return;
    }
    t.load_heads(heads);
  }
}

}  // namespace rope::cuda
