// rope_decode: the descriptor checked once for both backends, then what is compiled for it.
#include "roperope/decode.h"

#include <cmath>

#include "../math/codes.h"
#include "options.h"

namespace rope::api {
namespace {

using Desc = rope_decode_desc;

static_assert(ROPE_MAX_DECODE_TOKENS == kMaxDecodeTokens && ROPE_DECODE_SPLIT == kDecodeSplit &&
              ROPE_MAX_DECODE_LENGTH == kMaxDecodeLength && 2 * kFewPairs >= ROPE_MAX_ATTENTION_HEAD_DIM);

constexpr int64_t kWorkspaceAlignment = 256;  // bytes

rope_status read_window(const Desc& d, DecodeParams* p) {
  if (d.flags & ~ROPE_ATTENTION_WINDOW)
    return fail(ROPE_ERR_INVALID_ARG, "flags: %#x has bits other than ROPE_ATTENTION_WINDOW (2)", d.flags);
  p->window_left = kNoWindow;
  if (d.flags & ROPE_ATTENTION_WINDOW) {
    ROPE_TRY(check_range("window_left", d.window_left, kNoWindow, INT32_MAX));
    p->window_left = d.window_left;
  } else if (d.window_left) {
    return fail(ROPE_ERR_INVALID_ARG, "window_left: %d, must be 0 without ROPE_ATTENTION_WINDOW", d.window_left);
  }
  return ROPE_OK;
}

rope_status read_page_table(const Desc& d, CacheMap* c) {
  const rope_cache& from = d.cache;
  ROPE_TRY(check_range("cache.kind", from.kind, ROPE_CACHE_PAGES, ROPE_CACHE_PAGES));
  ROPE_TRY(check_range("cache.page_size", from.page_size, 1, ROPE_MAX_PAGE_SIZE));
  ROPE_TRY(check_range("cache.num_pages", from.num_pages, 1, INT32_MAX));
  if (from.page_indptr && from.page_table_stride)
    return fail(ROPE_ERR_INVALID_ARG, "cache.page_table_stride: not allowed with page_indptr");
  if (!from.page_indptr) {
    ROPE_TRY(check_range("cache.page_table_stride", from.page_table_stride, 1, INT32_MAX));
    const int64_t most = from.page_table_stride * from.page_size;
    if (d.max_length > most)
      return fail(ROPE_ERR_INVALID_ARG, "max_length: %d, must be at most page_table_stride * page_size (%lld)",
                  d.max_length, static_cast<long long>(most));
  }
  const bool shifts = (from.page_size & (from.page_size - 1)) == 0;
  *c = {};
  c->page_size = from.page_size;
  c->page_shift = shifts ? __builtin_ctz(unsigned(from.page_size)) : -1;
  c->num_pages = from.num_pages;
  c->page_table = from.page_table;
  c->page_indptr = from.page_indptr;
  c->page_table_stride = from.page_table_stride;
  return ROPE_OK;
}

rope_status read_stored(const char* name, const rope_quantize& q, const Desc& d, OutType* type) {
  *type = q.out_dtype == ROPE_OUT_F32 + d.dtype ? OutType::kSame : OutType(q.out_dtype);
  if (*type != OutType::kSame && largest(*type) == 0.0f)
    return fail(ROPE_ERR_UNSUPPORTED, "%s.out_dtype: %d, must be ROPE_OUT_SAME (0), fp8 or int8 (1 to 3)", name,
                q.out_dtype);
  if (*type == OutType::kSame && (q.scale_kind || q.scale != 0 || q.scales))
    return fail(ROPE_ERR_INVALID_ARG, "%s: a scale is not allowed with ROPE_OUT_SAME", name);
  if (q.scale_kind != ROPE_SCALE_HOST && q.scale_kind != ROPE_SCALE_TENSOR)
    return fail(ROPE_ERR_UNSUPPORTED, "%s.scale_kind: %d, must be ROPE_SCALE_HOST (0) or ROPE_SCALE_TENSOR (1)", name,
                q.scale_kind);
  return check_range("reserved", q.reserved, 0, 0);
}

// All but memory.
rope_status read_shape(const Desc* desc, Desc* d, DecodeParams* p, const Operations** operations) {
  ROPE_TRY(read_descriptor(desc, offsetof(Desc, lse), "rope_decode_desc", d));
  ROPE_TRY(find_operations(d->backend, d->dtype, ROPE_LAYOUT_NEOX, ROPE_ANGLE_EXACT, operations));
  ROPE_TRY(check_range("reserved", d->reserved, 0, 0));
  ROPE_TRY(check_range("head_dim", d->head_dim, 2, ROPE_MAX_ATTENTION_HEAD_DIM));
  ROPE_TRY(check_range("num_k_heads", d->num_k_heads, 1, ROPE_MAX_HEADS));
  ROPE_TRY(check_range("num_q_heads", d->num_q_heads, 1, ROPE_MAX_HEADS));
  if (d->num_q_heads % d->num_k_heads)
    return fail(ROPE_ERR_INVALID_ARG, "num_q_heads: %d, must be a multiple of num_k_heads (%d)", d->num_q_heads,
                d->num_k_heads);
  ROPE_TRY(check_range("num_q_tokens", d->num_q_tokens, 1, ROPE_MAX_DECODE_TOKENS));
  ROPE_TRY(check_range("num_requests", d->num_requests, 0, INT32_MAX / d->num_q_tokens));
  ROPE_TRY(check_range("max_length", d->max_length, 0, ROPE_MAX_DECODE_LENGTH));
  ROPE_TRY(check_range("split", d->split, 0, ROPE_MAX_DECODE_LENGTH));
  if (d->split % ROPE_DECODE_SPLIT)
    return fail(ROPE_ERR_INVALID_ARG, "split: %d, must be a multiple of %d", d->split, ROPE_DECODE_SPLIT);
  ROPE_TRY(check_positive("scale", d->scale));
  ROPE_TRY(check_positive("softcap", d->softcap));
  ROPE_TRY(read_window(*d, p));
  ROPE_TRY(read_page_table(*d, &p->cache));
  OutType of_v;
  ROPE_TRY(read_stored("k_quantize", d->k_quantize, *d, &p->type));
  ROPE_TRY(read_stored("v_quantize", d->v_quantize, *d, &of_v));
  if (of_v != p->type)
    return fail(ROPE_ERR_UNSUPPORTED, "v_quantize.out_dtype: %d, must be that of k_quantize (%d)",
                d->v_quantize.out_dtype, d->k_quantize.out_dtype);
  p->max_length = d->max_length;
  p->requests = d->num_requests;
  p->q_tokens = d->num_q_tokens;
  p->q_heads = d->num_q_heads;
  p->k_heads = d->num_k_heads;
  p->head_dim = d->head_dim;
  p->scale = d->scale > 0 ? d->scale : float(1 / std::sqrt(double(d->head_dim)));
  p->softcap = d->softcap;
  p->split = d->split;
  return ROPE_OK;
}

// What turns q. `r` is the caller's, with the shape of the call.
rope_status read_rotation(const Desc& d, rope_apply_desc* r, DecodeTurn* t) {
  ROPE_TRY(read_descriptor(d.rotation, offsetof(rope_apply_desc, attention_factor), "rotation", r));
  const struct {
    const char* name;
    bool given;
  } rest[] = {{"flags", r->flags != 0},
              {"q", r->q.data || r->q_out.data || r->q_nope.data},
              {"k", r->k.data || r->k_out.data || r->k_nope.data},
              {"v", r->v.data != nullptr},
              {"norm", r->norm.q_weight || r->norm.k_weight},
              {"cache", r->cache.kind != 0},
              {"q_quantize", r->q_quantize.out_dtype != 0},
              {"out_layout", r->out_layout != 0},
              {"angle", r->angle == ROPE_ANGLE_COS_SIN},
              {"indptr", r->indptr != nullptr},
              {"position_dtype", r->position_dtype == ROPE_INDEX_FLOAT32},
              {"sections", r->sections.num_streams != 0},
              {"positions_from", r->positions_from != nullptr},
              {"position_stride", r->position_stride || r->position_sequence_stride || r->sequence_length},
              {"frequency_sets", r->frequency_sets.words != nullptr},
              {"num_blocks", r->num_blocks > 1},
              {"xpos", r->xpos.scale_base != 0},
              {"skip_kind", r->skip_kind != ROPE_SKIP_DEFAULT}};
  for (const auto& x : rest)
    if (x.given)
      return fail(ROPE_ERR_UNSUPPORTED, "rotation.%s: not in a rotation of rope_decode; rotate q by rope_apply",
                  x.name);
  ROPE_TRY(check_range("rotation.layout", r->layout, ROPE_LAYOUT_NEOX, ROPE_LAYOUT_GPTJ));
  ROPE_TRY(check_range("rotation.angle", r->angle, ROPE_ANGLE_EXACT, ROPE_ANGLE_FP32));
  if (!r->rotary_dim) r->rotary_dim = d.head_dim;
  if (r->rotary_dim < 2 || r->rotary_dim % 2 || r->rotary_dim > d.head_dim)
    return fail(ROPE_ERR_INVALID_ARG, "rotation.rotary_dim: %d, must be even, at least 2, at most head_dim (%d)",
                r->rotary_dim, d.head_dim);
  ROPE_TRY(check_range("rotation.rotary_offset", r->rotary_offset, 0, d.head_dim - r->rotary_dim));
  ROPE_TRY(read_attention_factor(&r->attention_factor));
  if (!r->frequencies) return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL, must be what rope_frequencies filled");
  r->backend = d.backend;
  r->num_tokens = int64_t(d.num_requests) * d.num_q_tokens;
  PipelineCall call;
  ROPE_TRY(read_positions(*r, &call));
  *t = {r->rotary_dim, r->rotary_offset, Layout(r->layout), Angle(r->angle), r->attention_factor, call.positions};
  return ROPE_OK;
}

rope_status read_tensor(const Desc& d, const char* name, const rope_tensor& x, Rows* rows, DecodeTensor* t) {
  const Shape shape = {1, int64_t(d.num_requests) * d.num_q_tokens, d.num_q_heads, d.head_dim};
  ROPE_TRY(read_rows(name, x, {0, 0}, shape, dtype_bytes(d.dtype), rows));
  ROPE_TRY(check_device_pointer(d.backend, name, x.data));
  *t = {const_cast<char*>(rows->data), rows->token.stride, rows->head.stride};
  return ROPE_OK;
}

rope_status read_pages(const Desc& d, const char* name, const char* scale_name, const rope_cache_tensor& x,
                       const rope_quantize& q, OutType type, Rows* rows, DecodePages* pages) {
  const int64_t bytes = type == OutType::kSame ? dtype_bytes(d.dtype) : 1;
  ROPE_TRY(require_pointer(d.backend, name, x.data, bytes, "by rope_decode"));
  for (const int64_t stride : {x.page_stride, x.entry_stride, x.head_stride})
    if (stride < d.head_dim || !is_addressable(stride, d.cache.num_pages * d.cache.page_size * bytes))
      return fail(ROPE_ERR_INVALID_ARG, "%s: strides %lld, %lld, %lld, each must be at least a row of a head, %d", name,
                  static_cast<long long>(x.page_stride), static_cast<long long>(x.entry_stride),
                  static_cast<long long>(x.head_stride), d.head_dim);
  *rows = {x.data,
           {d.cache.num_pages, x.page_stride * bytes},
           {d.cache.page_size, x.entry_stride * bytes},
           {d.num_k_heads, x.head_stride * bytes},
           {1, 0},
           d.head_dim * bytes};
  if (q.scale_kind == ROPE_SCALE_TENSOR)
    ROPE_TRY(require_pointer(d.backend, scale_name, q.scales, 4, "with ROPE_SCALE_TENSOR"));
  if (!(q.scale >= 0) || !std::isfinite(q.scale))
    return fail(ROPE_ERR_INVALID_ARG, "%s: %g, must be above 0 and finite", scale_name, double(q.scale));
  *pages = {rows->data, rows->sequence.stride,       rows->token.stride, rows->head.stride,
            q.scales,   q.scale > 0 ? q.scale : 1.0f};
  return ROPE_OK;
}

rope_status check_apart(const Rows& o, const char* name, const void* data, int64_t bytes) {
  if (!data || are_apart(o, data, bytes)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps o in memory, must be memory that is apart", name);
}

rope_status read_memory(const Desc& d, DecodeParams* p) {
  Rows q, o, k, v;
  ROPE_TRY(read_tensor(d, "q", d.q, &q, &p->q));
  ROPE_TRY(read_tensor(d, "o", d.o, &o, &p->o));
  ROPE_TRY(read_pages(d, "cache.k", "k_quantize.scale", d.cache.k, d.k_quantize, p->type, &k, &p->k));
  ROPE_TRY(read_pages(d, "cache.v", "v_quantize.scale", d.cache.v, d.v_quantize, p->type, &v, &p->v));
  ROPE_TRY(require_pointer(d.backend, "cache.page_table", d.cache.page_table, 4, "by rope_decode"));
  ROPE_TRY(check_pointer(d.backend, "cache.page_indptr", d.cache.page_indptr, 4));
  ROPE_TRY(require_pointer(d.backend, "lengths", d.lengths, 4, "by rope_decode"));
  ROPE_TRY(check_pointer(d.backend, "lse", d.lse, 4));
  ROPE_TRY(check_pointer(d.backend, "sinks", d.sinks, 4));
  if (!rows_are_distinct(o))
    return fail(ROPE_ERR_INVALID_ARG, "o: strides overlap, every row that is written must be its own memory");
  const struct {
    const char* name;
    const Rows& rows;
  } read[] = {{"q", q}, {"cache.k", k}, {"cache.v", v}};
  for (const auto& x : read)
    if (!are_apart(o, x.rows))
      return fail(ROPE_ERR_INVALID_ARG, "o: overlaps %s in memory, must be memory that is apart", x.name);
  const int64_t requests = d.num_requests;
  ROPE_TRY(check_apart(o, "lse", d.lse, requests * d.num_q_tokens * d.num_q_heads * 4));
  ROPE_TRY(check_apart(o, "lengths", d.lengths, requests * 4));
  ROPE_TRY(check_apart(o, "sinks", d.sinks, int64_t(4) * d.num_q_heads));
  ROPE_TRY(check_apart(o, "workspace", d.workspace, d.workspace_bytes));
  p->lengths = d.lengths;
  p->lse = d.lse;
  p->sinks = d.sinks;
  return ROPE_OK;
}

// On the CPU, where they can be read: lengths, and the pages of what they count.
rope_status check_requests(const Desc& d, const DecodeParams& p) {
  if (d.backend != ROPE_BACKEND_CPU) return ROPE_OK;
  for (int32_t r = 0; r < p.requests; ++r) {
    const int32_t length = p.lengths[r];
    if (length < 0 || length > p.max_length)
      return fail(ROPE_ERR_INVALID_ARG, "lengths[%d]: %d, must be 0 to max_length (%d)", r, length, p.max_length);
    for (int32_t n = seen_keys(p, length, 0).low; n < length; n += p.cache.page_size - n % p.cache.page_size) {
      CachePlace place;
      if (!cache_place<true>(p.cache, {n, r}, false, &place))
        return fail(ROPE_ERR_INVALID_ARG, "page_table: key %d of request %d has no page of the %lld", n, r,
                    static_cast<long long>(p.cache.num_pages));
    }
  }
  return ROPE_OK;
}

rope_status needed_workspace(const Desc& d, const Operations& operations, DecodeParams p, int64_t* bytes) {
  *bytes = 0;
  if (d.backend == ROPE_BACKEND_CPU) return ROPE_OK;
  p.needs = bytes;
  return status_of(operations.decode(p, {}, {}));
}

rope_status decode(const Desc* desc) {
  Desc d;
  DecodeParams p = {};
  const Operations* operations;
  ROPE_TRY(read_shape(desc, &d, &p, &operations));
  Execution execution;
  ROPE_TRY(read_execution(d.backend, 0, d.stream, {d.num_threads, d.parallel_for, d.parallel_context}, &execution));
  rope_apply_desc rotation = {};
  if (d.rotation) ROPE_TRY(read_rotation(d, &rotation, &p.turn));
  if (d.num_requests == 0) return ROPE_OK;
  ROPE_TRY(read_memory(d, &p));
  int64_t bytes;
  ROPE_TRY(needed_workspace(d, *operations, p, &bytes));
  if (d.workspace_bytes < bytes)
    return fail(ROPE_ERR_INVALID_ARG, "workspace_bytes: %lld, must be at least %lld (rope_decode_workspace)",
                static_cast<long long>(d.workspace_bytes), static_cast<long long>(bytes));
  if (bytes) {
    ROPE_TRY(require_pointer(d.backend, "workspace", d.workspace, kWorkspaceAlignment, "by rope_decode_workspace"));
  }
  p.workspace = d.workspace;
  p.workspace_bytes = d.workspace_bytes;
  ROPE_TRY(check_requests(d, p));
  return status_of(operations->decode(p, {rotation.frequencies, nullptr}, execution));
}

rope_status measure_workspace(const Desc* desc, int64_t* bytes) {
  Desc d;
  DecodeParams p = {};
  const Operations* operations;
  if (!bytes) return fail(ROPE_ERR_INVALID_ARG, "bytes: NULL");
  ROPE_TRY(read_shape(desc, &d, &p, &operations));
  return needed_workspace(d, *operations, p, bytes);
}

}  // namespace
}  // namespace rope::api

extern "C" {

void rope_decode_desc_init(rope_decode_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_decode_workspace(const rope_decode_desc* desc, int64_t* bytes) {
  return rope::api::measure_workspace(desc, bytes);
}

rope_status rope_decode(const rope_decode_desc* desc) { return rope::api::decode(desc); }

}  // extern "C"
