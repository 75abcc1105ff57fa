/* The binary interface of attention, pinned as the rest of it is in abi_layout.c. */
#include <roperope/attention.h>
#include <roperope/decode.h>

#include "abi_layout.h"

CHECK(ROPE_ATTENTION_CAUSAL == 1);
CHECK(ROPE_ATTENTION_WINDOW == 2);
CHECK(ROPE_ATTENTION_Q_ROTATED == 4);
CHECK(ROPE_ATTENTION_K_ROTATED == 8);
CHECK(ROPE_ATTENTION_BACKWARD_DETERMINISTIC == 1);
CHECK(ROPE_MAX_ATTENTION_HEAD_DIM == 256);

CHECK(sizeof(rope_attention_tensor) == 32);
FIELD(rope_attention_tensor, data, 0, 8);
FIELD(rope_attention_tensor, sequence_stride, 8, 8);
FIELD(rope_attention_tensor, token_stride, 16, 8);
FIELD(rope_attention_tensor, head_stride, 24, 8);

CHECK(sizeof(rope_attention_desc) == 352);
FIELD(rope_attention_desc, struct_size, 0, 4);
FIELD(rope_attention_desc, flags, 4, 4);
FIELD(rope_attention_desc, backend, 8, 4);
FIELD(rope_attention_desc, dtype, 12, 4);
FIELD(rope_attention_desc, head_dim, 16, 4);
FIELD(rope_attention_desc, v_head_dim, 20, 4);
FIELD(rope_attention_desc, num_q_heads, 24, 4);
FIELD(rope_attention_desc, num_k_heads, 28, 4);
FIELD(rope_attention_desc, num_sequences, 32, 4);
FIELD(rope_attention_desc, num_threads, 36, 4);
FIELD(rope_attention_desc, num_q_tokens, 40, 8);
FIELD(rope_attention_desc, num_k_tokens, 48, 8);
FIELD(rope_attention_desc, q, 56, 32);
FIELD(rope_attention_desc, k, 88, 32);
FIELD(rope_attention_desc, v, 120, 32);
FIELD(rope_attention_desc, o, 152, 32);
FIELD(rope_attention_desc, rotation, 184, 8);
FIELD(rope_attention_desc, q_out, 192, 32);
FIELD(rope_attention_desc, k_out, 224, 32);
FIELD(rope_attention_desc, lse, 256, 8);
FIELD(rope_attention_desc, sinks, 264, 8);
FIELD(rope_attention_desc, q_indptr, 272, 8);
FIELD(rope_attention_desc, k_indptr, 280, 8);
FIELD(rope_attention_desc, max_q_tokens, 288, 4);
FIELD(rope_attention_desc, max_k_tokens, 292, 4);
FIELD(rope_attention_desc, scale, 296, 4);
FIELD(rope_attention_desc, softcap, 300, 4);
FIELD(rope_attention_desc, window_left, 304, 4);
FIELD(rope_attention_desc, window_right, 308, 4);
FIELD(rope_attention_desc, workspace, 312, 8);
FIELD(rope_attention_desc, workspace_bytes, 320, 8);
FIELD(rope_attention_desc, stream, 328, 8);
FIELD(rope_attention_desc, parallel_for, 336, 8);
FIELD(rope_attention_desc, parallel_context, 344, 8);

CHECK(sizeof(rope_attention_backward_desc) == 176);
FIELD(rope_attention_backward_desc, struct_size, 0, 4);
FIELD(rope_attention_backward_desc, flags, 4, 4);
FIELD(rope_attention_backward_desc, forward, 8, 8);
FIELD(rope_attention_backward_desc, d_o, 16, 32);
FIELD(rope_attention_backward_desc, d_lse, 48, 8);
FIELD(rope_attention_backward_desc, dq, 56, 32);
FIELD(rope_attention_backward_desc, dk, 88, 32);
FIELD(rope_attention_backward_desc, dv, 120, 32);
FIELD(rope_attention_backward_desc, d_sinks, 152, 8);
FIELD(rope_attention_backward_desc, workspace, 160, 8);
FIELD(rope_attention_backward_desc, workspace_bytes, 168, 8);

CHECK(ROPE_MAX_DECODE_TOKENS == 16);
CHECK(ROPE_MAX_DECODE_LENGTH == 1073741824);
CHECK(ROPE_DECODE_SPLIT == 256);

CHECK(sizeof(rope_decode_desc) == 376);
FIELD(rope_decode_desc, struct_size, 0, 4);
FIELD(rope_decode_desc, flags, 4, 4);
FIELD(rope_decode_desc, backend, 8, 4);
FIELD(rope_decode_desc, dtype, 12, 4);
FIELD(rope_decode_desc, head_dim, 16, 4);
FIELD(rope_decode_desc, num_q_heads, 20, 4);
FIELD(rope_decode_desc, num_k_heads, 24, 4);
FIELD(rope_decode_desc, num_requests, 28, 4);
FIELD(rope_decode_desc, num_q_tokens, 32, 4);
FIELD(rope_decode_desc, num_threads, 36, 4);
FIELD(rope_decode_desc, q, 40, 24);
FIELD(rope_decode_desc, o, 64, 24);
FIELD(rope_decode_desc, cache, 88, 144);
FIELD(rope_decode_desc, k_quantize, 232, 24);
FIELD(rope_decode_desc, v_quantize, 256, 24);
FIELD(rope_decode_desc, lengths, 280, 8);
FIELD(rope_decode_desc, max_length, 288, 4);
FIELD(rope_decode_desc, window_left, 292, 4);
FIELD(rope_decode_desc, scale, 296, 4);
FIELD(rope_decode_desc, softcap, 300, 4);
FIELD(rope_decode_desc, rotation, 304, 8);
FIELD(rope_decode_desc, lse, 312, 8);
FIELD(rope_decode_desc, sinks, 320, 8);
FIELD(rope_decode_desc, split, 328, 4);
FIELD(rope_decode_desc, reserved, 332, 4);
FIELD(rope_decode_desc, workspace, 336, 8);
FIELD(rope_decode_desc, workspace_bytes, 344, 8);
FIELD(rope_decode_desc, stream, 352, 8);
FIELD(rope_decode_desc, parallel_for, 360, 8);
FIELD(rope_decode_desc, parallel_context, 368, 8);

static const struct {
  void (*attention_desc_init)(rope_attention_desc*);
  int32_t (*attention_workspace)(const rope_attention_desc*, int64_t*);
  int32_t (*attention)(const rope_attention_desc*);
  void (*attention_backward_desc_init)(rope_attention_backward_desc*);
  int32_t (*attention_backward_workspace)(const rope_attention_backward_desc*, int64_t*);
  int32_t (*attention_backward)(const rope_attention_backward_desc*);
  void (*decode_desc_init)(rope_decode_desc*);
  int32_t (*decode_workspace)(const rope_decode_desc*, int64_t*);
  int32_t (*decode)(const rope_decode_desc*);
} functions = {rope_attention_desc_init,
               rope_attention_workspace,
               rope_attention,
               rope_attention_backward_desc_init,
               rope_attention_backward_workspace,
               rope_attention_backward,
               rope_decode_desc_init,
               rope_decode_workspace,
               rope_decode};

int main(void) { return functions.attention == 0; }
