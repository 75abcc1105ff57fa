// Attention over queries and keys that turn before they get here, or, of queries, on the way: what a call is,
// validated.
//   o = softmax(scale q k^T) v    row by row, over the keys that a query sees
//   lse = log(sum(exp(scale q k^T)))
#pragma once

#include "call.h"

namespace rope {

// Element [sequence, token, head, i] at data + sequence * sequence_stride + token * token_stride + head * head_stride
// and elements that are neighbours; strides are bytes. Ragged: one sequence, of all tokens.
struct AttentionTensor {
  char* data;
  int64_t sequence_stride, token_stride, head_stride;
};

// Rows of cos and sin by which queries turn on their way, one a token; of sequence s and token t (ragged: 0 and t of
// all) at s * sequence_stride + t * row_stride, in elements.
struct AttentionTurn {
  const float *cos, *sin;  // [rows, rotary_dim / 2]; null: queries are taken as they are
  int64_t sequence_stride, row_stride;
  Layout layout;
  int32_t rotary_dim, rotary_offset;
};

// By slots of 16 elements, and angles by four.
constexpr bool can_turn_on_the_way(int32_t rotary_dim, int32_t rotary_offset) {
  return rotary_dim > 0 && rotary_dim % 16 == 0 && rotary_offset % 8 == 0;
}

struct AttentionParams {
  AttentionTensor q;   // [sequences, q_tokens, q_heads, head_dim]
  AttentionTensor k;   // [sequences, k_tokens, k_heads, head_dim]
  AttentionTensor v;   // [sequences, k_tokens, k_heads, v_head_dim]
  AttentionTensor o;   // [sequences, q_tokens, q_heads, v_head_dim]
  float* lse;          // [sequences, q_heads, q_tokens], ragged [q_heads, q_total]; null: not written
  const float* sinks;  // [q_heads]: a logit that each row has beside its keys', with no value; null: none
  // Ragged: the first token of each sequence, and the end of the last, [sequences + 1]; null: all are of equal length.
  const int32_t *q_indptr, *k_indptr;
  int32_t sequences;
  int32_t q_tokens, k_tokens;  // of a sequence; ragged: of the longest
  int64_t q_total, k_total;    // of all sequences
  int32_t q_heads, k_heads;    // q_heads is a multiple
  int32_t head_dim, v_head_dim;
  // Query i sees the keys from i + d - window_left to i + d + window_right, d = k_tokens - q_tokens of its sequence, so
  // that the last query stands at the last key. Causal: window_right is 0.
  int32_t window_left, window_right;  // kNoWindow: no limit
  float scale;                        // of the scores
  float softcap;                      // scores become softcap * tanh(score / softcap); 0: they stay
  void* workspace;                    // kAttentionWorkspace bytes, zero between calls; CUDA
  AttentionTurn turn;                 // of q
  bool asks;                          // nothing is done but to say whether the backend serves the call
};

// Gradients. With p = exp(scores - lse), d the rowsum of d_o * o, less d_lse, and s = scale q k^T:
//   dv = p^T d_o    ds = p (d_o v^T - d)    dq = scale ds k    dk = scale ds^T q    d_sinks = -sum(exp(sinks - lse) d)
// and with a softcap ds (1 - (scores / softcap)^2) in place of ds.
struct AttentionBackwardParams {
  AttentionParams forward;          // q and k as they were multiplied; lse is read; no turn, no workspace
  AttentionTensor d_o, dq, dk, dv;  // as o, q, k and v
  const float* d_lse;               // as lse; null: 0
  float* d_sinks;                   // [q_heads]; null: not wanted
  bool deterministic;
  void* workspace;     // attention_backward_workspace() bytes; CUDA
  AttentionTurn turn;  // by which q was turned, and k, where these are to be turned back
  bool turns_q, turns_k;
  bool asks;  // nothing is done but to say whether the backend serves the call
};

inline constexpr int32_t kNoWindow = -1;
inline constexpr int64_t kAttentionWorkspace = 256;  // bytes
inline constexpr int32_t kMaxAttentionHeadDim = 256;

// On CUDA, float32: dq in blocks of this many queries of a sequence, and lse and d of every query.
inline constexpr int32_t kBackwardRows = 64;

// Rows of a head in the workspace. Ragged: sequence s begins at the multiple of kBackwardRows below q_indptr[s] +
// kBackwardRows s, behind the end of the one before.
inline int64_t backward_rows(const AttentionParams& p) {
  const int64_t last = kBackwardRows - 1;
  return p.q_indptr ? (p.q_total + int64_t(kBackwardRows) * p.sequences) / kBackwardRows * kBackwardRows
                    : (p.q_tokens + last) / kBackwardRows * kBackwardRows * p.sequences;
}
inline int64_t attention_backward_workspace(const AttentionParams& p) {
  return backward_rows(p) * p.q_heads * (p.head_dim + 2) * int64_t(sizeof(float));
}

}  // namespace rope
