// rope_attention_backward: the gradients of what was multiplied, turned back where it was turned, by the kernels or by
// rope_apply.
#include <algorithm>

#include "apply.h"
#include "attention.h"
#include "query_rows.h"

namespace rope::api {
namespace {

using Desc = rope_attention_backward_desc;
using Memory = AttentionMemory;

enum { kQ, kK, kV, kO, kDO, kLse, kDLse, kSinks, kDQ, kDK, kDV, kDSinks, kWorkspace, kCount };

// Bytes as a row.
Memory block(const char* name, const void* data, int64_t bytes) {
  return {data ? name : nullptr, Rows(data, {1, 0}, {1, 0}, {1, 0}, {1, 0}, bytes)};
}

rope_status read_shape(const Desc* desc, Desc* b, AttentionCall* c, const Operations** operations) {
  ROPE_TRY(read_descriptor(desc, offsetof(Desc, d_sinks), "rope_attention_backward_desc", b));
  if (b->flags & ~ROPE_ATTENTION_BACKWARD_DETERMINISTIC)
    return fail(ROPE_ERR_INVALID_ARG, "flags: %#x has bits other than ROPE_ATTENTION_BACKWARD_DETERMINISTIC (1)",
                b->flags);
  return read_shape(b->forward, c, operations);
}

// Where rows of cos and sin are in the workspace, if there are any: behind what the kernels need.
int64_t rows_offset(const AttentionCall& c) {
  return (attention_backward_workspace(c.params) + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

int64_t workspace_bytes(const AttentionCall& c) {
  if (c.d.backend != ROPE_BACKEND_CUDA) return 0;
  const int64_t bytes = rows_offset(c) + c.q_rows * c.d.head_dim * kQueryRowBytes;
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

rope_status check_workspace(const Desc& b, int32_t backend, int64_t bytes) {
  if (b.workspace_bytes < bytes)
    return fail(ROPE_ERR_INVALID_ARG,
                "workspace_bytes: %lld, must be at least %lld (rope_attention_backward_workspace)",
                static_cast<long long>(b.workspace_bytes), static_cast<long long>(bytes));
  if (!bytes) return ROPE_OK;
  return require_pointer(backend, "workspace", b.workspace, kPartAlignment, "by rope_attention_backward_workspace");
}

// A tensor that was rotated: what the call kept of it.
rope_status read_kept(const AttentionCall& c, const char* name, const rope_attention_tensor& kept, bool turned,
                      const char* given_name, const rope_attention_tensor& given, const Shape& shape, Memory* m) {
  if (turned && !kept.data)
    return fail(ROPE_ERR_INVALID_ARG, "forward.%s: NULL, required where it was rotated: gradients need what was kept",
                name);
  return read_memory(c.d, turned ? name : given_name, turned ? kept : given, shape, m);
}

rope_status read_tensors(const AttentionCall& c, const Desc& b, Memory* all) {
  const rope_attention_desc& d = c.d;
  const int64_t lse_bytes = int64_t(4) * d.num_q_heads * c.q_rows, sinks_bytes = int64_t(4) * d.num_q_heads;
  if (c.q_rows) {
    ROPE_TRY(read_kept(c, "q_out", d.q_out, c.turns_q, "q", d.q, c.q, &all[kQ]));
    ROPE_TRY(read_memory(d, "o", d.o, c.o, &all[kO]));
    ROPE_TRY(read_memory(d, "d_o", b.d_o, c.o, &all[kDO]));
    ROPE_TRY(read_memory(d, "dq", b.dq, c.q, &all[kDQ]));
    ROPE_TRY(require_pointer(d.backend, "forward.lse", d.lse, 4, "by rope_attention_backward"));
    ROPE_TRY(check_pointer(d.backend, "d_lse", b.d_lse, 4));
    all[kLse] = block("lse", d.lse, lse_bytes);
    all[kDLse] = block("d_lse", b.d_lse, lse_bytes);
  }
  if (c.k_rows) {
    ROPE_TRY(read_kept(c, "k_out", d.k_out, c.turns_k, "k", d.k, c.k, &all[kK]));
    ROPE_TRY(read_memory(d, "v", d.v, c.v, &all[kV]));
    ROPE_TRY(read_memory(d, "dk", b.dk, c.k, &all[kDK]));
    ROPE_TRY(read_memory(d, "dv", b.dv, c.v, &all[kDV]));
  }
  ROPE_TRY(check_pointer(d.backend, "forward.sinks", d.sinks, 4));
  ROPE_TRY(check_pointer(d.backend, "d_sinks", b.d_sinks, 4));
  if (b.d_sinks && !d.sinks) return fail(ROPE_ERR_INVALID_ARG, "d_sinks: given, but forward.sinks is NULL");
  all[kSinks] = block("sinks", d.sinks, sinks_bytes);
  all[kDSinks] = block("d_sinks", b.d_sinks, sinks_bytes);
  all[kWorkspace] = block("workspace", b.workspace, workspace_bytes(c));
  for (int i = kDQ; i < kCount; ++i) {
    if (!all[i].name) continue;
    Memory others[kCount];
    std::copy(all, all + kCount, others);
    others[i].name = nullptr;
    ROPE_TRY(check_written(all[i], others, kCount));
  }
  return ROPE_OK;
}

// dq and dk in place.
rope_status turn_back(const AttentionCall& c, const Desc& b, rope_apply_desc turn, bool asks) {
  if (!c.d.rotation || !c.q_rows) return ROPE_OK;
  turn.flags = ROPE_FLAG_INVERSE;
  if (c.turns_q) {
    turn.q = {b.dq.data, b.dq.token_stride, b.dq.head_stride};
    turn.q_steps.sequence = b.dq.sequence_stride;
  }
  if (c.turns_k) {
    turn.k = {b.dk.data, b.dk.token_stride, b.dk.head_stride};
    turn.k_steps.sequence = b.dk.sequence_stride;
  }
  return apply(&turn, asks);
}

rope_status attention_backward(const Desc* desc) {
  Desc b;
  AttentionCall c = {};
  const Operations* operations;
  ROPE_TRY(read_shape(desc, &b, &c, &operations));
  const rope_attention_desc& d = c.d;
  Execution execution;
  ROPE_TRY(read_execution(d.backend, 0, d.stream, {d.num_threads, d.parallel_for, d.parallel_context}, &execution));
  rope_apply_desc turn = {};
  if (d.rotation) ROPE_TRY(read_rotation(c, &turn));
  if (!c.q_rows && !c.k_rows && !b.d_sinks) return ROPE_OK;
  ROPE_TRY(check_workspace(b, d.backend, workspace_bytes(c)));
  Memory all[kCount] = {};
  ROPE_TRY(read_tensors(c, b, all));
  ROPE_TRY(check_sequences(c));

  AttentionBackwardParams p = {};
  p.forward = c.params;
  p.forward.q = tensor_of(all[kQ].rows);
  p.forward.k = tensor_of(all[kK].rows);
  p.forward.v = tensor_of(all[kV].rows);
  p.forward.o = tensor_of(all[kO].rows);
  p.forward.lse = d.lse;
  p.forward.sinks = d.sinks;
  p.d_o = tensor_of(all[kDO].rows);
  p.dq = tensor_of(all[kDQ].rows);
  p.dk = tensor_of(all[kDK].rows);
  p.dv = tensor_of(all[kDV].rows);
  p.d_lse = b.d_lse;
  p.d_sinks = b.d_sinks;
  p.deterministic = b.flags & ROPE_ATTENTION_BACKWARD_DETERMINISTIC;
  p.workspace = b.workspace;
  ApplyCall rotation;
  bool on_the_way = d.rotation && d.backend == ROPE_BACKEND_CUDA && c.q_rows;
  if (on_the_way) {
    ROPE_TRY(read_call(&turn, &rotation));
    on_the_way = has_query_rows(rotation);
  }
  p.asks = true;  // before anything is written
  ROPE_TRY(status_of(operations->attention_backward(p, {}, execution)));
  ROPE_TRY(turn_back(c, b, turn, true));
  p.asks = false;
  if (on_the_way) {
    char* const rows = static_cast<char*>(b.workspace) + rows_offset(c);
    ROPE_TRY(build_query_rows(rotation, c.ragged ? 0 : d.num_q_tokens, rows, &p.turn));
    p.turns_q = c.turns_q;
    p.turns_k = c.turns_k;
  }
  ROPE_TRY(status_of(operations->attention_backward(p, {}, execution)));
  return on_the_way ? ROPE_OK : turn_back(c, b, turn, false);
}

rope_status measure_workspace(const Desc* desc, int64_t* bytes) {
  Desc b;
  AttentionCall c = {};
  const Operations* operations;
  if (!bytes) return fail(ROPE_ERR_INVALID_ARG, "bytes: NULL");
  ROPE_TRY(read_shape(desc, &b, &c, &operations));
  *bytes = workspace_bytes(c);
  return ROPE_OK;
}

}  // namespace
}  // namespace rope::api

extern "C" {

void rope_attention_backward_desc_init(rope_attention_backward_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_attention_backward_workspace(const rope_attention_backward_desc* desc, int64_t* bytes) {
  return rope::api::measure_workspace(desc, bytes);
}

rope_status rope_attention_backward(const rope_attention_backward_desc* desc) {
  return rope::api::attention_backward(desc);
}

}  // extern "C"
