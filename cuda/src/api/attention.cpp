// rope_attention: q and k turned by rope_apply where they are not yet and no kernel turns them on the way, then what is
// compiled for the rest.
#include "attention.h"

#include <algorithm>
#include <cmath>

#include "query_rows.h"

namespace rope::api {
namespace {

using Desc = rope_attention_desc;
using Call = AttentionCall;
using Memory = AttentionMemory;

static_assert(ROPE_MAX_ATTENTION_HEAD_DIM == kMaxAttentionHeadDim);

rope_status check_flags(const Desc& d) {
  constexpr uint32_t kAll =
      ROPE_ATTENTION_CAUSAL | ROPE_ATTENTION_WINDOW | ROPE_ATTENTION_Q_ROTATED | ROPE_ATTENTION_K_ROTATED;
  if (d.flags & ~kAll)
    return fail(ROPE_ERR_INVALID_ARG,
                "flags: %#x has bits other than ROPE_ATTENTION_CAUSAL (1), ROPE_ATTENTION_WINDOW (2), "
                "ROPE_ATTENTION_Q_ROTATED (4), ROPE_ATTENTION_K_ROTATED (8)",
                d.flags);
  return ROPE_OK;
}

rope_status read_window(const Desc& d, AttentionParams* p) {
  p->window_left = p->window_right = kNoWindow;
  if (d.flags & ROPE_ATTENTION_WINDOW) {
    ROPE_TRY(check_range("window_left", d.window_left, kNoWindow, INT32_MAX));
    ROPE_TRY(check_range("window_right", d.window_right, kNoWindow, INT32_MAX));
    p->window_left = d.window_left;
    p->window_right = d.window_right;
  } else if (d.window_left || d.window_right) {
    return fail(ROPE_ERR_INVALID_ARG, "%s: %d, must be 0 without ROPE_ATTENTION_WINDOW",
                d.window_left ? "window_left" : "window_right", d.window_left ? d.window_left : d.window_right);
  }
  if (!(d.flags & ROPE_ATTENTION_CAUSAL)) return ROPE_OK;
  if (p->window_right > 0)
    return fail(ROPE_ERR_INVALID_ARG, "window_right: %d, must be 0 with ROPE_ATTENTION_CAUSAL", p->window_right);
  p->window_right = 0;
  return ROPE_OK;
}

rope_status read_lengths(Call* c) {
  Desc& d = c->d;
  AttentionParams& p = c->params;
  c->ragged = d.q_indptr != nullptr;
  if (d.k_indptr && !c->ragged) return fail(ROPE_ERR_INVALID_ARG, "k_indptr: only allowed with q_indptr");
  ROPE_TRY(check_range("num_sequences", d.num_sequences, 0, INT32_MAX));
  ROPE_TRY(check_range("num_q_tokens", d.num_q_tokens, 0, INT32_MAX));
  ROPE_TRY(check_range("num_k_tokens", d.num_k_tokens, 0, INT32_MAX));
  ROPE_TRY(check_range("max_q_tokens", d.max_q_tokens, 0, c->ragged ? d.num_q_tokens : 0));
  ROPE_TRY(check_range("max_k_tokens", d.max_k_tokens, 0, d.k_indptr ? d.num_k_tokens : 0));
  p.sequences = d.num_sequences;
  p.q_indptr = d.q_indptr;
  p.k_indptr = d.k_indptr ? d.k_indptr : d.q_indptr;
  if (!c->ragged) {
    c->q_rows = d.num_q_tokens * d.num_sequences;
    c->k_rows = d.num_k_tokens * d.num_sequences;
    p.q_tokens = int32_t(d.num_q_tokens);
    p.k_tokens = int32_t(d.num_k_tokens);
  } else {
    if (!d.k_indptr && d.num_k_tokens != d.num_q_tokens)
      return fail(ROPE_ERR_INVALID_ARG, "k_indptr: NULL, required where num_k_tokens is not num_q_tokens");
    c->q_rows = d.num_q_tokens;
    c->k_rows = d.num_k_tokens;
    p.q_tokens = d.max_q_tokens;
    p.k_tokens = d.k_indptr ? d.max_k_tokens : d.max_q_tokens;
  }
  if (c->q_rows > INT32_MAX || c->k_rows > INT32_MAX)
    return fail(ROPE_ERR_INVALID_ARG, "num_sequences: %d, must leave at most %d tokens in all", d.num_sequences,
                INT32_MAX);
  p.q_total = c->q_rows;
  p.k_total = c->k_rows;
  const int64_t sequences = c->ragged ? 1 : d.num_sequences;
  c->q = {sequences, d.num_q_tokens, d.num_q_heads, d.head_dim};
  c->k = {sequences, d.num_k_tokens, d.num_k_heads, d.head_dim};
  c->v = {sequences, d.num_k_tokens, d.num_k_heads, d.v_head_dim};
  c->o = {sequences, d.num_q_tokens, d.num_q_heads, d.v_head_dim};
  return ROPE_OK;
}

}  // namespace

rope_status read_shape(const Desc* desc, Call* c, const Operations** operations) {
  ROPE_TRY(read_descriptor(desc, offsetof(Desc, q_out), "rope_attention_desc", &c->d));
  Desc& d = c->d;
  AttentionParams& p = c->params;
  ROPE_TRY(find_operations(d.backend, d.dtype, ROPE_LAYOUT_NEOX, ROPE_ANGLE_EXACT, operations));
  ROPE_TRY(check_flags(d));
  ROPE_TRY(check_range("head_dim", d.head_dim, 2, ROPE_MAX_ATTENTION_HEAD_DIM));
  if (!d.v_head_dim) d.v_head_dim = d.head_dim;
  ROPE_TRY(check_range("v_head_dim", d.v_head_dim, 2, ROPE_MAX_ATTENTION_HEAD_DIM));
  ROPE_TRY(check_range("num_k_heads", d.num_k_heads, 1, ROPE_MAX_HEADS));
  ROPE_TRY(check_range("num_q_heads", d.num_q_heads, 1, ROPE_MAX_HEADS));
  if (d.num_q_heads % d.num_k_heads)
    return fail(ROPE_ERR_INVALID_ARG, "num_q_heads: %d, must be a multiple of num_k_heads (%d)", d.num_q_heads,
                d.num_k_heads);
  ROPE_TRY(check_positive("scale", d.scale));
  ROPE_TRY(check_positive("softcap", d.softcap));
  p.head_dim = d.head_dim;
  p.v_head_dim = d.v_head_dim;
  p.q_heads = d.num_q_heads;
  p.k_heads = d.num_k_heads;
  p.scale = d.scale > 0 ? d.scale : float(1 / std::sqrt(double(d.head_dim)));
  p.softcap = d.softcap;
  ROPE_TRY(read_window(d, &p));
  ROPE_TRY(read_lengths(c));
  c->turns_q = d.rotation && !(d.flags & ROPE_ATTENTION_Q_ROTATED);
  c->turns_k = d.rotation && !(d.flags & ROPE_ATTENTION_K_ROTATED);
  if (d.rotation && !c->turns_q && !c->turns_k)
    return fail(ROPE_ERR_INVALID_ARG, "rotation: given, but the flags say that q and k are rotated already");
  if (c->turns_k && (d.num_k_tokens != d.num_q_tokens || (d.k_indptr && d.k_indptr != d.q_indptr)))
    return fail(ROPE_ERR_INVALID_ARG,
                "flags: ROPE_ATTENTION_K_ROTATED (8) is required where the tokens of k are not those of q");
  const auto check_kept = [](const char* name, const rope_attention_tensor& out, bool turns) -> rope_status {
    if (turns || !out.data) return ROPE_OK;
    return fail(ROPE_ERR_INVALID_ARG, "%s: given, but it is not rotated here", name);
  };
  ROPE_TRY(check_kept("q_out", d.q_out, c->turns_q));
  return check_kept("k_out", d.k_out, c->turns_k);
}

namespace {

// The parts of the workspace: what the backend needs, and what turns without being kept. Of q that is q, or rows of cos
// and sin, which no more than positions decide.
struct Workspace {
  int64_t q, k, bytes;  // offsets
};

Workspace workspace_of(const Call& c) {
  const auto part = [&](bool needed, const Shape& s) {
    const int64_t row_bytes = std::max(s.heads * s.dim * dtype_bytes(c.d.dtype), s.dim * kQueryRowBytes);
    const int64_t bytes = s.sequences * s.tokens * row_bytes;
    return needed ? (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment : 0;
  };
  Workspace w;
  w.q = c.d.backend == ROPE_BACKEND_CUDA ? kAttentionWorkspace : 0;
  w.k = w.q + part(c.turns_q && !c.d.q_out.data, c.q);
  w.bytes = w.k + part(c.turns_k && !c.d.k_out.data, c.k);
  return w;
}

rope_status check_workspace(const Call& c, const Workspace& w) {
  const Desc& d = c.d;
  if (d.workspace_bytes < w.bytes)
    return fail(ROPE_ERR_INVALID_ARG, "workspace_bytes: %lld, must be at least %lld (rope_attention_workspace)",
                static_cast<long long>(d.workspace_bytes), static_cast<long long>(w.bytes));
  if (!w.bytes) return ROPE_OK;
  return require_pointer(d.backend, "workspace", d.workspace, kPartAlignment, "by rope_attention_workspace");
}

}  // namespace

rope_status read_memory(const Desc& d, const char* name, const rope_attention_tensor& x, const Shape& shape,
                        Memory* m) {
  if (shape.sequences == 1 && x.sequence_stride)
    return fail(ROPE_ERR_INVALID_ARG, "%s.sequence_stride: %lld, must be 0 with a single sequence and with q_indptr",
                name, static_cast<long long>(x.sequence_stride));
  m->name = name;
  ROPE_TRY(read_rows(name, {x.data, x.token_stride, x.head_stride}, {x.sequence_stride, 0}, shape, dtype_bytes(d.dtype),
                     &m->rows));
  return check_device_pointer(d.backend, name, x.data);
}

rope_status check_written(const Memory& written, const Memory* others, int count) {
  if (!rows_are_distinct(written.rows))
    return fail(ROPE_ERR_INVALID_ARG, "%s: strides overlap, every row that is written must be its own memory",
                written.name);
  for (int i = 0; i < count; ++i)
    if (others[i].name && !are_apart(written.rows, others[i].rows))
      return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s in memory, must be memory that is apart", written.name,
                  others[i].name);
  return ROPE_OK;
}

rope_status check_block(const char* name, const void* data, int64_t bytes, const Memory* all, int count) {
  for (int i = 0; i < count && data; ++i)
    if (all[i].name && !are_apart(all[i].rows, data, bytes))
      return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s in memory, must be memory that is apart", name, all[i].name);
  return ROPE_OK;
}

AttentionTensor tensor_of(const Rows& r) {
  return {const_cast<char*>(r.data), r.sequence.stride, r.token.stride, r.head.stride};
}

rope_status read_rotation(const Call& c, rope_apply_desc* turn) {
  const Desc& d = c.d;
  ROPE_TRY(read_descriptor(d.rotation, offsetof(rope_apply_desc, attention_factor), "rotation", turn));
  const struct {
    const char* name;
    bool given;
  } rest[] = {{"flags", turn->flags != 0},
              {"q", turn->q.data || turn->q_out.data || turn->q_nope.data},
              {"k", turn->k.data || turn->k_out.data || turn->k_nope.data},
              {"v", turn->v.data != nullptr},
              {"norm", turn->norm.q_weight || turn->norm.k_weight},
              {"cache", turn->cache.kind != 0},
              {"q_quantize", turn->q_quantize.out_dtype != 0},
              {"k_quantize", turn->k_quantize.out_dtype != 0},
              {"k_dtype", turn->k_dtype != 0},
              {"out_layout", turn->out_layout != 0},
              {"sequence_length", turn->sequence_length != 0}};
  for (const auto& x : rest)
    if (x.given) return fail(ROPE_ERR_INVALID_ARG, "rotation.%s: not allowed in a rotation of rope_attention", x.name);
  turn->backend = d.backend;
  turn->dtype = d.dtype;
  turn->head_dim = d.head_dim;
  turn->num_q_heads = d.num_q_heads;
  turn->num_k_heads = d.num_k_heads;
  turn->num_threads = d.num_threads;
  turn->parallel_for = d.parallel_for;
  turn->parallel_context = d.parallel_context;
  turn->stream = d.stream;
  turn->num_tokens = c.q_rows;
  turn->copy_skipped = 1;
  if (!c.ragged) {
    turn->sequence_length = d.num_q_tokens;
    if (!turn->positions && !turn->indptr) turn->offset += d.num_k_tokens - d.num_q_tokens;
    return ROPE_OK;
  }
  if (turn->positions || turn->indptr) return ROPE_OK;
  if (turn->offset || (d.k_indptr && d.k_indptr != d.q_indptr))
    return fail(ROPE_ERR_INVALID_ARG, "rotation.positions: NULL, or rotation.indptr, required with %s",
                turn->offset ? "q_indptr and an offset" : "k_indptr");
  turn->indptr = d.q_indptr;
  turn->num_requests = d.num_sequences;
  turn->position_dtype = ROPE_INDEX_INT32;
  return ROPE_OK;
}

namespace {

// What the caller gave for a tensor that is rotated here, or a part of the workspace.
rope_attention_tensor place_of(const rope_attention_tensor& kept, const Desc& d, int64_t offset) {
  if (kept.data) return kept;
  return {static_cast<char*>(d.workspace) + offset, 0, 0, 0};
}

void set_turn(const rope_attention_tensor& in, const rope_attention_tensor& out, rope_tensor* x, rope_steps* x_steps,
              rope_tensor* y, rope_steps* y_steps) {
  *x = {in.data, in.token_stride, in.head_stride};
  *y = {out.data, out.token_stride, out.head_stride};
  x_steps->sequence = in.sequence_stride;
  y_steps->sequence = out.sequence_stride;
}

// On the CPU, where they can be read: the ends of ragged sequences.
rope_status check_indptr(const char* name, const int32_t* indptr, int64_t sequences, int64_t total, int32_t longest) {
  for (int64_t s = 0; s <= sequences; ++s) {
    const int32_t low = s ? indptr[s - 1] : 0;
    if (indptr[s] < low || indptr[s] > total)
      return fail(ROPE_ERR_INVALID_ARG, "%s[%lld]: %d, must be %d to %lld", name, static_cast<long long>(s), indptr[s],
                  low, static_cast<long long>(total));
    if (s && indptr[s] - low > longest)
      return fail(ROPE_ERR_INVALID_ARG, "%s[%lld]: %d, makes a sequence of %d tokens, more than its max_%c_tokens (%d)",
                  name, static_cast<long long>(s), indptr[s], indptr[s] - low, name[0], longest);
  }
  return ROPE_OK;
}

}  // namespace

rope_status check_sequences(const Call& c) {
  const AttentionParams& p = c.params;
  ROPE_TRY(check_pointer(c.d.backend, "q_indptr", c.d.q_indptr, 4));
  ROPE_TRY(check_pointer(c.d.backend, "k_indptr", c.d.k_indptr, 4));
  if (!c.ragged || c.d.backend != ROPE_BACKEND_CPU) return ROPE_OK;
  ROPE_TRY(check_indptr("q_indptr", p.q_indptr, p.sequences, p.q_total, p.q_tokens));
  return c.d.k_indptr ? check_indptr("k_indptr", p.k_indptr, p.sequences, p.k_total, p.k_tokens) : ROPE_OK;
}

namespace {

rope_status attention(const Desc* desc) {
  Call c = {};
  const Operations* operations;
  ROPE_TRY(read_shape(desc, &c, &operations));
  const Desc& d = c.d;
  AttentionParams& p = c.params;
  Execution execution;
  const Threads threads = {d.num_threads, d.parallel_for, d.parallel_context};
  ROPE_TRY(read_execution(d.backend, d.rotation ? ROPE_FLAG_PDL : 0, d.stream, threads, &execution));
  rope_apply_desc turn;
  if (d.rotation) ROPE_TRY(read_rotation(c, &turn));
  if (c.q_rows == 0) return ROPE_OK;
  ApplyCall rotation;
  bool on_the_way = d.backend == ROPE_BACKEND_CUDA && c.turns_q && !d.q_out.data;
  if (on_the_way) {
    ROPE_TRY(read_call(&turn, &rotation));
    on_the_way = has_query_rows(rotation);
  }
  const Workspace w = workspace_of(c);
  ROPE_TRY(check_workspace(c, w));

  enum { kQ, kK, kV, kO, kQOut, kKOut, kCount };
  Memory all[kCount] = {};
  ROPE_TRY(read_memory(d, "q", d.q, c.q, &all[kQ]));
  ROPE_TRY(read_memory(d, "o", d.o, c.o, &all[kO]));
  if (c.k_rows) {
    ROPE_TRY(read_memory(d, "k", d.k, c.k, &all[kK]));
    ROPE_TRY(read_memory(d, "v", d.v, c.v, &all[kV]));
  }
  const rope_attention_tensor q_out = place_of(d.q_out, d, w.q), k_out = place_of(d.k_out, d, w.k);
  const bool passes_q = c.turns_q && !on_the_way;
  if (passes_q) ROPE_TRY(read_memory(d, "q_out", q_out, c.q, &all[kQOut]));
  if (c.turns_k) ROPE_TRY(read_memory(d, "k_out", k_out, c.k, &all[kKOut]));
  Memory others[kCount];
  std::copy(all, all + kCount, others);
  others[kO].name = nullptr;
  ROPE_TRY(check_written(all[kO], others, kCount));
  for (const int kept : {kQOut, kKOut})  // beside what rope_apply compares
    if (all[kept].name) ROPE_TRY(check_written(all[kept], &all[kV], 1));
  const int64_t lse_bytes = int64_t(4) * d.num_q_heads * c.q_rows;
  ROPE_TRY(check_pointer(d.backend, "lse", d.lse, 4));
  ROPE_TRY(check_pointer(d.backend, "sinks", d.sinks, 4));
  ROPE_TRY(check_block("lse", d.lse, lse_bytes, all, kCount));
  if (!d.q_out.data) all[kQOut].name = nullptr;  // in the workspace itself
  if (!d.k_out.data) all[kKOut].name = nullptr;
  ROPE_TRY(check_block("workspace", d.workspace, w.bytes, all, kCount));
  ROPE_TRY(check_sequences(c));

  p.q = tensor_of(all[passes_q ? kQOut : kQ].rows);
  p.k = tensor_of(all[c.turns_k ? kKOut : kK].rows);
  p.v = tensor_of(all[kV].rows);
  p.o = tensor_of(all[kO].rows);
  p.lse = d.lse;
  p.sinks = d.sinks;
  p.workspace = d.workspace;
  if (d.rotation) {
    p.asks = true;  // before anything is written
    ROPE_TRY(status_of(operations->attention(p, {}, execution)));
    p.asks = false;
  }
  if (passes_q) set_turn(d.q, q_out, &turn.q, &turn.q_steps, &turn.q_out, &turn.q_out_steps);
  if (c.turns_k) set_turn(d.k, k_out, &turn.k, &turn.k_steps, &turn.k_out, &turn.k_out_steps);
  if (on_the_way) {
    ROPE_TRY(build_query_rows(rotation, c.ragged ? 0 : d.num_q_tokens, static_cast<char*>(d.workspace) + w.q, &p.turn));
    turn.flags = ROPE_FLAG_PDL;
  }
  if (passes_q || c.turns_k) ROPE_TRY(rope_apply(&turn));
  return status_of(operations->attention(p, {}, execution));
}

rope_status measure_workspace(const Desc* desc, int64_t* bytes) {
  Call c = {};
  const Operations* operations;
  if (!bytes) return fail(ROPE_ERR_INVALID_ARG, "bytes: NULL");
  ROPE_TRY(read_shape(desc, &c, &operations));
  *bytes = workspace_of(c).bytes;
  return ROPE_OK;
}

}  // namespace
}  // namespace rope::api

extern "C" {

void rope_attention_desc_init(rope_attention_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_attention_workspace(const rope_attention_desc* desc, int64_t* bytes) {
  return rope::api::measure_workspace(desc, bytes);
}

rope_status rope_attention(const rope_attention_desc* desc) { return rope::api::attention(desc); }

}  // extern "C"
