#include "tensors.h"

#include <algorithm>
#include <initializer_list>

#include "groups.h"
#include "source.h"

namespace rope::api {
namespace {

static_assert(kMaxPipelineDim == ROPE_MAX_FUSED_HEAD_DIM && kMaxRotaryDim == ROPE_MAX_ROTARY_DIM);

// Memory that is read beside the tensors.
struct Extent {
  const char* name;
  const void* data;  // null: there is none
  int64_t bytes;
};

rope_status check_apart(const char* written_name, const Rows& written, const Extent& read) {
  if (!read.data || are_apart(written, read.data, read.bytes)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s in memory, which is written; must be memory that is apart",
              read.name, written_name);
}

// A place where a tensor is written.
struct Written {
  const char* name;
  const Rows& rows;
  int64_t cached_row;  // bytes of a row in a cache; 0: it is in none
};

template <class F>
rope_status for_written(const Source& s, F f) {
  ROPE_TRY(f(Written{s.written_name, s.written, s.cached ? s.written_row : 0}));
  return s.kept ? f(Written{s.names->out, s.kept_rows, 0}) : ROPE_OK;
}

rope_status check_written_apart(const Written& a, const Written& b) {
  if (!a.cached_row || !b.cached_row) return check_apart(b.name, b.rows, a.name, a.rows);
  // Two tensors of one cache may lie in its rows side by side: there only the rows themselves are compared.
  const int64_t delta = b.rows.data - a.rows.data;
  if (delta < 0 ? -delta < b.cached_row : delta < a.cached_row)
    return fail(ROPE_ERR_INVALID_ARG, "%s: overlaps %s", b.name, a.name);
  return ROPE_OK;
}

// What is written is apart from what other tensors read and write.
rope_status check_sources_apart(const Source& x, const Source& y) {
  const auto apart_from_input = [](const Written& w, const Source& own, const Source& other) -> rope_status {
    return same_rows(w.rows, own.read) ? ROPE_OK : check_apart(w.name, w.rows, other.names->in, other.read);
  };
  ROPE_TRY(for_written(x, [&](const Written& a) -> rope_status {
    ROPE_TRY(for_written(y, [&](const Written& b) { return check_written_apart(a, b); }));
    return apart_from_input(a, x, y);
  }));
  return for_written(y, [&](const Written& b) { return apart_from_input(b, y, x); });
}

// What is read beside the tensors, of what the call has. (How long a page table is, it does not say.)
class Inputs {
 public:
  Inputs(const rope_apply_desc& d, const PipelineCall& p) {
    const int64_t index = index_bytes(d.position_dtype);
    const Sections& sections = p.positions.sections;
    const int64_t places = extent(p.places, p.num_tokens);
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
    return for_written(s, [&](const Written& w) -> rope_status {
      for (int i = 0; i < count_; ++i) ROPE_TRY(check_apart(w.name, w.rows, extents_[i]));
      return ROPE_OK;
    });
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
  if (!of.scaled) return ROPE_OK;
  const int64_t delta = of.scales.data - s.written.data;
  const bool apart = of.cached && s.cached ? (delta < 0 ? -delta >= of.scales_row : delta >= s.written_row)
                                           : are_apart(s.written, of.scales);
  if (!apart)
    return fail(ROPE_ERR_INVALID_ARG, "%s.scales: overlap %s in memory; must be memory that is apart", of.names->groups,
                s.written_name);
  if (s.kept && !are_apart(s.kept_rows, of.scales))
    return fail(ROPE_ERR_INVALID_ARG, "%s.scales: overlap %s in memory; must be memory that is apart", of.names->groups,
                s.names->out);
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
  ROPE_TRY(for_written(s, [&](const Written& w) { return check_apart(w.name, w.rows, scales); }));
  return q.scale_kind == ROPE_SCALE_DYNAMIC ? check_apart(s.names->in, s.read, scales) : ROPE_OK;
}

// The sums of a norm are apart from what is read and written.
rope_status check_sums_apart(const rope_apply_desc& d, const Source& s) {
  const int64_t bytes = d.num_tokens * 4;
  for (const Extent& sums :
       {Extent{"norm_sums.q", d.norm_sums.q, bytes}, Extent{"norm_sums.k", d.norm_sums.k, bytes}}) {
    ROPE_TRY(for_written(s, [&](const Written& w) { return check_apart(w.name, w.rows, sums); }));
    ROPE_TRY(check_apart(s.names->in, s.read, sums));
  }
  return ROPE_OK;
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
                {"k_nope", d.k_nope.data},
                {"k_nope_out", d.k_nope_out.data},
                {"cache.v", d.cache.v.data},
                {"cache_k_nope", d.cache_k_nope.data},
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
  if (d.k_nope.data && d.k_quantize.scale_kind == ROPE_SCALE_DYNAMIC)
    return fail(ROPE_ERR_UNSUPPORTED, "k_nope: not with a dynamic scale, which k_quantize has one of for each head");
  return ROPE_OK;
}

// Whether sequences are more heads of the same tokens: those of one follow the heads of the one before, and all have
// the same positions. So a batch of [batch, heads, tokens, head_dim] is a rotation as any other.
bool are_heads(const PipelineCall& p, int64_t sequences) {
  const PositionKind kind = p.positions.kind;
  const bool counted = kind == PositionKind::kOffset,
             shared = kind != PositionKind::kRagged32 && kind != PositionKind::kRagged64 && !p.places.sequence_stride;
  bool heads = (counted || shared) && !p.cache.indices && !p.sets.words && !p.norm.across_heads;
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const OperandExtras& x = p.extras[i];
    heads &= o.heads == 1 || (x.in_sequence_stride == o.heads * o.in_head_stride &&
                              x.out_sequence_stride == o.heads * o.out_head_stride);
    heads &= o.quantize.kind == ScaleKind::kHost || o.quantize.kind == ScaleKind::kTensor;
    heads &= sequences <= ROPE_MAX_HEADS / o.heads;
  }
  return heads;
}

// Whether the tokens of a sequence follow those of the one before.
bool are_one_sequence(const PipelineCall& p, int64_t length) {
  bool one = true;
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const OperandExtras& x = p.extras[i];
    one &= x.in_sequence_stride == length * o.in_token_stride && x.kept_sequence_stride == length * x.kept_token_stride;
    one &= o.cached || x.out_sequence_stride == length * o.out_token_stride;
  }
  return one;
}

// Sequences become what simpler calls have, where they can.
void join_sequences(const rope_apply_desc& d, PipelineCall* p) {
  if (!d.sequence_length || d.sequence_length == d.num_tokens) return;
  const int64_t length = d.sequence_length, sequences = d.num_tokens / length;
  const bool heads = are_heads(*p, sequences);
  if (!heads && !are_one_sequence(*p, length)) {
    p->sequence_length = int32_t(length);
    return;
  }
  if (heads) {
    p->num_tokens = length;
    p->places = {0, p->places.stride, 0};
  }
  for (int32_t i = 0; i < p->num_operands; ++i) {
    PipelineOperand& o = p->operands[i];
    OperandExtras& x = p->extras[i];
    if (heads && o.heads == 1) {
      o.in_head_stride = x.in_sequence_stride;
      o.out_head_stride = x.out_sequence_stride;
    }
    if (heads) o.heads *= int32_t(sequences);
    x.in_sequence_stride = x.out_sequence_stride = x.kept_sequence_stride = 0;
  }
}

// Positions of sequences that the pipeline kernel knows: they follow each other, or all sequences have the same. False:
// they do neither.
bool fold_places(const rope_apply_desc& d, PipelineCall* p) {
  const PositionPlaces& places = p->places;
  const bool batch = places.sequence_length && places.sequence_length != p->num_tokens;
  const bool shared = d.positions ? !places.sequence_stride : !d.indptr;
  if (batch && shared && p->num_tokens <= UINT32_MAX) {
    p->positions.period = uint32_t(places.sequence_length);
    return places.stride == 1;
  }
  return places.stride == 1 && (!batch || !d.positions || places.sequence_stride == places.sequence_length);
}

// What the pipeline kernel knows nothing of.
bool is_rare(const rope_apply_desc& d, const PipelineCall& p) {
  bool rare =
      d.norm_sums.ranks || p.slot_skips || p.sequence_length || p.out_layout != p.layout || p.skip != kUsualSkip;
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const OperandExtras& x = p.extras[i];
    rare |= x.in_gap || x.out_gap || x.kept || x.twin || is_dtype(p.operands[i].quantize.type);
  }
  return rare;
}

}  // namespace

rope_status read_tensors(const rope_apply_desc& d, PipelineCall* p) {
  const bool in_cache = d.flags & ROPE_FLAG_IN_CACHE;
  if (in_cache) ROPE_TRY(check_in_cache(d));
  if (d.q_nope.data && d.q_quantize.scale_kind == ROPE_SCALE_GROUP)
    return fail(ROPE_ERR_UNSUPPORTED, "q_nope: not with scales of groups, which q_groups has for q alone");
  const int32_t v_heads = d.num_v_heads ? d.num_v_heads : d.num_k_heads,
                v_dim = d.v_head_dim ? d.v_head_dim : d.head_dim,
                k_dtype = d.k_dtype ? d.k_dtype - ROPE_OUT_F32 : d.dtype;
  const bool turns = !(d.flags & ROPE_FLAG_NO_ROTATION);
  if (d.k_nope.data && d.k_quantize.scale_kind == ROPE_SCALE_GROUP)
    return fail(ROPE_ERR_UNSUPPORTED, "k_nope: not with scales of groups, which k_groups has for k alone");
  if (d.q_nope.data && d.k_nope.data)
    return fail(ROPE_ERR_UNSUPPORTED, "k_nope: not with q_nope, a call has one of them");
  Source sources[kMaxOperands];  // those that are there
  const auto read = [&](const Tensor& tensor) -> rope_status {
    if (!tensor.in->data && !(in_cache && tensor.names == &kK)) {
      if (tensor.out->data)
        return fail(ROPE_ERR_INVALID_ARG, "%s: given without %s", tensor.names->out, tensor.names->in);
      if (tensor.weight)
        return fail(ROPE_ERR_INVALID_ARG, "norm.%s_weight: given without %s", tensor.names->in, tensor.names->in);
      return ROPE_OK;
    }
    Source& s = sources[p->num_operands];
    static_cast<Tensor&>(s) = tensor;
    s.cached = s.kept = false;
    const int32_t i = p->num_operands++;
    PipelineOperand* o = &p->operands[i];
    ROPE_TRY(read_operand(d, *p, s, o, &p->extras[i], &p->groups[i]));
    p->dynamic |= o->quantize.type != OutType::kSame && o->quantize.kind == ScaleKind::kDynamic;
    return ROPE_OK;
  };
  ROPE_TRY(read({&kQ, &d.q, &d.q_out, &d.q_steps, &d.q_out_steps, &d.q_quantize, &d.q_groups, nullptr, d.num_q_heads,
                 d.head_dim, d.norm.q_weight, turns, 1, d.dtype}));
  ROPE_TRY(read({&kK, &d.k, &d.k_out, &d.k_steps, &d.k_out_steps, &d.k_quantize, &d.k_groups, &d.cache.k, d.num_k_heads,
                 d.head_dim, d.norm.k_weight, turns, -1, k_dtype}));
  ROPE_TRY(read({&kV, &d.v, &d.v_out, &d.v_steps, &d.v_out_steps, &d.v_quantize, &d.v_groups, &d.cache.v, v_heads,
                 v_dim, nullptr, false, 0, k_dtype}));
  ROPE_TRY(read({&kQNope, &d.q_nope, &d.q_nope_out, &d.q_nope_steps, &d.q_nope_out_steps, &d.q_quantize, &d.q_groups,
                 nullptr, d.num_q_heads, d.q_nope_dim, nullptr, false, 0, d.dtype}));
  ROPE_TRY(read({&kKNope, &d.k_nope, &d.k_nope_out, &d.k_nope_steps, &d.k_nope_out_steps, &d.k_quantize, &d.k_groups,
                 &d.cache_k_nope, d.num_k_heads, d.k_nope_dim, nullptr, false, 0, k_dtype}));
  if (!p->num_operands) return fail(ROPE_ERR_INVALID_ARG, "q: NULL and k: NULL, at least one must be given");
  join_sequences(d, p);
  for (int32_t i = 0; i < p->num_operands; ++i) p->copies |= p->extras[i].copies;
  p->rare |= !fold_places(d, p);
  p->rare |= is_rare(d, *p);
  const bool fused = in_cache || !is_rotation(*p);
  const Inputs inputs(d, *p);
  for (const Source *x = sources, *end = sources + p->num_operands; x != end; ++x) {
    if (fused) ROPE_TRY(check_fused(d, *p, *x));
    ROPE_TRY(inputs.check_apart_from(*x));
    if (d.norm_sums.ranks) ROPE_TRY(check_sums_apart(d, *x));
    for (const Source* y = sources; fused && y != end; ++y) ROPE_TRY(check_scales_apart(d, *y, *x));
    for (const Source* y = sources; y != x; ++y) ROPE_TRY(check_sources_apart(*y, *x));
  }
  return ROPE_OK;
}

}  // namespace rope::api
