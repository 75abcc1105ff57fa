// The arguments of the kernels of attention's gradients.
#pragma once

#include "../attention/hopper.cuh"
#include "shape.h"

namespace rope::cuda {

// What all of them know: the sequences, and the workspace.
struct BackwardLayout {
  const int32_t *q_indptr, *k_indptr;
  int32_t sequences, q_tokens, k_tokens;  // tokens: of a sequence, at most
  int32_t q_heads;
  int64_t rows;  // of a head in the workspace
  float* dq;     // [q_heads, rows / kBackwardRows, kComputing], of kPartFloats each, in the order of kernel.cuh
  float* lse;    // [q_heads, rows]: times log2(e); infinity where there is no query, or it sees no key
  float* d;      // [q_heads, rows]: sums of d_o * o, less d_lse; 0 where there is no query
};

// Before the gradients of keys and values, and behind them: what goes by queries.
struct RowsArgs {
  BackwardLayout layout;
  AttentionTensor o, d_o, dq;
  const float *lse, *d_lse;                      // at + sequence * stride + head * stride + token
  int64_t lse_sequence_stride, lse_head_stride;  // elements
  const float* sinks;
  float* d_sinks;
  float scale;         // of dq
  AttentionTurn turn;  // by which dq is turned back; or none
};

struct KeysArgs {
  BackwardLayout layout;
  TensorMap q, d_o, k, v, dk, dv;    // dimensions: column, token, head, sequence
  AttentionTensor dk_rows, dv_rows;  // again: ragged tails are stored row by row
  int32_t k_heads, group;            // group: query heads of a key head
  int32_t key_blocks;                // of a sequence, at most
  int32_t section;                   // key heads whose blocks come before those of the next
  int32_t window_left, window_right;
  bool in_order;  // a block of threads has all keys of a head, one block after the other
  float scale_log2, scale;
  AttentionTurn turn;  // by which dk is turned back; or none
};

ROPE_INLINE BackwardSequence sequence_of(const BackwardLayout& a, int32_t sequence) {
  if (!a.q_indptr) {
    const int64_t rows = (a.q_tokens + kBackwardRows - 1) / kBackwardRows * kBackwardRows;
    return {sequence, 0, 0, a.q_tokens, a.k_tokens, sequence * rows};
  }
  const int32_t q_begin = a.q_indptr[sequence], k_begin = a.k_indptr[sequence];
  const int64_t row = (q_begin + int64_t(kBackwardRows) * sequence) / kBackwardRows * kBackwardRows;
  return {0, q_begin, k_begin, a.q_indptr[sequence + 1] - q_begin, a.k_indptr[sequence + 1] - k_begin, row};
}

}  // namespace rope::cuda
