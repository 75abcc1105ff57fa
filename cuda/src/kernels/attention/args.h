// The argument of the attention kernels.
#pragma once

#include "hopper.cuh"
#include "shape.h"

namespace rope::cuda {

struct AttentionArgs {
  TensorMap q, k, v, o;  // dimensions: column, token, head, sequence
  const int32_t *q_indptr, *k_indptr;
  const float* sinks;
  float* lse;                                    // at + sequence * stride + head * stride + token
  int64_t lse_sequence_stride, lse_head_stride;  // elements
  char* o_rows;                                  // o again, whose ragged tails are stored row by row
  int64_t o_token_stride, o_head_stride;         // bytes
  int32_t* counter;  // [2]: tiles dealt beside the blocks' first, and blocks that are done; the caller's workspace
  int32_t sequences, q_tokens, k_tokens, q_heads;
  int32_t group;    // query heads of a key head
  int32_t section;  // heads whose tiles are dealt before those of the next
  int32_t window_left, window_right;
  float scale_log2;     // of scores, for powers of 2; with a softcap, of what tanh returns
  float softcap_scale;  // of scores, for powers of 2 that make tanh
  AttentionTurn turn;
};

}  // namespace rope::cuda
