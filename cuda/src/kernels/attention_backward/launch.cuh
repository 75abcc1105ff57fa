// From a plan to the kernels that carry it out: by queries, by keys, by queries again.
#pragma once

#include "../attention/launch.cuh"
#include "kernel.cuh"
#include "plan.h"

namespace rope::cuda {

// Returns a cudaError_t.
template <class Shape>
int make_tensor_maps(const AttentionBackwardParams& b, KeysArgs* args) {
  const AttentionParams& p = b.forward;
  const int64_t sequences = p.q_indptr ? 1 : p.sequences;
  const int64_t q_tokens = p.q_indptr ? p.q_total : p.q_tokens, k_tokens = p.q_indptr ? p.k_total : p.k_tokens;
  const auto make = [&](const AttentionTensor& t, int64_t tokens, int32_t heads, int rows, TensorMap* map) {
    return make_tensor_map(boxed_tensor(t, Shape::kDim, tokens, heads, sequences, rows), map);
  };
  int error = make(p.k, k_tokens, p.k_heads, Shape::kKeys, &args->k);
  if (!error) error = make(p.v, k_tokens, p.k_heads, Shape::kKeys, &args->v);
  if (!error) error = make(b.dk, k_tokens, p.k_heads, 64, &args->dk);
  if (!error) error = make(b.dv, k_tokens, p.k_heads, 64, &args->dv);
  if (!q_tokens) return error;  // nothing is loaded
  if (!error) error = make(p.q, q_tokens, p.q_heads, Shape::kRows, &args->q);
  if (!error) error = make(b.d_o, q_tokens, p.q_heads, Shape::kRows, &args->d_o);
  return error;
}

inline BackwardLayout layout_of(const AttentionBackwardParams& b) {
  const AttentionParams& p = b.forward;
  const int64_t of_head = backward_rows(p), rows = of_head * p.q_heads;
  float *const dq = static_cast<float*>(b.workspace), *const lse = dq + rows * p.head_dim;
  return {p.q_indptr, p.k_indptr, p.sequences, p.q_tokens, p.k_tokens, p.q_heads, of_head, dq, lse, lse + rows};
}

inline RowsArgs rows_args(const AttentionBackwardParams& b, const BackwardLayout& layout) {
  const AttentionParams& p = b.forward;
  const int64_t head_stride = p.q_indptr ? p.q_total : p.q_tokens;
  return {layout,
          p.o,
          b.d_o,
          b.dq,
          p.lse,
          b.d_lse,
          head_stride * p.q_heads,
          head_stride,
          p.sinks,
          b.d_sinks,
          p.scale,
          b.turns_q ? b.turn : AttentionTurn{}};
}

inline void fill_args(const AttentionBackwardParams& b, const BackwardPlan& plan, KeysArgs* args) {
  const AttentionParams& p = b.forward;
  args->dk_rows = b.dk;
  args->dv_rows = b.dv;
  args->k_heads = p.k_heads;
  args->group = p.q_heads / p.k_heads;
  args->key_blocks = plan.key_blocks;
  args->section = plan.section;
  args->window_left = plan.window_left;
  args->window_right = plan.window_right;
  args->in_order = b.deterministic;
  args->scale_log2 = p.scale * kLog2E;
  args->scale = p.scale;
  if (b.turns_k) args->turn = b.turn;
}

// Returns a cudaError_t. Each kernel waits for the one before.
template <class Shape, class D>
int launch_backward(const AttentionBackwardParams& b, const BackwardPlan& plan, const Execution& e) {
  static_assert(sizeof(BackwardStorage<Shape>) <= kSharedBytes);
  KeysArgs keys = {};
  keys.layout = layout_of(b);
  const RowsArgs rows = rows_args(b, keys.layout);
  int error = 0;
  if (plan.rows_blocks)
    error =
        launch_resident<prepare_rows_kernel<Shape, D>>(plan.rows_blocks, kRowsThreads, 0, rows, e.stream, e.dependent);
  if (!error && plan.keys_blocks) {
    error = make_tensor_maps<Shape>(b, &keys);
    fill_args(b, plan, &keys);
    if (!error)
      error = launch_resident<backward_keys_kernel<Shape, D>>(plan.keys_blocks, kAttentionThreads,
                                                              sizeof(BackwardStorage<Shape>), keys, e.stream,
                                                              plan.rows_blocks > 0);
  }
  constexpr int kConvertBytes = Shape::kRowsBytes, kSinksBytes = kRowsThreads / kWarp * 4;
  if (!error && plan.rows_blocks)
    error = launch_resident<convert_rows_kernel<Shape, D>>(plan.rows_blocks, kRowsThreads, kConvertBytes, rows,
                                                           e.stream, true);
  if (!error && plan.sinks_blocks)
    error = launch_resident<sinks_kernel<D>>(plan.sinks_blocks, kRowsThreads, kSinksBytes, rows, e.stream, false);
  return error;
}

template <class D>
Outcome attention_backward(const AttentionBackwardParams& b, const PairData&, const Execution& e) {
  const BackwardPlan plan = plan_attention_backward(b, hopper_multiprocessors());
  if (plan.unsupported || b.asks) return {0, plan.unsupported};
  const auto launch = [&](auto index) {
    return launch_backward<BackwardShape<kBackwardCodes[index.value]>, D>(b, plan, e);
  };
  return {for_compiled<kBackwardCodes>(plan.code, launch), nullptr};
}

}  // namespace rope::cuda
