/* roperope: attention over queries and keys that turn on their way. The conventions are those of roperope.h.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef ROPEROPE_ATTENTION_H
#define ROPEROPE_ATTENTION_H

#include "roperope.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ROPE_MAX_ATTENTION_HEAD_DIM 256

enum {
  ROPE_ATTENTION_CAUSAL = 1u,    /* a query sees no key behind it: window_right is 0 */
  ROPE_ATTENTION_WINDOW = 2u,    /* window_left and window_right hold */
  ROPE_ATTENTION_Q_ROTATED = 4u, /* q is rotated already; with rotation NULL both are */
  ROPE_ATTENTION_K_ROTATED = 8u  /* k is, as keys of a cache are */
};

/* Element [sequence, token, head, i] at data + sequence * sequence_stride + token * token_stride + head * head_stride
 * + i. */
typedef struct rope_attention_tensor {
  void* data;              /* aligned to the element size */
  int64_t sequence_stride; /* elements; 0: tokens * token_stride; 0 of ragged sequences */
  int64_t token_stride;    /* elements; 0: num_heads * head_stride */
  int64_t head_stride;     /* elements; 0: the head's size */
} rope_attention_tensor;

/* o = softmax(scale * R(q) R(k)^T) v for each sequence and head, R: the rotation of rope_apply, by the same angles and
 * with the same bits. Query i of a sequence stands at key i + num_k_tokens - num_q_tokens, so that its last one stands
 * at the last key: that is what causal and windows count from, and, unless rotation says where tokens stand, positions.
 * A query that sees no key has o = 0 and lse = -infinity. Scores and sums are float32. */
typedef struct rope_attention_desc {
  uint32_t struct_size;  /* sizeof(rope_attention_desc) */
  uint32_t flags;        /* ROPE_ATTENTION_* */
  int32_t backend;       /* rope_backend */
  int32_t dtype;         /* rope_dtype of all tensors; CUDA: not ROPE_DTYPE_F32 */
  int32_t head_dim;      /* of q and k, 2 to ROPE_MAX_ATTENTION_HEAD_DIM */
  int32_t v_head_dim;    /* of v and o, likewise; 0: head_dim */
  int32_t num_q_heads;   /* of q and o; a multiple of num_k_heads: query head h has key head h / (their ratio) */
  int32_t num_k_heads;   /* of k and v */
  int32_t num_sequences; /* 0 does nothing */
  int32_t num_threads;   /* as rope_apply_desc's */
  int64_t num_q_tokens;  /* of each sequence; with q_indptr of all together. To 2^31 - 1; 0 does nothing */
  int64_t num_k_tokens;
  rope_attention_tensor q, k, v, o;
  const rope_apply_desc* rotation; /* how q and k turn; NULL: both are rotated already. Read are layout, rotary_dim,
                                      rotary_offset, frequencies, attention_factor, num_blocks, xpos, and all that says
                                      by which angle and from where positions come, as in rope_apply; the rest of it
                                      must be 0 or is taken from here. A token that is left alone is not rotated. k is
                                      rotated where it has q's tokens, else it must be so already. */
  rope_attention_tensor q_out;     /* where the rotated q is kept, as q; it may be q itself; NULL: nowhere */
  rope_attention_tensor k_out;
  float* lse;              /* [num_sequences, num_q_heads, num_q_tokens], with q_indptr [num_q_heads, num_q_tokens]:
                              the logarithm of each softmax's sum, a sink's part of it; NULL: not written */
  const float* sinks;      /* [num_q_heads], memory of the backend: the logit of a key without a value, which every
                              query of the head sees; NULL: none */
  const int32_t* q_indptr; /* ragged sequences: [num_sequences + 1], not decreasing, memory of the backend; the
                              tokens of sequence s are q_indptr[s] to q_indptr[s + 1] - 1. NULL: of equal length */
  const int32_t* k_indptr; /* NULL: q_indptr, which it needs */
  int32_t max_q_tokens;    /* with q_indptr: at least the longest sequence's; else 0 */
  int32_t max_k_tokens;    /* with k_indptr likewise; else 0 */
  float scale;             /* 0: 1 / sqrt(head_dim) */
  float softcap;           /* scores s become softcap * tanh(s / softcap); 0: they stay */
  int32_t window_left;     /* keys before its place that a query sees; -1: all */
  int32_t window_right;    /* keys behind it; -1: all; ROPE_ATTENTION_CAUSAL: 0 */
  void* workspace;         /* memory of the backend, aligned to 256 bytes, apart from everything else in the call and
                              used by no other call at the same time; zeroed once before its first use. NULL: 0 bytes */
  int64_t workspace_bytes; /* at least what rope_attention_workspace says */
  void* stream;            /* as rope_apply_desc's */
  rope_parallel_for parallel_for;
  void* parallel_context;
} rope_attention_desc;

/* Zero, then struct_size. */
ROPEROPE_API void rope_attention_desc_init(rope_attention_desc* desc);

/* *bytes: the workspace that a call of this shape needs. Reads neither tensors nor workspace; data may be NULL, but
 * that of q_out and k_out says that they are kept, and then take no workspace. */
ROPEROPE_API rope_status rope_attention_workspace(const rope_attention_desc* desc, int64_t* bytes);

/* On CUDA the work is queued on the stream; on the CPU it is done when the call returns. */
ROPEROPE_API rope_status rope_attention(const rope_attention_desc* desc);

enum {
  ROPE_ATTENTION_BACKWARD_DETERMINISTIC = 1u /* the same bits in every run, which the CPU always has */
};

/* The gradients of a call of rope_attention. lse, and the rotated q and k, are those that it wrote. */
typedef struct rope_attention_backward_desc {
  uint32_t struct_size;               /* sizeof(rope_attention_backward_desc) */
  uint32_t flags;                     /* ROPE_ATTENTION_BACKWARD_* */
  const rope_attention_desc* forward; /* the call, whose lse is required, and q_out and k_out, which are read, where q
                                         and k were rotated; q and k, which need not be there, are read where they were
                                         not. Its workspace is not used */
  rope_attention_tensor d_o;          /* the gradient of o, as o */
  const float* d_lse;                 /* the gradient of lse, as lse; NULL: 0 */
  rope_attention_tensor dq, dk, dv;   /* written, as q, k and v; of tensors that were rotated, turned back by rope_apply
                                         with ROPE_FLAG_INVERSE, of the others the gradients as they are */
  float* d_sinks;                     /* [num_q_heads], written; NULL: not wanted, or there are none */
  void* workspace; /* memory of the backend, aligned to 256 bytes, apart from everything else in the call and used
                      by no other call at the same time; NULL: 0 bytes */
  int64_t workspace_bytes; /* at least what rope_attention_backward_workspace says */
} rope_attention_backward_desc;

/* Zero, then struct_size. */
ROPEROPE_API void rope_attention_backward_desc_init(rope_attention_backward_desc* desc);

/* *bytes: the workspace that a call of this shape needs. Reads no tensors. */
ROPEROPE_API rope_status rope_attention_backward_workspace(const rope_attention_backward_desc* desc, int64_t* bytes);

/* As rope_attention. A query that sees no key has dq = 0, a key that no query sees dk = dv = 0. */
ROPEROPE_API rope_status rope_attention_backward(const rope_attention_backward_desc* desc);

#ifdef __cplusplus
}
#endif

#endif
