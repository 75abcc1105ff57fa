// One tensor of a rope_apply_desc: what it has of it, where it is read and where it is written.
#pragma once

#include "checks.h"

namespace rope::api {

// What the fields of a tensor are called.
struct Names {
  const char *in, *out, *cache, *quantize, *groups, *heads, *dim;
};

inline constexpr Names kQ = {"q", "q_out", "", "q_quantize", "q_groups", "num_q_heads", "head_dim"},
                       kK = {"k", "k_out", "cache.k", "k_quantize", "k_groups", "num_k_heads", "head_dim"},
                       kV = {"v", "v_out", "cache.v", "v_quantize", "v_groups", "num_v_heads", "v_head_dim"},
                       kQNope = {"q_nope", "q_nope_out", "", "q_quantize", "q_groups", "num_q_heads", "q_nope_dim"},
                       kKNope = {"k_nope",   "k_nope_out",  "cache_k_nope", "k_quantize",
                                 "k_groups", "num_k_heads", "k_nope_dim"};

// What the descriptor has of a tensor.
struct Tensor {
  const Names* names;
  const rope_tensor *in, *out;
  const rope_steps *in_steps, *out_steps;
  const rope_quantize* quantize;
  const rope_groups* groups;
  const rope_cache_tensor* cache;  // null: never cached
  int32_t heads, dim;
  const void* weight;
  bool rotated;
  int32_t xpos_sign;  // where there is xPos
  int32_t dtype;      // rope_dtype
};

// And where it is read and written.
struct Source : Tensor {
  bool cached;
  Rows read, written;
  const char* written_name;
  int64_t written_row;  // bytes, in a cache
  bool kept;            // it is stored outside the cache too
  Rows kept_rows;
  bool scaled;  // groups of it are:
  Rows scales;
  int64_t scales_row;  // bytes of them for a row
};

// Reads one into an operand and its extras. The options are in p.
rope_status read_operand(const rope_apply_desc& d, const PipelineCall& p, Source& s, PipelineOperand* o,
                         OperandExtras* x, Groups* groups);

// Fails where two tensors share memory.
rope_status check_apart(const char* x_name, const Rows& x, const char* y_name, const Rows& y);

}  // namespace rope::api
