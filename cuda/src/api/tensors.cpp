#include "tensors.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "groups.h"

namespace rope::api {
namespace {

static_assert(kMaxPipelineDim == ROPE_MAX_FUSED_HEAD_DIM && kMaxRotaryDim == ROPE_MAX_ROTARY_DIM);

// What the fields of a tensor are called.
struct Names {
  const char *in, *out, *cache, *quantize, *groups, *heads, *dim;
};

constexpr Names kQ = {"q", "q_out", "", "q_quantize", "q_groups", "num_q_heads", "head_dim"},
                kK = {"k", "k_out", "cache.k", "k_quantize", "k_groups", "num_k_heads", "head_dim"},
                kV = {"v", "v_out", "cache.v", "v_quantize", "v_groups", "num_v_heads", "v_head_dim"},
                kQNope = {"q_nope", "q_nope_out", "", "q_quantize", "q_groups", "num_q_heads", "q_nope_dim"};

// What the descriptor has of a tensor.
struct Tensor {
  const Names* names;
  const rope_tensor *in, *out;
  const rope_quantize* quantize;
  const rope_groups* groups;
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
  int64_t written_row;  // bytes
  Rows scales;          // of groups
  int64_t scales_row;   // bytes of them for a row
};

// Memory that is read beside the tensors.
struct Extent {
  const char* name;
  const void* data;  // null: there is none
  int64_t bytes;
};

rope_status read_quantize(const rope_apply_desc& d, const Source& s, Quantize* q) {
  const rope_quantize& from = *s.quantize;
  const char* name = s.names->quantize;
  ROPE_TRY(check_out_dtype(name, from.out_dtype));
  if (from.out_dtype == ROPE_OUT_SAME) {
    if (from.scale_kind || from.scale != 0 || from.scales)
      return fail(ROPE_ERR_INVALID_ARG, "%s: scales are only allowed with a quantised out_dtype", name);
    *q = {OutType::kSame, ScaleKind::kHost, 1.0f, 1.0f, nullptr};
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

rope_status check_apart(const char* x_name, const Rows& x, const char* y_name, const Rows& y) {
  if (are_apart(x, y)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG,
              "%s: overlaps %s in memory; pass the same pointer and strides to work in place, or memory that is apart",
              x_name, y_name);
}

rope_status check_apart(const char* written_name, const Rows& written, const Extent& read) {
  if (!read.data || are_apart(written, read.data, read.bytes)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s in memory, which is written; must be memory that is apart",
              read.name, written_name);
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
    if (dim.count > 1 && (dim.stride < units || dim.stride > INT64_MAX / 64 / dim.count))
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
  s.written = {o->out, 1, 1, 0, 0, end * element_bytes};
  s.written_row = units * element_bytes;
  return ROPE_OK;
}

// Where s is written that does not go into a cache.
rope_status read_output(const rope_apply_desc& d, Source& s, bool quantised, int64_t units, int64_t element_bytes,
                        PipelineOperand* o) {
  const Rows& in = s.read;
  Rows& out = s.written;
  if (s.out->data) {
    ROPE_TRY(read_rows(s.names->out, *s.out, d.num_tokens, s.heads, units, element_bytes, &out));
    ROPE_TRY(check_device_pointer(d.backend, s.names->out, s.out->data));
  } else if (quantised || !s.rotated) {
    return fail(ROPE_ERR_INVALID_ARG, "%s: NULL, required %s", s.names->out,
                quantised ? "where the output is quantised" : "for a tensor that is not rotated, without a cache");
  } else {
    out = in;
  }
  const bool in_place = !quantised && same_rows(in, out);
  s.written_name = in_place ? s.names->in : s.names->out;
  if (!rows_are_distinct(out))
    return fail(ROPE_ERR_INVALID_ARG,
                "%s: strides overlap (token %lld, head %lld, row %lld bytes), every row that is written must be its "
                "own memory",
                s.written_name, static_cast<long long>(out.token_stride), static_cast<long long>(out.head_stride),
                static_cast<long long>(out.row));
  if (!in_place) ROPE_TRY(check_apart(s.names->out, out, s.names->in, in));
  o->out = const_cast<char*>(out.data);
  o->out_token_stride = out.token_stride;
  o->out_head_stride = out.head_stride;
  o->whole = !in_place || s.weight;
  return ROPE_OK;
}

rope_status read_operand(const rope_apply_desc& d, Source& s, PipelineOperand* o, Groups* groups) {
  const bool in_cache = d.flags & ROPE_FLAG_IN_CACHE;
  const int64_t bytes = dtype_bytes(d.dtype);
  ROPE_TRY(check_range(s.names->heads, s.heads, 1, ROPE_MAX_HEADS));
  ROPE_TRY(check_range(s.names->dim, s.dim, 1, s.rotated ? ROPE_MAX_HEAD_DIM : ROPE_MAX_FUSED_HEAD_DIM));
  if (in_cache) {
    s.read = {};
  } else {
    ROPE_TRY(read_rows(s.names->in, *s.in, d.num_tokens, s.heads, s.dim, bytes, &s.read));
    ROPE_TRY(check_device_pointer(d.backend, s.names->in, s.in->data));
  }
  ROPE_TRY(read_quantize(d, s, &o->quantize));
  const bool cached = s.cache && d.cache.kind != ROPE_CACHE_NONE;
  const GroupedTensor grouped{s.names->quantize, s.names->groups, *s.quantize, *s.groups, s.heads, s.dim, cached};
  ROPE_TRY(read_groups(d, grouped, groups));
  s.scales = groups->scales ? scale_rows(d, grouped, *groups) : Rows{};
  s.scales_row = groups->scales ? scale_row_bytes(grouped, *groups) : 0;
  o->in = s.read.data;
  o->in_token_stride = s.read.token_stride;
  o->in_head_stride = s.read.head_stride;
  o->weight = s.weight;
  o->heads = s.heads;
  o->dim = s.dim;
  o->rotated = s.rotated;
  o->xpos_sign = int8_t(d.xpos.scale_base != 0 ? s.xpos_sign : 0);
  o->whole = true;
  const bool quantised = o->quantize.type != OutType::kSame;
  // What strides count: elements, of fewer than 8 bits or in blocks bytes.
  const int64_t out_bytes = std::max<int64_t>(stored_bytes(o->quantize.type, bytes, 1), 1);
  const int64_t units = stored_bytes(o->quantize.type, bytes, s.dim) / out_bytes;
  if (!cached) return read_output(d, s, quantised, units, out_bytes, o);
  if (s.out->data)
    return fail(ROPE_ERR_INVALID_ARG, "%s: not allowed with a cache, which takes %s", s.names->out, s.names->in);
  ROPE_TRY(read_cache_rows(d, s, units, out_bytes, o));
  if (!in_cache) return check_apart(s.names->cache, s.written, s.names->in, s.read);
  o->whole = o->quantize.kind == ScaleKind::kDynamic || o->quantize.kind == ScaleKind::kGroup;
  s.read = s.written;
  return ROPE_OK;
}

// What is written is apart from what other tensors read and write. Two tensors of one cache may lie in its rows side
// by side: there only the rows themselves are compared.
rope_status check_sources_apart(const Source& x, const Source& y) {
  if (!x.cached || !y.cached) {
    ROPE_TRY(check_apart(y.written_name, y.written, x.written_name, x.written));
  } else {
    const int64_t delta = y.written.data - x.written.data;
    if (delta < 0 ? -delta < y.written_row : delta < x.written_row)
      return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s", y.written_name, x.written_name);
  }
  if (!same_rows(x.written, x.read)) ROPE_TRY(check_apart(x.written_name, x.written, y.names->in, y.read));
  if (!same_rows(y.written, y.read)) ROPE_TRY(check_apart(y.written_name, y.written, x.names->in, x.read));
  return ROPE_OK;
}

// What is read beside the tensors, of what the call has. (How long a page table is, it does not say.)
class Inputs {
 public:
  Inputs(const rope_apply_desc& d, const PipelineCall& p) {
    const int64_t tokens = d.num_tokens, index = index_bytes(d.position_dtype);
    const Sections& sections = p.positions.sections;
    const int64_t places = extent(p.places, tokens);
    add("positions", d.positions, (places + std::max(sections.streams - 1, 0) * sections.stride) * index);
    add("indptr", d.indptr, (d.num_requests + 1) * index);
    add("offsets", d.offsets, d.num_requests * index);
    add("positions_from", d.positions_from, places * index);
    if (p.cache.indices) add_cache(d);
    if (p.norm.on) {
      const int64_t weight = d.head_dim * (d.norm.weight_is_f32 ? 4 : dtype_bytes(d.dtype));
      add("norm.q_weight", d.norm.q_weight, weight * (d.norm.across_heads ? d.num_q_heads : 1));
      add("norm.k_weight", d.norm.k_weight, weight * (d.norm.across_heads ? d.num_k_heads : 1));
    }
    if (p.angle == Angle::kCosSin) {
      add_rows("cos_sin.cos", "cos_sin.sin", d.cos_sin, p.cos_sin);
      add_rows("k_cos_sin.cos", "k_cos_sin.sin", d.k_cos_sin, p.k_rows);
    }
    if (p.sets.words) add_sets(d);
  }

  rope_status check_apart_from(const Source& s) const {
    for (int i = 0; i < count_; ++i) ROPE_TRY(check_apart(s.written_name, s.written, extents_[i]));
    return ROPE_OK;
  }

 private:
  // Elements of the positions of one stream, gaps included.
  static int64_t extent(const PositionPlaces& p, int64_t tokens) {
    const int64_t length = p.sequence_length ? p.sequence_length : tokens;
    return std::min((tokens / length - 1) * p.sequence_stride + (length - 1) * p.stride, INT64_MAX / 16) + 1;
  }

  void add(const char* name, const void* data, int64_t bytes) {
    if (data) extents_[count_++] = {name, data, bytes};
  }

  void add_cache(const rope_apply_desc& d) {
    const int64_t index = index_bytes(d.cache.index_dtype);
    add("cache.slots", d.cache.slots, d.num_tokens * index);
    add("cache.cache_positions", d.cache.cache_positions, d.num_tokens * index);
    add("cache.request_ids", d.cache.request_ids, d.num_tokens * 4);
    add("cache.page_table", d.cache.page_table, 4);
  }

  void add_rows(const char* cos, const char* sin, const rope_cos_sin& c, const CosSinRows& rows) {
    const int64_t bytes = rows.rows * rows.stride * dtype_bytes(c.dtype);
    add(cos, c.cos, bytes);
    add(sin, c.sin, bytes);
  }

  void add_sets(const rope_apply_desc& d) {
    const int64_t sets = d.frequency_sets.num_sets;
    add("frequency_sets.words", d.frequency_sets.words, sets * (d.rotary_dim / 2) * 8);
    add("frequency_sets.factors", d.frequency_sets.factors, sets * 4);
    add("frequency_sets.ids", d.frequency_sets.ids, d.num_tokens * 4);
    add("frequency_sets.ids_from", d.frequency_sets.ids_from, d.num_tokens * 4);
  }

  int count_ = 0;
  Extent extents_[16];
};

// The scales of groups of `of` are apart from what `s` reads and writes. In a cache they may lie in the rows of a
// tensor of it, as the tensors may lie side by side: there only the rows themselves are compared.
rope_status check_group_scales_apart(const Source& of, const Source& s) {
  if (!of.scales.data) return ROPE_OK;
  const int64_t delta = of.scales.data - s.written.data;
  const bool apart = of.cached && s.cached ? (delta < 0 ? -delta >= of.scales_row : delta >= s.written_row)
                                           : are_apart(s.written, of.scales);
  if (!apart)
    return fail(ROPE_ERR_INVALID_ARG, "%s.scales: overlap %s in memory; must be memory that is apart", of.names->groups,
                s.written_name);
  if (s.cached && same_rows(s.written, s.read)) return ROPE_OK;
  if (!are_apart(s.read, of.scales))
    return fail(ROPE_ERR_INVALID_ARG, "%s.scales: overlap %s in memory; must be memory that is apart", of.names->groups,
                s.names->in);
  return ROPE_OK;
}

// The scales of `of` are apart from what `s` writes and, where they are computed, from what it reads.
rope_status check_scales_apart(const rope_apply_desc& d, const Source& of, const Source& s) {
  const rope_quantize& q = *of.quantize;
  ROPE_TRY(check_group_scales_apart(of, s));
  if (!q.scales) return ROPE_OK;
  const int64_t rows = of.cached ? d.cache.num_pages * d.cache.page_size : d.num_tokens;
  const int64_t computed = std::min(rows, INT64_MAX / 4 / of.heads) * of.heads;
  const int64_t counts[] = {0, 1, of.heads, d.num_tokens, computed, 0};  // by scale_kind
  const Extent scales{of.names->quantize, q.scales, counts[q.scale_kind] * 4};
  ROPE_TRY(check_apart(s.written_name, s.written, scales));
  return q.scale_kind == ROPE_SCALE_DYNAMIC ? check_apart(s.names->in, s.read, scales) : ROPE_OK;
}

// A call that rotates keys in a cache has them and nothing else to work on.
rope_status check_in_cache(const rope_apply_desc& d) {
  if (d.cache.kind == ROPE_CACHE_NONE)
    return fail(ROPE_ERR_INVALID_ARG, "cache.kind: ROPE_CACHE_NONE (0), ROPE_FLAG_IN_CACHE requires a cache");
  const struct {
    const char* name;
    const void* data;
  } others[] = {{"q", d.q.data},
                {"k", d.k.data},
                {"v", d.v.data},
                {"q_nope", d.q_nope.data},
                {"q_out", d.q_out.data},
                {"k_out", d.k_out.data},
                {"v_out", d.v_out.data},
                {"q_nope_out", d.q_nope_out.data},
                {"cache.v", d.cache.v.data},
                {"norm.q_weight", d.norm.q_weight},
                {"norm.k_weight", d.norm.k_weight}};
  for (const auto& other : others)
    if (other.data)
      return fail(ROPE_ERR_INVALID_ARG, "%s: not allowed with ROPE_FLAG_IN_CACHE, which rotates cache.k alone",
                  other.name);
  return ROPE_OK;
}

// What a pipeline asks beyond a rotation of q and k.
rope_status check_fused(const rope_apply_desc& d, const PipelineParams& p, const Source& s) {
  if (s.dim > ROPE_MAX_FUSED_HEAD_DIM)
    return fail(ROPE_ERR_UNSUPPORTED, "%s: %d, must be at most %d with stages around the rotation", s.names->dim, s.dim,
                ROPE_MAX_FUSED_HEAD_DIM);
  if (s.weight && p.norm.across_heads && s.heads > kMaxNormHeads)
    return fail(ROPE_ERR_UNSUPPORTED, "norm.across_heads: %d heads of %s, at most %d", s.heads, s.names->in,
                kMaxNormHeads);
  if (d.q_nope.data && d.q_quantize.scale_kind == ROPE_SCALE_DYNAMIC)
    return fail(ROPE_ERR_UNSUPPORTED, "q_nope: not with a dynamic scale, which q_quantize has one of for each head");
  return ROPE_OK;
}

}  // namespace

rope_status read_tensors(const rope_apply_desc& d, PipelineCall* p) {
  const bool in_cache = d.flags & ROPE_FLAG_IN_CACHE;
  if (in_cache) ROPE_TRY(check_in_cache(d));
  if (d.q_nope.data && d.q_quantize.scale_kind == ROPE_SCALE_GROUP)
    return fail(ROPE_ERR_UNSUPPORTED, "q_nope: not with scales of groups, which q_groups has for q alone");
  const int32_t v_heads = d.num_v_heads ? d.num_v_heads : d.num_k_heads,
                v_dim = d.v_head_dim ? d.v_head_dim : d.head_dim;
  const Tensor tensors[] = {{&kQ, &d.q, &d.q_out, &d.q_quantize, &d.q_groups, nullptr, d.num_q_heads, d.head_dim,
                             d.norm.q_weight, true, 1},
                            {&kK, &d.k, &d.k_out, &d.k_quantize, &d.k_groups, &d.cache.k, d.num_k_heads, d.head_dim,
                             d.norm.k_weight, true, -1},
                            {&kV, &d.v, &d.v_out, &d.v_quantize, &d.v_groups, &d.cache.v, v_heads, v_dim, nullptr,
                             false, 0},
                            {&kQNope, &d.q_nope, &d.q_nope_out, &d.q_quantize, &d.q_groups, nullptr, d.num_q_heads,
                             d.q_nope_dim, nullptr, false, 0}};
  Source sources[kMaxOperands];  // those that are there
  for (const Tensor& tensor : tensors) {
    if (!tensor.in->data && !(in_cache && tensor.names == &kK)) {
      if (tensor.out->data)
        return fail(ROPE_ERR_INVALID_ARG, "%s: given without %s", tensor.names->out, tensor.names->in);
      if (tensor.weight)
        return fail(ROPE_ERR_INVALID_ARG, "norm.%s_weight: given without %s", tensor.names->in, tensor.names->in);
      continue;
    }
    Source& s = sources[p->num_operands];
    static_cast<Tensor&>(s) = tensor;
    s.cached = false;
    PipelineOperand* o = &p->operands[p->num_operands];
    ROPE_TRY(read_operand(d, s, o, &p->groups[p->num_operands++]));
    p->dynamic |= o->quantize.type != OutType::kSame && o->quantize.kind == ScaleKind::kDynamic;
  }
  if (!p->num_operands) return fail(ROPE_ERR_INVALID_ARG, "q: NULL and k: NULL, at least one must be given");
  const bool fused = in_cache || !is_rotation(*p);
  const Inputs inputs(d, *p);
  for (const Source *x = sources, *end = sources + p->num_operands; x != end; ++x) {
    if (fused) ROPE_TRY(check_fused(d, *p, *x));
    ROPE_TRY(inputs.check_apart_from(*x));
    for (const Source* y = sources; fused && y != end; ++y) ROPE_TRY(check_scales_apart(d, *y, *x));
    for (const Source* y = sources; y != x; ++y) ROPE_TRY(check_sources_apart(*y, *x));
  }
  return ROPE_OK;
}

}  // namespace rope::api
