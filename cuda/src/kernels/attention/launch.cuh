// From a plan to the kernel that carries it out.
#pragma once

#include "../parts/compiled.h"
#include "hopper_host.cuh"
#include "kernel.cuh"
#include "plan.h"

namespace rope::cuda {

// Ragged: one sequence of all tokens. A dimension of one place or none has a stride that is never used.
inline BoxedTensor boxed_tensor(const AttentionTensor& t, int32_t dim, int64_t tokens, int32_t heads, int64_t sequences,
                                int rows) {
  const auto stride = [](int64_t extent, int64_t bytes) { return extent > 1 ? bytes : 16; };
  return {t.data,
          {dim, tokens, heads, sequences},
          {stride(tokens, t.token_stride), stride(heads, t.head_stride), stride(sequences, t.sequence_stride)},
          rows};
}

// Returns a cudaError_t.
template <class Shape>
int make_tensor_maps(const AttentionParams& p, AttentionArgs* args) {
  const int64_t sequences = p.q_indptr ? 1 : p.sequences;
  const int64_t q_tokens = p.q_indptr ? p.q_total : p.q_tokens, k_tokens = p.q_indptr ? p.k_total : p.k_tokens;
  const auto make = [&](const AttentionTensor& t, int32_t dim, int64_t tokens, int32_t heads, int rows,
                        TensorMap* map) {
    return make_tensor_map(boxed_tensor(t, dim, tokens, heads, sequences, rows), map);
  };
  int error = make(p.q, p.head_dim, q_tokens, p.q_heads, Shape::kRows, &args->q);
  if (!error) error = make(p.o, p.v_head_dim, q_tokens, p.q_heads, 64, &args->o);
  if (!k_tokens) return error;  // nothing is loaded
  if (!error) error = make(p.k, p.head_dim, k_tokens, p.k_heads, Shape::kKeys, &args->k);
  if (!error) error = make(p.v, p.v_head_dim, k_tokens, p.k_heads, Shape::kKeys, &args->v);
  return error;
}

inline void fill_args(const AttentionParams& p, const AttentionPlan& plan, AttentionArgs* args) {
  args->q_indptr = p.q_indptr;
  args->k_indptr = p.k_indptr;
  args->sinks = p.sinks;
  args->lse = p.lse;
  args->lse_head_stride = p.q_indptr ? p.q_total : p.q_tokens;
  args->lse_sequence_stride = args->lse_head_stride * p.q_heads;
  args->o_rows = p.o.data;
  args->o_token_stride = p.o.token_stride;
  args->o_head_stride = p.o.head_stride;
  args->counter = static_cast<int32_t*>(p.workspace);
  args->sequences = p.sequences;
  args->q_tokens = p.q_tokens;
  args->k_tokens = p.k_tokens;
  args->q_heads = p.q_heads;
  args->group = p.q_heads / p.k_heads;
  args->section = plan.section;
  args->window_left = plan.window_left;
  args->window_right = plan.window_right;
  args->scale_log2 = (p.softcap ? p.softcap : p.scale) * kLog2E;
  args->turn = p.turn;
  args->softcap_scale = p.softcap ? 2 * kLog2E * p.scale / p.softcap : 0.0f;
}

// Returns a cudaError_t.
template <class D, size_t kIndex>
int launch_attention(const AttentionParams& p, const AttentionPlan& plan, const Execution& e) {
  constexpr AttentionCode kCode = kAttentionCodes[kIndex];
  using Shape = AttentionShape<kCode.head_dim, kCode.v_head_dim>;
  static_assert(sizeof(AttentionStorage<Shape>) <= kSharedBytes);
  AttentionArgs args = {};
  if (const int error = make_tensor_maps<Shape>(p, &args)) return error;
  fill_args(p, plan, &args);
  return launch_resident<attention_kernel<Shape, D, kCode.softcap>>(plan.blocks, kAttentionThreads,
                                                                    sizeof(AttentionStorage<Shape>), args, e.stream,
                                                                    e.dependent);
}

template <class D>
Outcome attention(const AttentionParams& p, const PairData&, const Execution& e) {
  const AttentionPlan plan = plan_attention(p, hopper_multiprocessors());
  if (plan.empty || plan.unsupported || p.asks) return {0, plan.unsupported};
  const auto launch = [&](auto index) { return launch_attention<D, index.value>(p, plan, e); };
  return {for_compiled<kAttentionCodes>(plan.code, launch), nullptr};
}

}  // namespace rope::cuda
