/* roperope: attention of a request's last queries over its keys and values in a paged cache. The conventions are those
 * of roperope.h.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef ROPEROPE_DECODE_H
#define ROPEROPE_DECODE_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ROPE_MAX_DECODE_TOKENS 16
#define ROPE_MAX_DECODE_LENGTH 1073741824

/* o = softmax(scale * R(q) k^T) v for each request and head, over the keys that the cache has of the request, which are
 * rotated already, as rope_apply appends them. Query i of num_q_tokens stands at key lengths[request] - num_q_tokens +
 * i, the last one at the last key, and sees none behind its own. One that sees no key has o = 0 and lse = -infinity.
 * Scores and sums are float32; on CUDA the weights of values are of dtype, of an fp8 cache float16, as q then is.
 *
 * A length outside 0 to max_length, or a key whose page is outside the cache, is refused on the CPU; on CUDA the o of
 * its request is NaN. */
typedef struct rope_decode_desc {
  uint32_t struct_size;     /* sizeof(rope_decode_desc) */
  uint32_t flags;           /* ROPE_ATTENTION_WINDOW: window_left holds */
  int32_t backend;          /* rope_backend */
  int32_t dtype;            /* rope_dtype of q and o; CUDA: not ROPE_DTYPE_F32 */
  int32_t head_dim;         /* of q, o and the cache, 2 to ROPE_MAX_ATTENTION_HEAD_DIM; CUDA: 64 or 128 */
  int32_t num_q_heads;      /* a multiple of num_k_heads: query head h has key head h / (their ratio) */
  int32_t num_k_heads;      /* of the cache */
  int32_t num_requests;     /* 0 does nothing */
  int32_t num_q_tokens;     /* of each request, 1 to ROPE_MAX_DECODE_TOKENS */
  int32_t num_threads;      /* as rope_apply_desc's */
  rope_tensor q, o;         /* [num_requests * num_q_tokens, num_q_heads, head_dim] */
  rope_cache cache;         /* as rope_apply_desc's with ROPE_CACHE_PAGES, its k and v read. That of an append will do:
                               what says where tokens go is not read (request_ids, cache_positions, index_dtype, slots,
                               skips_tokens, num_skipped) */
  rope_quantize k_quantize; /* as k was appended: ROPE_OUT_SAME, or fp8 (on the CPU also int8) with a ROPE_SCALE_HOST or
                               ROPE_SCALE_TENSOR */
  rope_quantize v_quantize; /* likewise, of the same out_dtype */
  const int32_t* lengths;   /* [num_requests], memory of the backend: keys of each request, the new ones too */
  int32_t max_length;       /* at least the longest's, 0 to ROPE_MAX_DECODE_LENGTH; without page_indptr at most
                               page_table_stride * page_size */
  int32_t window_left;      /* keys before its own that a query sees; -1: all */
  float scale;              /* 0: 1 / sqrt(head_dim) */
  float softcap;            /* scores s become softcap * tanh(s / softcap); 0: they stay */
  const rope_apply_desc* rotation; /* how q turns; NULL: it is rotated already. Read are layout, angle (exact or fp32),
                                      rotary_dim, rotary_offset, frequencies, attention_factor, positions (-1: the query
                                      is not rotated), position_dtype (integers) and offset; all else must be 0 or is
                                      taken from here. Without positions the query at key n has position offset + n */
  float* lse;              /* [num_requests, num_q_heads, num_q_tokens], as rope_attention's; NULL: not written */
  const float* sinks;      /* [num_q_heads], memory of the backend, as rope_attention's; NULL: none */
  int32_t split;           /* CUDA: keys that are added up by themselves, the first ones from key 0 on; a multiple of
                              ROPE_DECODE_SPLIT. With the same one the bits of a request's result are the same, whatever
                              the others are. 0: chosen by the shape and max_length */
  int32_t reserved;        /* 0 */
  void* workspace;         /* as rope_attention_desc's */
  int64_t workspace_bytes; /* at least what rope_decode_workspace says */
  void* stream;            /* as rope_apply_desc's */
  rope_parallel_for parallel_for;
  void* parallel_context;
} rope_decode_desc;

#define ROPE_DECODE_SPLIT 256

/* Zero, then struct_size. */
ROPEROPE_API void rope_decode_desc_init(rope_decode_desc* desc);

/* *bytes: the workspace that a call of this shape, max_length and split needs. Reads neither tensors nor workspace. */
ROPEROPE_API rope_status rope_decode_workspace(const rope_decode_desc* desc, int64_t* bytes);

/* On CUDA the work is queued on the stream; on the CPU it is done when the call returns. */
ROPEROPE_API rope_status rope_decode(const rope_decode_desc* desc);

#ifdef __cplusplus
}
#endif

#endif
