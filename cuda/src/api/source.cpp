#include "source.h"

#include <algorithm>
#include <cmath>

#include "groups.h"

namespace rope::api {
namespace {

rope_status read_quantize(const rope_apply_desc& d, const Source& s, Quantize* q) {
  const rope_quantize& from = *s.quantize;
  const char* name = s.names->quantize;
  ROPE_TRY(check_out_dtype(name, from.out_dtype));
  if (from.out_dtype == ROPE_OUT_SAME || is_dtype(OutType(from.out_dtype))) {
    if (from.scale_kind || from.scale != 0 || from.scales)
      return fail(ROPE_ERR_INVALID_ARG, "%s: scales are only allowed with a quantised out_dtype", name);
    if (from.out_dtype != ROPE_OUT_SAME && (d.flags & ROPE_FLAG_IN_CACHE))
      return fail(ROPE_ERR_UNSUPPORTED, "%s.out_dtype: a dtype, with ROPE_FLAG_IN_CACHE the descriptor's dtype says it",
                  name);
    const bool same = from.out_dtype == ROPE_OUT_F32 + s.dtype;
    *q = {same ? OutType::kSame : OutType(from.out_dtype), ScaleKind::kHost, 1.0f, 1.0f, nullptr};
    return ROPE_OK;
  }
  ROPE_TRY(check_range(name, from.scale_kind, ROPE_SCALE_HOST, ROPE_SCALE_GROUP));
  if (has_groups(from)) {
    if (from.scale != 0 || from.scales)
      return fail(ROPE_ERR_INVALID_ARG, "%s: scale and scales are not allowed with groups and blocks", name);
    *q = {OutType(from.out_dtype), ScaleKind::kGroup, 1.0f, 1.0f, nullptr};
    return ROPE_OK;
  }
  const float scale = from.scale == 0 ? 1.0f : from.scale;
  *q = {OutType(from.out_dtype), ScaleKind(from.scale_kind), 1.0f / scale, scale, from.scales};
  if (from.scale_kind == ROPE_SCALE_HOST) {
    if (from.scales) return fail(ROPE_ERR_INVALID_ARG, "%s.scales: not allowed with ROPE_SCALE_HOST", name);
    if (!(scale > 0) || !std::isfinite(scale) || !std::isfinite(q->factor))
      return fail(ROPE_ERR_INVALID_ARG, "%s.scale: %g, must be above 0 and finite, as must its reciprocal", name,
                  double(from.scale));
    return ROPE_OK;
  }
  if (from.scale != 0) return fail(ROPE_ERR_INVALID_ARG, "%s.scale: only allowed with ROPE_SCALE_HOST", name);
  return require_pointer(d.backend, name, from.scales, 4, "as scales with this scale_kind");
}

int64_t gap_of(const Rows& x, int64_t element_bytes) {
  return x.element.count > 1 ? x.element.stride - element_bytes : 0;
}

// units: strides and the row count them, of `element_bytes` each.
rope_status read_cache_rows(const rope_apply_desc& d, Source& s, int64_t units, int64_t element_bytes,
                            PipelineOperand* o) {
  const rope_cache_tensor& c = *s.cache;
  ROPE_TRY(require_pointer(d.backend, s.names->cache, c.data, element_bytes, "with a cache"));
  const struct {
    const char* what;
    int64_t stride, count;
  } dims[] = {{"page", c.page_stride, d.cache.num_pages},
              {"entry", c.entry_stride, d.cache.page_size},
              {"head", c.head_stride, s.heads}};
  for (const auto& dim : dims)
    if (dim.count > 1 && (dim.stride < units || !is_addressable(dim.stride, dim.count)))
      return fail(ROPE_ERR_INVALID_ARG, "%s.%s_stride: %lld, must be at least a row, %lld %s", s.names->cache, dim.what,
                  static_cast<long long>(dim.stride), static_cast<long long>(units),
                  units == s.dim ? "elements" : "bytes");
  o->out = static_cast<char*>(c.data);
  o->out_page_stride = c.page_stride * element_bytes;
  o->out_token_stride = c.entry_stride * element_bytes;
  o->out_head_stride = c.head_stride * element_bytes;
  o->cached = true;
  int64_t end = units;
  for (const auto& dim : dims) end += (dim.count - 1) * (dim.count > 1 ? dim.stride : 0);
  s.cached = true;
  s.written_name = s.names->cache;
  s.written = {o->out, {1, 0}, {1, 0}, {1, 0}, {1, 0}, end * element_bytes};
  s.written_row = units * element_bytes;
  return ROPE_OK;
}

// Where s is written outside a cache: `out`, or in place.
rope_status read_written(const rope_apply_desc& d, const Source& s, const Shape& shape, bool in_place_allowed,
                         int64_t element_bytes, Rows* out, bool* in_place) {
  if (s.out->data) {
    ROPE_TRY(read_rows(s.names->out, *s.out, *s.out_steps, shape, element_bytes, out));
    ROPE_TRY(check_device_pointer(d.backend, s.names->out, s.out->data));
  } else {
    *out = s.read;
  }
  *in_place = in_place_allowed && same_rows(s.read, *out);
  const char* name = *in_place ? s.names->in : s.names->out;
  if (!rows_are_distinct(*out))
    return fail(ROPE_ERR_INVALID_ARG,
                "%s: strides overlap (token %lld, head %lld, row %lld bytes), every row that is written must be its "
                "own memory",
                name, static_cast<long long>(out->token.stride), static_cast<long long>(out->head.stride),
                static_cast<long long>(out->row));
  return *in_place ? ROPE_OK : check_apart(s.names->out, *out, s.names->in, s.read);
}

// Whether a call's data can leave a token alone. Where it cannot, there is nothing to copy, and no rare call.
bool may_skip(const rope_apply_desc& d) {
  return (d.positions && d.skip_kind != ROPE_SKIP_NONE) || d.indptr || d.angle == ROPE_ANGLE_COS_SIN ||
         d.frequency_sets.words || d.cache.skips_tokens;
}

// Where s is written that does not go into a cache.
rope_status read_output(const rope_apply_desc& d, const PipelineCall& p, Source& s, const Shape& shape,
                        int64_t element_bytes, PipelineOperand* o, OperandExtras* x) {
  const bool other = o->quantize.type != OutType::kSame, moved = s.rotated && p.out_layout != p.layout;
  if (!s.out->data && (other || moved || !(s.rotated || s.weight)))
    return fail(ROPE_ERR_INVALID_ARG, "%s: NULL, required %s", s.names->out,
                other   ? "where the output is quantised or of another dtype"
                : moved ? "with another out_layout"
                        : "for a tensor that is neither rotated nor normalised, without a cache");
  bool in_place;
  ROPE_TRY(read_written(d, s, shape, !other && !moved, element_bytes, &s.written, &in_place));
  if (in_place && (d.flags & ROPE_FLAG_NO_ROTATION) && !s.weight)
    return fail(ROPE_ERR_INVALID_ARG, "%s: is %s, and nothing is left to do with ROPE_FLAG_NO_ROTATION", s.names->out,
                s.names->in);
  s.written_name = in_place ? s.names->in : s.names->out;
  o->out = const_cast<char*>(s.written.data);
  o->out_token_stride = s.written.token.stride;
  o->out_head_stride = s.written.head.stride;
  o->out_page_stride = 0;
  o->cached = false;
  o->whole = !in_place || s.weight;
  x->out_sequence_stride = s.written.sequence.stride;
  x->out_gap = gap_of(s.written, element_bytes);
  if (x->out_gap && o->quantize.kind == ScaleKind::kGroup)
    return fail(ROPE_ERR_UNSUPPORTED, "%s: elements apart, must be neighbours in groups and blocks", s.names->out);
  x->copies = d.copy_skipped && may_skip(d) && !in_place && !other;
  return ROPE_OK;
}

// Where s is stored beside the cache.
rope_status read_kept(const rope_apply_desc& d, const PipelineCall& p, Source& s, const Shape& shape,
                      OperandExtras* x) {
  if (!s.out->data) return ROPE_OK;
  const bool moved = s.rotated && p.out_layout != p.layout;
  const int64_t bytes = dtype_bytes(s.dtype);
  bool in_place;
  ROPE_TRY(read_written(d, s, shape, (s.rotated || s.weight) && !moved, bytes, &s.kept_rows, &in_place));
  ROPE_TRY(check_apart(s.names->cache, s.written, s.names->out, s.kept_rows));
  s.kept = true;
  x->kept = const_cast<char*>(s.kept_rows.data);
  x->kept_sequence_stride = s.kept_rows.sequence.stride;
  x->kept_token_stride = s.kept_rows.token.stride;
  x->kept_head_stride = s.kept_rows.head.stride;
  x->kept_gap = gap_of(s.kept_rows, bytes);
  x->kept_whole = !in_place || s.weight;
  x->copies = d.copy_skipped && may_skip(d) && !in_place;
  return ROPE_OK;
}

}  // namespace

rope_status check_apart(const char* x_name, const Rows& x, const char* y_name, const Rows& y) {
  if (are_apart(x, y)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG,
              "%s: overlaps %s in memory; pass the same pointer and strides to work in place, or memory that is apart",
              x_name, y_name);
}

rope_status read_operand(const rope_apply_desc& d, const PipelineCall& p, Source& s, PipelineOperand* o,
                         OperandExtras* x, Groups* groups) {
  const bool in_cache = d.flags & ROPE_FLAG_IN_CACHE;
  *x = {};
  *groups = {};
  const int64_t bytes = dtype_bytes(s.dtype), sequences = d.sequence_length ? d.num_tokens / d.sequence_length : 1;
  const Shape shape = {sequences, d.sequence_length ? d.sequence_length : d.num_tokens, s.heads, s.dim};
  ROPE_TRY(check_range(s.names->heads, s.heads, 1, ROPE_MAX_HEADS));
  ROPE_TRY(check_range(s.names->dim, s.dim, 1, s.rotated ? ROPE_MAX_HEAD_DIM : ROPE_MAX_FUSED_HEAD_DIM));
  if (in_cache) {
    s.read = {};
  } else {
    ROPE_TRY(read_rows(s.names->in, *s.in, *s.in_steps, shape, bytes, &s.read));
    ROPE_TRY(check_device_pointer(d.backend, s.names->in, s.in->data));
  }
  ROPE_TRY(read_quantize(d, s, &o->quantize));
  const bool cached = s.cache && d.cache.kind != ROPE_CACHE_NONE;
  const GroupedTensor grouped{s.names->quantize, s.names->groups, *s.quantize, *s.groups, s.heads, s.dim, cached};
  ROPE_TRY(read_groups(d, grouped, groups));
  s.scaled = groups->scales;
  if (s.scaled) {
    s.scales = scale_rows(d, grouped, *groups);
    s.scales_row = scale_row_bytes(grouped, *groups);
  }
  o->in = s.read.data;
  o->in_token_stride = s.read.token.stride;
  o->in_head_stride = s.read.head.stride;
  o->weight = s.weight;
  o->heads = s.heads;
  o->dim = s.dim;
  o->rotated = s.rotated;
  o->xpos_sign = int8_t(d.xpos.scale_base != 0 ? s.xpos_sign : 0);
  o->whole = true;
  x->in_sequence_stride = s.read.sequence.stride;
  x->in_gap = gap_of(s.read, bytes);
  x->twin = s.dtype != d.dtype;
  // What strides count: elements, of fewer than 8 bits or in blocks bytes.
  const int32_t out_bytes = std::max(int32_t(stored_bytes(o->quantize.type, bytes, 1)), 1);
  const int32_t units = int32_t(stored_bytes(o->quantize.type, bytes, s.dim)) / out_bytes;
  if (o->quantize.kind == ScaleKind::kGroup && s.rotated && p.out_layout != p.layout)
    return fail(ROPE_ERR_UNSUPPORTED, "out_layout: must be that of layout with groups and blocks of %s",
                s.names->quantize);
  if (!cached) return read_output(d, p, s, {shape.sequences, shape.tokens, s.heads, units}, out_bytes, o, x);
  ROPE_TRY(read_cache_rows(d, s, units, out_bytes, o));
  if (!in_cache) {
    ROPE_TRY(read_kept(d, p, s, shape, x));
    return check_apart(s.names->cache, s.written, s.names->in, s.read);
  }
  o->whole = o->quantize.kind == ScaleKind::kDynamic || o->quantize.kind == ScaleKind::kGroup;
  s.read = s.written;
  return ROPE_OK;
}

}  // namespace rope::api
