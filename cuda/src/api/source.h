// One tensor of a rope_apply_desc: what it has of it, where it is read and where it is written.
#pragma once

#include "checks.h"

namespace rope::api {

// What the fields of a tensor are called.
struct Names {
  const char *in, *out, *cache, *quantize, *heads, *dim;
};

inline constexpr Names kQ = {"q", "q_out", "", "q_quantize", "num_q_heads", "head_dim"},
                       kK = {"k", "k_out", "cache.k", "k_quantize", "num_k_heads", "head_dim"},
                       kV = {"v", "v_out", "cache.v", "v_quantize", "num_v_heads", "v_head_dim"},
                       kQNope = {"q_nope", "q_nope_out", "", "q_quantize", "num_q_heads", "q_nope_dim"},
                       kKNope = {"k_nope", "k_nope_out", "cache_k_nope", "k_quantize", "num_k_heads", "k_nope_dim"};

// What the descriptor has of a tensor.
struct Tensor {
  const Names* names;
  const rope_tensor *in, *out;
  const rope_steps *in_steps, *out_steps;
  const rope_quantize* quantize;
  const rope_cache_tensor* cache;  // null: never cached
  int32_t heads, dim;
  const void* weight;
  bool rotated;
  int32_t xpos_sign;  // where there is xPos
};

// And where it is read and written.
struct Source : Tensor {
  bool cached;
  Rows read, written;
  const char* written_name;
  int64_t written_row;  // bytes, in a cache
  bool kept;            // it is stored outside the cache too
  Rows kept_rows;
};

// Reads one into an operand and its extras. The options are in p.
rope_status read_operand(const rope_apply_desc& d, const PipelineCall& p, Source& s, PipelineOperand* o,
                         OperandExtras* x);

// Fails where two tensors share memory.
rope_status check_apart(const char* x_name, const Rows& x, const char* y_name, const Rows& y);

}  // namespace rope::api
