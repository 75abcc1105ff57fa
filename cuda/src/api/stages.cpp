// The tensors of a pipeline and what becomes of each, checked and turned into its parameters.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "../kernels/cache_rotation_plan.h"
#include "../kernels/pipeline_plan.h"
#include "options.h"

namespace rope::api {
namespace {

// One tensor of the descriptor on its way through the pipeline, and where it is read and written.
struct Source {
  const char *name, *out_name, *cache_name, *quantize_name;
  const rope_tensor &in, &out;
  const rope_cache_tensor* cache;  // null: never cached
  const rope_quantize& quantize;
  const void* weight;
  int32_t heads, dim;
  bool rotated;
  int32_t xpos_sign;      // where there is xPos
  bool in_cache = false;  // read where it is written, in the cache
  Rows read = {}, written = {};
  const char* written_name = nullptr;
  bool cached = false;

  bool present() const { return in.data || in_cache; }
};

rope_status read_quantize(const rope_apply_desc& d, const Source& s, Quantize* q) {
  const rope_quantize& from = s.quantize;
  const char* name = s.quantize_name;
  ROPE_TRY(check_range(name, from.out_dtype, ROPE_OUT_SAME, ROPE_OUT_INT8));
  ROPE_TRY(check_range(name, from.scale_kind, ROPE_SCALE_HOST, ROPE_SCALE_DYNAMIC));
  const float scale = from.scale == 0 ? 1.0f : from.scale;
  *q = {OutType(from.out_dtype), ScaleKind(from.scale_kind), 1.0f / scale, scale, from.scales};
  if (from.out_dtype == ROPE_OUT_SAME) {
    if (from.scale_kind || from.scale != 0 || from.scales)
      return fail(ROPE_ERR_INVALID_ARG, "%s: scales are only allowed with a quantised out_dtype", name);
    return ROPE_OK;
  }
  if (from.scale_kind == ROPE_SCALE_HOST) {
    if (from.scales) return fail(ROPE_ERR_INVALID_ARG, "%s.scales: not allowed with ROPE_SCALE_HOST", name);
    if (!(scale > 0) || !std::isfinite(scale) || !std::isfinite(q->factor))
      return fail(ROPE_ERR_INVALID_ARG, "%s.scale: %g, must be above 0 and finite, as must its reciprocal", name,
                  double(from.scale));
    return ROPE_OK;
  }
  if (from.scale != 0) return fail(ROPE_ERR_INVALID_ARG, "%s.scale: only allowed with ROPE_SCALE_HOST", name);
  return require_pointer(d, name, from.scales, 4, "as scales with this scale_kind");
}

rope_status read_cache_rows(const rope_apply_desc& d, Source& s, int64_t element_bytes, PipelineOperand* o) {
  const rope_cache_tensor& c = *s.cache;
  ROPE_TRY(require_pointer(d, s.cache_name, c.data, element_bytes, "with a cache"));
  const struct {
    const char* what;
    int64_t stride, count;
  } dims[] = {{"page", c.page_stride, d.cache.num_pages},
              {"entry", c.entry_stride, d.cache.page_size},
              {"head", c.head_stride, s.heads}};
  for (const auto& dim : dims)
    if (dim.count > 1 && (dim.stride < s.dim || dim.stride > INT64_MAX / 64 / dim.count))
      return fail(ROPE_ERR_INVALID_ARG, "%s.%s_stride: %lld, must be at least a row, %d elements", s.cache_name,
                  dim.what, static_cast<long long>(dim.stride), s.dim);
  o->out = static_cast<char*>(c.data);
  o->out_page_stride = c.page_stride * element_bytes;
  o->out_token_stride = c.entry_stride * element_bytes;
  o->out_head_stride = c.head_stride * element_bytes;
  o->cached = true;
  int64_t end = s.dim;
  for (const auto& dim : dims) end += (dim.count - 1) * (dim.count > 1 ? dim.stride : 0);
  s.cached = true;
  s.written_name = s.cache_name;
  s.written = {o->out, 1, 1, 0, 0, end * element_bytes};
  return ROPE_OK;
}

rope_status read_operand(const rope_apply_desc& d, Source& s, PipelineOperand* o) {
  Rows &in = s.read, &out = s.written;
  const int64_t bytes = dtype_bytes(d.dtype);
  if (!s.in_cache) ROPE_TRY(read_rows(s.name, s.in, d.num_tokens, s.heads, s.dim, bytes, &in));
  ROPE_TRY(read_quantize(d, s, &o->quantize));
  const bool quantised = o->quantize.type != OutType::kSame;
  o->in = in.data;
  o->in_token_stride = in.token_stride;
  o->in_head_stride = in.head_stride;
  o->weight = s.weight;
  o->heads = s.heads;
  o->dim = s.dim;
  o->rotated = s.rotated;
  o->xpos_sign = int8_t(d.xpos.scale_base != 0 ? s.xpos_sign : 0);
  o->whole = true;
  const int64_t out_bytes = quantised ? 1 : bytes;
  if (s.cache && d.cache.kind != ROPE_CACHE_NONE) {
    if (s.out.data)
      return fail(ROPE_ERR_INVALID_ARG, "%s: not allowed with a cache, which takes %s", s.out_name, s.name);
    ROPE_TRY(read_cache_rows(d, s, out_bytes, o));
    if (!s.in_cache) return check_apart(s.cache_name, out, s.name, in);
    o->whole = o->quantize.kind == ScaleKind::kDynamic;
    in = out;
    return ROPE_OK;
  }
  if (s.out.data) {
    ROPE_TRY(read_rows(s.out_name, s.out, d.num_tokens, s.heads, s.dim, out_bytes, &out));
  } else if (quantised || !s.rotated) {
    return fail(ROPE_ERR_INVALID_ARG, "%s: NULL, required %s", s.out_name,
                quantised ? "where the output is quantised" : "for a tensor that is not rotated, without a cache");
  } else {
    out = in;
  }
  const bool in_place = !quantised && same_rows(in, out);
  if (!rows_are_distinct(out))
    return fail(ROPE_ERR_INVALID_ARG, "%s: strides overlap, every row that is written must be its own memory",
                in_place ? s.name : s.out_name);
  if (!in_place) ROPE_TRY(check_apart(s.out_name, out, s.name, in));
  s.written_name = in_place ? s.name : s.out_name;
  o->out = const_cast<char*>(out.data);
  o->out_token_stride = out.token_stride;
  o->out_head_stride = out.head_stride;
  o->whole = !in_place || s.weight;
  return ROPE_OK;
}

// What is written is apart from what other operands read and write. Two tensors of one cache may lie in its rows side
// by side: there only the rows themselves are compared.
rope_status check_sources_apart(const Source& x, const Source& y) {
  if (!x.cached || !y.cached) {
    ROPE_TRY(check_apart(y.written_name, y.written, x.written_name, x.written));
  } else {
    const int64_t delta = y.written.data - x.written.data;
    if (delta < 0 ? -delta < y.dim : delta < x.dim)
      return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s", y.written_name, x.written_name);
  }
  if (!same_rows(x.written, x.read)) ROPE_TRY(check_apart(x.written_name, x.written, y.name, y.read));
  if (!same_rows(y.written, y.read)) ROPE_TRY(check_apart(y.written_name, y.written, x.name, x.read));
  return ROPE_OK;
}

// What is read beside the tensors is apart from what `s` writes. (How long a page table is, the call does not say.)
rope_status check_inputs_apart(const rope_apply_desc& d, const PipelineParams& p, const Source& s) {
  ROPE_TRY(check_positions_apart(d, p.positions, s.written_name, s.written));
  const int64_t tokens = d.num_tokens, index = index_bytes(d.position_dtype),
                cache_index = index_bytes(d.cache.index_dtype), sets = d.frequency_sets.num_sets,
                pairs = d.rotary_dim / 2;
  const int64_t weight = d.head_dim * (d.norm.weight_is_f32 ? 4 : dtype_bytes(d.dtype));
  const int64_t q_weights = weight * (d.norm.across_heads ? d.num_q_heads : 1),
                k_weights = weight * (d.norm.across_heads ? d.num_k_heads : 1);
  const int64_t table = p.cos_sin.rows * p.cos_sin.stride * (d.cos_sin.cos ? dtype_bytes(d.cos_sin.dtype) : 0);
  for (const Extent& read :
       {Extent{"positions_from", d.positions_from, tokens * index},
        Extent{"cache.slots", d.cache.slots, tokens * cache_index},
        Extent{"cache.cache_positions", d.cache.cache_positions, tokens * cache_index},
        Extent{"cache.request_ids", d.cache.request_ids, tokens * 4}, Extent{"cache.page_table", d.cache.page_table, 4},
        Extent{"norm.q_weight", d.norm.q_weight, q_weights}, Extent{"norm.k_weight", d.norm.k_weight, k_weights},
        Extent{"cos_sin.cos", d.cos_sin.cos, table}, Extent{"cos_sin.sin", d.cos_sin.sin, table},
        Extent{"frequency_sets.words", d.frequency_sets.words, sets * pairs * 8},
        Extent{"frequency_sets.factors", d.frequency_sets.factors, sets * 4},
        Extent{"frequency_sets.ids", d.frequency_sets.ids, tokens * 4},
        Extent{"frequency_sets.ids_from", d.frequency_sets.ids_from, tokens * 4}})
    ROPE_TRY(check_apart(s.written_name, s.written, read));
  return ROPE_OK;
}

// The scales of `of` are apart from what `s` writes and, where they are computed, from what it reads.
rope_status check_scales_apart(const rope_apply_desc& d, const Source& of, const Source& s) {
  const rope_quantize& q = of.quantize;
  const int64_t rows = of.cached ? d.cache.num_pages * d.cache.page_size : d.num_tokens;
  const int64_t computed = std::min(rows, INT64_MAX / 4 / of.heads) * of.heads;
  const int64_t counts[] = {0, 1, of.heads, d.num_tokens, computed};  // by scale_kind
  const Extent scales{of.quantize_name, q.scales, counts[q.scale_kind] * 4};
  ROPE_TRY(check_apart(s.written_name, s.written, scales));
  return q.scale_kind == ROPE_SCALE_DYNAMIC ? check_apart(s.name, s.read, scales) : ROPE_OK;
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

}  // namespace

bool has_stages(const rope_apply_desc& d) {
  static const rope_apply_desc none = {};
  constexpr size_t kFirst = offsetof(rope_apply_desc, v), kSections = offsetof(rope_apply_desc, sections),
                   kBehind = kSections + sizeof(none.sections);
  const auto differs = [&](size_t begin, size_t end) {
    return std::memcmp(reinterpret_cast<const char*>(&d) + begin, reinterpret_cast<const char*>(&none) + begin,
                       end - begin) != 0;
  };
  return d.angle == ROPE_ANGLE_COS_SIN || (d.flags & ROPE_FLAG_IN_CACHE) || differs(kFirst, kSections) ||
         differs(kBehind, sizeof(none));
}

rope_status read_pipeline(const rope_apply_desc& d, PipelineParams* p, XPos* xpos) {
  for (const int32_t reserved :
       {d.reserved, d.norm.reserved, d.q_quantize.reserved, d.k_quantize.reserved, d.v_quantize.reserved,
        d.cache.reserved, d.cos_sin.reserved, d.frequency_sets.reserved})
    ROPE_TRY(check_range("reserved", reserved, 0, 0));
  const bool in_cache = d.flags & ROPE_FLAG_IN_CACHE;
  if (in_cache) ROPE_TRY(check_in_cache(d));
  ROPE_TRY(read_angles(d, p));
  ROPE_TRY(read_xpos(d, xpos));
  ROPE_TRY(read_norm(d, &p->norm));
  ROPE_TRY(read_cache(d, &p->cache));
  const int32_t v_heads = d.num_v_heads ? d.num_v_heads : d.num_k_heads,
                v_dim = d.v_head_dim ? d.v_head_dim : d.head_dim;
  Source sources[kMaxOperands] = {{"q", "q_out", "", "q_quantize", d.q, d.q_out, nullptr, d.q_quantize, d.norm.q_weight,
                                   d.num_q_heads, d.head_dim, true, 1},
                                  {"k", "k_out", "cache.k", "k_quantize", d.k, d.k_out, &d.cache.k, d.k_quantize,
                                   d.norm.k_weight, d.num_k_heads, d.head_dim, true, -1},
                                  {"v", "v_out", "cache.v", "v_quantize", d.v, d.v_out, &d.cache.v, d.v_quantize,
                                   nullptr, v_heads, v_dim, false, 0},
                                  {"q_nope", "q_nope_out", "", "q_quantize", d.q_nope, d.q_nope_out, nullptr,
                                   d.q_quantize, nullptr, d.num_q_heads, d.q_nope_dim, false, 0}};
  sources[1].in_cache = in_cache;
  for (Source& s : sources) {
    if (!s.present()) {
      if (s.out.data) return fail(ROPE_ERR_INVALID_ARG, "%s: given without %s", s.out_name, s.name);
      if (s.weight) return fail(ROPE_ERR_INVALID_ARG, "norm.%s_weight: given without %s", s.name, s.name);
      continue;
    }
    if (s.heads < 1 || s.heads > ROPE_MAX_HEADS)
      return fail(ROPE_ERR_INVALID_ARG, "heads of %s: %d, must be 1 to %d", s.name, s.heads, ROPE_MAX_HEADS);
    if (s.dim < 1 || s.dim > kMaxPipelineDim)
      return fail(ROPE_ERR_INVALID_ARG, "head_dim of %s: %d, must be 1 to %d", s.name, s.dim, kMaxPipelineDim);
    if (d.backend == ROPE_BACKEND_CUDA) ROPE_TRY(check_device_pointer(s.name, s.in.data));
    if (d.backend == ROPE_BACKEND_CUDA) ROPE_TRY(check_device_pointer(s.out_name, s.out.data));
    if (s.weight && p->norm.across_heads && s.heads > kMaxNormHeads)
      return fail(ROPE_ERR_UNSUPPORTED, "norm.across_heads: %d heads of %s, at most %d", s.heads, s.name,
                  kMaxNormHeads);
    PipelineOperand* o = &p->operands[p->num_operands++];
    ROPE_TRY(read_operand(d, s, o));
    p->dynamic |= o->quantize.type != OutType::kSame && o->quantize.kind == ScaleKind::kDynamic;
  }
  if (d.q_nope.data && d.q_quantize.scale_kind == ROPE_SCALE_DYNAMIC)
    return fail(ROPE_ERR_UNSUPPORTED, "q_nope: not with a dynamic scale, which q_quantize has one of for each head");
  for (const Source& x : sources) {
    if (!x.present()) continue;
    ROPE_TRY(check_inputs_apart(d, *p, x));
    for (const Source& y : sources)
      if (y.present()) ROPE_TRY(check_scales_apart(d, y, x));
    for (const Source* y = sources; y != &x; ++y)
      if (y->present()) ROPE_TRY(check_sources_apart(*y, x));
  }
  if (!p->num_operands) return fail(ROPE_ERR_INVALID_ARG, "q: NULL and k: NULL, at least one must be given");
#ifdef ROPEROPE_WITH_CUDA
  if (d.backend != ROPE_BACKEND_CUDA) return ROPE_OK;
  if (in_cache && !cuda::cache_rotation_fits(*p))
    return fail(ROPE_ERR_UNSUPPORTED,
                "dynamic scales: in a cache heads of up to %d elements where pointers, strides and dimensions are "
                "multiples of %d, else of up to %d",
                2 * cuda::wide_vec(1) * cuda::kPipelineBlock, cuda::wide_vec(1), 2 * cuda::kPipelineBlock);
  if (!in_cache && !cuda::pipeline_fits(*p, dtype_bytes(d.dtype)))
    return fail(
        ROPE_ERR_UNSUPPORTED,
        "%s: heads of up to %d bytes where pointers, strides and head_dim are multiples of 16 bytes, else of up to "
        "%d elements",
        p->norm.on ? "norm" : "dynamic scales", 2 * 16 * cuda::kPipelineBlock, 2 * cuda::kPipelineBlock);
#endif
  return ROPE_OK;
}

}  // namespace rope::api
