// The general kernel: a pipeline (operations/pipeline.h) of every shape and with every option, where those that it is
// made for are the pipeline kernel's (../pipeline): heads of any size and alignment, xPos, norms across heads,
// sequences and elements with strides of their own, tokens that are copied, tensors stored twice or with other pairs.
//
// A block works on one operand: blockIdx.x counts blocks of the first operand, then those of the next; z counts slots
// that do not fit one block. What needs a whole head, the norm and computed scales (kReduce), is in parts/rows.cuh;
// every thread of a block then takes the same number of turns.
#pragma once

#include "thread.cuh"

namespace rope::cuda {

// Blocks that must fit a multiprocessor: one less where a thread holds its part of a head in float32, and one where
// that is in groups.
constexpr int general_blocks(bool reduce, bool grouped) { return kUnspilledBlocks - reduce - grouped; }

template <class D, int kVec, bool kReduce, bool kGrouped>
__global__ void __launch_bounds__(kMaxBlock, general_blocks(kReduce, kGrouped))
    general_kernel(const __grid_constant__ GeneralArgs args) {
  int which = 0;  // the operand that the block works on
#pragma unroll
  for (int i = 1; i < kMaxOperands; ++i) which += blockIdx.x >= args.first_block[i];
  GeneralThread<D, kVec, kReduce, kGrouped> t(args, which);
  if (!kReduce && !t.inside) return;
  wait_for_previous();
  release_next();

  Chunk<D, kVec> a, b;
  t.load_head(a, b);
  PairTurn angle[kVec] = {};
  t.take_place(angle);
  if (kReduce ? t.p.writes_sums && !t.p.sums[which].of_tokens : !t.acts()) return;

  // With a norm across heads a first round only adds up, where no sums of several ranks are read.
  bool summed = t.reads_sums();
  float mean = summed && t.inside ? t.p.sums[which].of_tokens[t.at.token] / t.p.sums[which].heads : 0.0f;
  for (int32_t turn = 0;; ++turn) {
    float x[2 * kVec] = {}, factor = 1.0f;
    bool stores = t.live() && t.acts();
    if (t.live()) {
      t.widen(a, b, x);
    }
    if constexpr (kReduce) {
      if (t.p.norm.after) t.rotate_head(angle, x);
      if (t.o.weight) {
        float total = mean;
        if (!summed) t.rows().sums_of_squares(reinterpret_cast<float (&)[1][2 * kVec]>(x), t.inside, &total);
        if (t.across && !summed) {
          if (t.live() && t.at.slot == 0) t.head_sums()[t.head] = total;
          stores = false;
        } else {
          t.normalise(total, x);
        }
      }
      if (!t.p.norm.after) t.rotate_head(angle, x);
      if (t.o.quantize.kind == ScaleKind::kDynamic && (summed || !t.across)) factor = t.renew_factor(t.rows(), x);
    } else {
      t.rotate_head(angle, x);
    }
    if constexpr (kGrouped)
      if (t.grouped && (summed || !t.across)) t.store_groups(x, stores);
    if (stores && !(t.grouped && !t.extras.kept)) {
      if (t.quantised && !t.grouped && t.o.quantize.kind != ScaleKind::kDynamic) factor = t.given_factor();
      t.store_head(a, b, x, factor);
    }
    t.head += t.plan.columns;
    if (turn + 1 == t.plan.turns) {
      if (!t.across || summed) return;
      const float total = sum_together(t.head_sums(), t.o.heads);
      if (kReduce && t.p.writes_sums) {
        if (threadIdx.x == 0 && t.moves) t.p.sums[which].of_tokens[t.at.token] = total;
        return;
      }
      mean = total / float(t.o.heads);
      summed = true;
      t.head = t.at.head;
      turn = -1;
    }
    t.load_head(a, b);
  }
}

}  // namespace rope::cuda
