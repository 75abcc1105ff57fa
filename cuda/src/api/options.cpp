#include "options.h"

#include <cmath>

#include "../math/float_environment.h"

namespace rope::api {
namespace {

static_assert(2 * kMaxXPosPairs == ROPE_MAX_XPOS_DIM && kMaxNormHeads == ROPE_MAX_NORM_HEADS &&
              int64_t(ROPE_MAX_NORM_RANKS) * ROPE_MAX_NORM_HEADS <= 1 << 24 && kMaxStreams == ROPE_MAX_STREAMS &&
              kMaxPairStreams == ROPE_MAX_PAIR_STREAMS);

rope_status check_pair_streams(const rope_apply_desc& d) {
  const int32_t count = d.sections.num_streams;
  ROPE_TRY(check_range("sections.num_streams", count, 2, ROPE_MAX_PAIR_STREAMS));
  for (int32_t i = 0; i < d.rotary_dim / 2; ++i)
    if (d.pair_streams[i] >= count)
      return fail(ROPE_ERR_INVALID_ARG, "pair_streams[%d]: %d, must be below sections.num_streams, %d", i,
                  d.pair_streams[i], count);
  return ROPE_OK;
}

rope_status read_sections(const rope_apply_desc& d, Sections* s) {
  const rope_sections& from = d.sections;
  const bool ordered = from.interleaved || from.sizes[0] || from.sizes[1] || from.sizes[2] || from.sizes[3];
  if (!from.num_streams && !d.pair_streams) {
    if (ordered || from.stream_stride)
      return fail(ROPE_ERR_INVALID_ARG, "sections.num_streams: 0, but sections has other fields set");
    return ROPE_OK;
  }
  if (d.pair_streams) {
    if (ordered) return fail(ROPE_ERR_INVALID_ARG, "sections.sizes: not allowed with pair_streams, nor interleaved");
    ROPE_TRY(check_pair_streams(d));
  } else {
    ROPE_TRY(check_range("sections.num_streams", from.num_streams, 2, ROPE_MAX_STREAMS));
  }
  ROPE_TRY(check_range("sections.interleaved", from.interleaved, 0, 1));
  if (!d.positions) return fail(ROPE_ERR_INVALID_ARG, "positions: NULL, required with sections");
  *s = {from.num_streams, from.interleaved != 0, {}, from.stream_stride ? from.stream_stride : d.num_tokens};
  if (d.pair_streams) return ROPE_OK;
  int64_t sum = 0;
  for (int32_t i = 0; i < ROPE_MAX_STREAMS; ++i) {
    const int32_t size = s->sizes[i] = from.sizes[i];
    if (size < 0 || (i >= from.num_streams && size))
      return fail(ROPE_ERR_INVALID_ARG, "sections.sizes[%d]: %d, must be 0 or more, and 0 behind num_streams", i, size);
    sum += size;
  }
  if (sum != d.rotary_dim / 2)
    return fail(ROPE_ERR_INVALID_ARG, "sections.sizes: their sum is %lld, must be rotary_dim / 2 = %d",
                static_cast<long long>(sum), d.rotary_dim / 2);
  return ROPE_OK;
}

// Only ids may leave a token alone.
rope_status read_skip(const rope_apply_desc& d, PipelineCall* p) {
  ROPE_TRY(check_range("skip_kind", d.skip_kind, ROPE_SKIP_DEFAULT, ROPE_SKIP_VALUE));
  ROPE_TRY(check_range("copy_skipped", d.copy_skipped, 0, 1));
  if (d.skip_position && d.skip_kind != ROPE_SKIP_VALUE)
    return fail(ROPE_ERR_INVALID_ARG, "skip_position: %lld, must be 0 without ROPE_SKIP_VALUE",
                static_cast<long long>(d.skip_position));
  p->skip = kUsualSkip;
  if (!d.positions || d.skip_kind == ROPE_SKIP_DEFAULT) return ROPE_OK;
  if (d.skip_kind == ROPE_SKIP_NONE) {
    p->skip = {true, -1};
  } else {
    p->skip = {false, d.skip_position};
  }
  return ROPE_OK;
}

// Where positions lie.
rope_status read_places(const rope_apply_desc& d, PipelineCall* p) {
  const auto stride_of = [](int64_t given, int64_t otherwise) {
    return given == ROPE_BROADCAST ? 0 : given ? given : otherwise;
  };
  const auto check_stride = [](const char* name, int64_t stride) {
    if (stride == ROPE_BROADCAST || (stride >= 0 && stride <= INT32_MAX)) return rope_status(ROPE_OK);
    return fail(ROPE_ERR_INVALID_ARG, "%s: %lld, must be 0 to %d, or ROPE_BROADCAST", name,
                static_cast<long long>(stride), INT32_MAX);
  };
  const int64_t length = d.sequence_length;
  if (length && (length < 0 || d.num_tokens % length))
    return fail(ROPE_ERR_INVALID_ARG, "sequence_length: %lld, must be 0 or divide num_tokens, %lld",
                static_cast<long long>(length), static_cast<long long>(d.num_tokens));
  ROPE_TRY(check_stride("position_stride", d.position_stride));
  ROPE_TRY(check_stride("position_sequence_stride", d.position_sequence_stride));
  if (!d.positions && (d.position_stride || d.position_sequence_stride))
    return fail(ROPE_ERR_INVALID_ARG, "%s: only allowed with positions",
                d.position_stride ? "position_stride" : "position_sequence_stride");
  if (!length && d.position_sequence_stride)
    return fail(ROPE_ERR_INVALID_ARG, "position_sequence_stride: only allowed with sequence_length");
  const int64_t stride = stride_of(d.position_stride, 1);
  p->places = {length, stride, stride_of(d.position_sequence_stride, length * stride)};
  return ROPE_OK;
}

bool is_set(const rope_cos_sin& c) { return c.cos || c.sin || c.num_rows || c.row_stride || c.num_skipped; }

// What the fields of a table are called.
struct TableNames {
  const char *cos, *sin, *dtype, *num_rows, *row_stride;
};

constexpr TableNames kCosSin = {"cos_sin.cos", "cos_sin.sin", "cos_sin.dtype", "cos_sin.num_rows",
                                "cos_sin.row_stride"},
                     kOfK = {"k_cos_sin.cos", "k_cos_sin.sin", "k_cos_sin.dtype", "k_cos_sin.num_rows",
                             "k_cos_sin.row_stride"};

rope_status read_table_form(const rope_apply_desc& d, PipelineCall* p) {
  constexpr uint32_t kAll = ROPE_TABLE_RADIANS | ROPE_TABLE_ELEMENTS;
  if (d.table_flags & ~kAll)
    return fail(ROPE_ERR_INVALID_ARG,
                "table_flags: %#x has bits other than ROPE_TABLE_RADIANS (1), ROPE_TABLE_ELEMENTS (2)", d.table_flags);
  if (d.flags & ROPE_FLAG_IN_CACHE && (d.table_flags || is_set(d.k_cos_sin)))
    return fail(ROPE_ERR_UNSUPPORTED, "%s: not allowed with ROPE_FLAG_IN_CACHE",
                d.table_flags ? "table_flags" : "k_cos_sin");
  p->table = {(d.table_flags & ROPE_TABLE_RADIANS) != 0, (d.table_flags & ROPE_TABLE_ELEMENTS) != 0,
              (d.flags & ROPE_FLAG_INVERSE) != 0};
  p->rare |= d.table_flags != 0;
  return ROPE_OK;
}

rope_status read_table(const rope_apply_desc& d, const TableForm& form, const TableNames& names, const rope_cos_sin& c,
                       CosSinRows* rows) {
  ROPE_TRY(check_range(names.dtype, c.dtype, ROPE_DTYPE_F32, form.radians ? ROPE_DTYPE_F32 : ROPE_DTYPE_BF16));
  const int64_t bytes = dtype_bytes(c.dtype), width = form.elements ? d.rotary_dim : d.rotary_dim / 2;
  ROPE_TRY(require_pointer(d.backend, names.cos, c.cos, bytes, "with ROPE_ANGLE_COS_SIN"));
  if (form.radians && c.sin) return fail(ROPE_ERR_INVALID_ARG, "%s: must be NULL with ROPE_TABLE_RADIANS", names.sin);
  ROPE_TRY(check_pointer(d.backend, names.sin, c.sin, bytes));
  ROPE_TRY(check_pointer(d.backend, "cos_sin.num_skipped", c.num_skipped, 8));
  ROPE_TRY(check_range(names.num_rows, c.num_rows, 1, INT64_MAX >> 24));
  const int64_t row = c.sin || form.radians ? width : 2 * width;
  if (c.row_stride) ROPE_TRY(check_range(names.row_stride, c.row_stride, row, ROPE_MAX_ROW_STRIDE));
  const void* sin = c.sin ? c.sin : static_cast<const char*>(c.cos) + (form.radians ? 0 : width * bytes);
  *rows = {c.cos, sin, Dtype(c.dtype), c.num_rows, c.row_stride ? c.row_stride : row, c.num_skipped};
  return ROPE_OK;
}

rope_status read_k_table(const rope_apply_desc& d, PipelineCall* p) {
  if (!d.k.data) return fail(ROPE_ERR_INVALID_ARG, "k_cos_sin: given without k");
  ROPE_TRY(read_table(d, p->table, kOfK, d.k_cos_sin, &p->k_rows));
  ROPE_TRY(check_range(kOfK.num_rows, d.k_cos_sin.num_rows, p->cos_sin.rows, p->cos_sin.rows));
  if (d.k_cos_sin.num_skipped)
    return fail(ROPE_ERR_INVALID_ARG, "k_cos_sin.num_skipped: must be NULL, cos_sin.num_skipped counts");
  p->k_operand = d.q.data ? 1 : 0;
  p->rare = true;
  return ROPE_OK;
}

rope_status check_float_positions(const rope_apply_desc& d) {
  if (d.angle == ROPE_ANGLE_COS_SIN)
    return fail(ROPE_ERR_INVALID_ARG,
                "position_dtype: ROPE_INDEX_FLOAT32 (2), not allowed with ROPE_ANGLE_COS_SIN, whose rows are counted");
  if (d.frequency_sets.words && d.angle == ROPE_ANGLE_EXACT)
    return fail(ROPE_ERR_UNSUPPORTED, "frequency_sets: not with ROPE_INDEX_FLOAT32, whose words have whole turns");
  if (d.rotary_dim > ROPE_MAX_FLOAT32_ROTARY_DIM)
    return fail(ROPE_ERR_UNSUPPORTED, "rotary_dim: %d, must be at most %d with ROPE_INDEX_FLOAT32", d.rotary_dim,
                ROPE_MAX_FLOAT32_ROTARY_DIM);
  return ROPE_OK;
}

}  // namespace

rope_status read_positions(const rope_apply_desc& d, PipelineCall* call) {
  Positions* const p = &call->positions;
  ROPE_TRY(check_position_dtype(d.position_dtype));
  ROPE_TRY(read_places(d, call));
  const bool is_int32 = d.position_dtype == ROPE_INDEX_INT32;
  if (d.positions && d.indptr) return fail(ROPE_ERR_INVALID_ARG, "indptr: not allowed together with positions");
  if (d.offset && (d.positions || d.indptr))
    return fail(ROPE_ERR_INVALID_ARG, "offset: %lld, must be 0 with positions or indptr",
                static_cast<long long>(d.offset));
  if (d.offsets && !d.indptr) return fail(ROPE_ERR_INVALID_ARG, "offsets: only allowed with indptr");
  if (!d.indptr && d.num_requests)
    return fail(ROPE_ERR_INVALID_ARG, "num_requests: %lld, must be 0 without indptr",
                static_cast<long long>(d.num_requests));
  *p = {PositionKind::kOffset, 0, d.offset, nullptr, nullptr, {}, 0};
  ROPE_TRY(read_sections(d, &p->sections));
  call->rare |= d.pair_streams != nullptr;
  if (d.positions) {
    ROPE_TRY(check_pointer(d.backend, "positions", d.positions, index_bytes(d.position_dtype)));
    p->kind = id_kind(d.position_dtype);
    p->ids = d.positions;
    if (p->kind == PositionKind::kFloat32) {
      ROPE_TRY(check_float_positions(d));
      call->rare = true;
    }
  } else if (d.indptr) {
    if (d.num_requests < 1 || d.num_requests > INT32_MAX)
      return fail(ROPE_ERR_INVALID_ARG, "num_requests: %lld, must be 1 to %d with indptr",
                  static_cast<long long>(d.num_requests), INT32_MAX);
    if (d.position_dtype == ROPE_INDEX_FLOAT32)
      return fail(ROPE_ERR_INVALID_ARG, "position_dtype: ROPE_INDEX_FLOAT32 (2), not allowed with indptr");
    ROPE_TRY(check_pointer(d.backend, "indptr", d.indptr, index_bytes(d.position_dtype)));
    ROPE_TRY(check_pointer(d.backend, "offsets", d.offsets, index_bytes(d.position_dtype)));
    p->kind = is_int32 ? PositionKind::kRagged32 : PositionKind::kRagged64;
    p->num_requests = int32_t(d.num_requests);
    p->ids = d.indptr;
    p->offsets = d.offsets;
  }
  return read_skip(d, call);
}

rope_status read_layouts(const rope_apply_desc& d, PipelineCall* p) {
  ROPE_TRY(check_range("out_layout", d.out_layout, ROPE_OUT_LAYOUT_SAME, ROPE_OUT_LAYOUT_GPTJ));
  p->layout = Layout(d.layout);
  p->out_layout = d.out_layout == ROPE_OUT_LAYOUT_SAME ? p->layout : Layout(d.out_layout - ROPE_OUT_LAYOUT_NEOX);
  if (p->out_layout != p->layout && (d.flags & (ROPE_FLAG_IN_CACHE | ROPE_FLAG_NO_ROTATION)))
    return fail(ROPE_ERR_UNSUPPORTED, "out_layout: %d, must be that of layout with %s", d.out_layout,
                d.flags & ROPE_FLAG_IN_CACHE ? "ROPE_FLAG_IN_CACHE" : "ROPE_FLAG_NO_ROTATION");
  if (p->out_layout != p->layout && d.num_blocks > 1)
    return fail(ROPE_ERR_UNSUPPORTED, "out_layout: %d, must be that of layout with num_blocks", d.out_layout);
  if (p->out_layout != p->layout && d.norm.after)
    return fail(ROPE_ERR_UNSUPPORTED,
                "out_layout: %d, must be that of layout with norm.after, whose weights would be "
                "in neither's order",
                d.out_layout);
  return ROPE_OK;
}

rope_status read_blocks(const rope_apply_desc& d, PipelineCall* p) {
  // Of neighbours, blocks have the pairs that the whole has.
  p->blocks = p->layout == Layout::kNeox ? d.num_blocks : 1;
  p->rare |= p->blocks > 1;
  if (d.num_blocks > 1 && d.flags & ROPE_FLAG_IN_CACHE)
    return fail(ROPE_ERR_UNSUPPORTED, "num_blocks: %d, must be 1 with ROPE_FLAG_IN_CACHE", d.num_blocks);
  return ROPE_OK;
}

const uint8_t* streams_of(const rope_apply_desc& d, const PipelineParams& p, uint8_t* streams) {
  if (!p.positions.sections.streams || d.pair_streams) return d.pair_streams;
  for (int32_t i = 0; i < d.rotary_dim / 2; ++i) streams[i] = uint8_t(stream_of(p.positions.sections, i));
  return streams;
}

rope_status read_norm(const rope_apply_desc& d, Norm* n) {
  const rope_norm& from = d.norm;
  const auto addresses = reinterpret_cast<uintptr_t>(from.q_weight) | reinterpret_cast<uintptr_t>(from.k_weight);
  if (!addresses) {
    if (from.after || from.weight_is_f32 || from.eps != 0 || from.weight_bias != 0 || from.across_heads)
      return fail(ROPE_ERR_INVALID_ARG, "norm: q_weight and k_weight are NULL, at least one is required");
    return ROPE_OK;
  }
  *n = {true,     from.after != 0,  from.weight_is_f32 != 0, addresses % 16 == 0, from.across_heads != 0,
        from.eps, from.weight_bias, 1.0f / float(d.head_dim)};
  ROPE_TRY(check_range("norm.after", from.after, 0, 1));
  ROPE_TRY(check_range("norm.weight_is_f32", from.weight_is_f32, 0, 1));
  ROPE_TRY(check_range("norm.across_heads", from.across_heads, 0, 1));
  if (!(from.eps >= 0) || !std::isfinite(from.eps))
    return fail(ROPE_ERR_INVALID_ARG, "norm.eps: %g, must be finite and at least 0", double(from.eps));
  if (!std::isfinite(from.weight_bias))
    return fail(ROPE_ERR_INVALID_ARG, "norm.weight_bias: %g, must be finite", double(from.weight_bias));
  const int64_t bytes = n->weight_is_f32 ? 4 : dtype_bytes(d.dtype);
  ROPE_TRY(check_pointer(d.backend, "norm.q_weight", from.q_weight, bytes));
  return check_pointer(d.backend, "norm.k_weight", from.k_weight, bytes);
}

rope_status read_norm_sums(const rope_apply_desc& d, PipelineCall* p) {
  const rope_norm_sums& from = d.norm_sums;
  ROPE_TRY(check_range("norm_sums.ranks", from.ranks, 0, ROPE_MAX_NORM_RANKS));
  ROPE_TRY(check_range("norm_sums.write", from.write, 0, from.ranks ? 1 : 0));
  if (from.ranks && !p->norm.across_heads)
    return fail(ROPE_ERR_INVALID_ARG, "norm_sums.ranks: %d, must be 0 without norm.across_heads", from.ranks);
  const struct {
    const char* name;
    float* sums;
    const void* weight;
    int operand;
  } rows[] = {{"norm_sums.q", from.q, d.norm.q_weight, 0}, {"norm_sums.k", from.k, d.norm.k_weight, d.q.data ? 1 : 0}};
  for (const auto& row : rows) {
    const bool needed = from.ranks && row.weight;
    if (row.sums && !needed)
      return fail(ROPE_ERR_INVALID_ARG, "%s: only allowed with ranks, and where there is a weight", row.name);
    if (!needed) continue;
    ROPE_TRY(require_pointer(d.backend, row.name, row.sums, 4, "with ranks"));
    p->sums[row.operand] = {row.sums, float(from.ranks) * float(p->operands[row.operand].heads)};
  }
  p->writes_sums = from.write;
  return ROPE_OK;
}

rope_status read_cache(const rope_apply_desc& d, CacheMap* c) {
  const rope_cache& from = d.cache;
  ROPE_TRY(check_range("cache.kind", from.kind, ROPE_CACHE_NONE, ROPE_CACHE_PAGES));
  if (from.kind == ROPE_CACHE_NONE) {
    if (from.k.data || from.v.data || from.slots || from.page_table || from.num_pages || from.page_size ||
        from.skips_tokens || d.cache_k_nope.data)
      return fail(ROPE_ERR_INVALID_ARG, "cache.kind: ROPE_CACHE_NONE (0), but the cache has other fields set");
    return ROPE_OK;
  }
  ROPE_TRY(check_range("cache.index_dtype", from.index_dtype, ROPE_INDEX_INT64, ROPE_INDEX_INT32));
  ROPE_TRY(check_range("cache.page_size", from.page_size, 1, ROPE_MAX_PAGE_SIZE));
  ROPE_TRY(check_range("cache.num_pages", from.num_pages, 1, INT64_MAX / 4 / ROPE_MAX_PAGE_SIZE));
  ROPE_TRY(check_pointer(d.backend, "cache.num_skipped", from.num_skipped, 8));
  const bool shifts = (from.page_size & (from.page_size - 1)) == 0;
  *c = {from.index_dtype == ROPE_INDEX_INT32,
        from.page_size,
        shifts ? __builtin_ctz(unsigned(from.page_size)) : -1,
        from.num_pages,
        from.kind == ROPE_CACHE_SLOTS ? from.slots : from.cache_positions,
        from.page_table,
        from.page_indptr,
        from.request_ids,
        from.page_table_stride,
        from.num_skipped};
  ROPE_TRY(check_range("cache.skips_tokens", from.skips_tokens, 0, 1));
  if (!d.k.data && !d.v.data && !(d.flags & ROPE_FLAG_IN_CACHE))
    return fail(ROPE_ERR_INVALID_ARG, "cache: nothing to append, k and v are NULL");
  if (from.kind == ROPE_CACHE_SLOTS) {
    if (from.page_table || from.page_indptr || from.request_ids || from.cache_positions || from.page_table_stride)
      return fail(ROPE_ERR_INVALID_ARG, "cache.page_table: not allowed with ROPE_CACHE_SLOTS");
    return require_pointer(d.backend, "cache.slots", from.slots, index_bytes(from.index_dtype),
                           "with ROPE_CACHE_SLOTS");
  }
  if (from.slots) return fail(ROPE_ERR_INVALID_ARG, "cache.slots: not allowed with ROPE_CACHE_PAGES");
  ROPE_TRY(require_pointer(d.backend, "cache.page_table", from.page_table, 4, "with ROPE_CACHE_PAGES"));
  ROPE_TRY(require_pointer(d.backend, "cache.request_ids", from.request_ids, 4, "with ROPE_CACHE_PAGES"));
  ROPE_TRY(require_pointer(d.backend, "cache.cache_positions", from.cache_positions, index_bytes(from.index_dtype),
                           "with ROPE_CACHE_PAGES"));
  if (from.page_indptr && from.page_table_stride)
    return fail(ROPE_ERR_INVALID_ARG, "cache.page_table_stride: not allowed with page_indptr");
  if (from.page_indptr) return check_pointer(d.backend, "cache.page_indptr", from.page_indptr, 4);
  return check_range("cache.page_table_stride", from.page_table_stride, 1, INT32_MAX);
}

rope_status read_angles(const rope_apply_desc& d, PipelineCall* p) {
  const rope_cos_sin &c = d.cos_sin, &k = d.k_cos_sin;
  const bool given = d.angle == ROPE_ANGLE_COS_SIN;
  p->angle = Angle(d.angle);
  if (!given && (is_set(c) || is_set(k) || d.table_flags))
    return fail(ROPE_ERR_INVALID_ARG, "%s: only allowed with ROPE_ANGLE_COS_SIN",
                is_set(c)   ? "cos_sin"
                : is_set(k) ? "k_cos_sin"
                            : "table_flags");
  if (given) {
    ROPE_TRY(read_table_form(d, p));
    ROPE_TRY(read_table(d, p->table, kCosSin, c, &p->cos_sin));
    if (is_set(k)) ROPE_TRY(read_k_table(d, p));
    if (d.positions_from || d.frequency_sets.words)
      return fail(ROPE_ERR_UNSUPPORTED, "%s: not with ROPE_ANGLE_COS_SIN, which has no frequencies",
                  d.positions_from ? "positions_from" : "frequency_sets");
  }
  p->positions_from = d.positions_from;
  if (d.positions_from) {
    if (!d.positions || p->positions.sections.streams)
      return fail(ROPE_ERR_INVALID_ARG, "positions_from: only allowed with positions, one for each token");
    ROPE_TRY(check_pointer(d.backend, "positions_from", d.positions_from, index_bytes(d.position_dtype)));
  }
  const rope_frequency_sets& s = d.frequency_sets;
  if (!s.words) {
    if (s.factors || s.ids || s.ids_from || s.num_sets)
      return fail(ROPE_ERR_INVALID_ARG, "frequency_sets.words: NULL, but frequency_sets has other fields set");
    if (!d.frequencies && !given && !(d.flags & ROPE_FLAG_NO_ROTATION))
      return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL, must be what rope_frequencies filled");
    return ROPE_OK;
  }
  ROPE_TRY(check_pointer(d.backend, "frequency_sets.words", s.words, 8));
  ROPE_TRY(check_pointer(d.backend, "frequency_sets.factors", s.factors, 4));
  ROPE_TRY(require_pointer(d.backend, "frequency_sets.ids", s.ids, 4, "with frequency_sets.words"));
  ROPE_TRY(check_pointer(d.backend, "frequency_sets.ids_from", s.ids_from, 4));
  if (s.ids_from && !d.positions_from)
    return fail(ROPE_ERR_INVALID_ARG, "frequency_sets.ids_from: only allowed with positions_from");
  ROPE_TRY(check_range("frequency_sets.num_sets", s.num_sets, 1, INT32_MAX));
  p->sets = {s.words, s.factors, s.ids, s.ids_from, s.num_sets};
  return ROPE_OK;
}

rope_status read_xpos(const rope_apply_desc& d, XPos* x) {
  const rope_xpos& from = d.xpos;
  if (from.scale_base == 0) {
    if (from.gamma != 0 || from.center)
      return fail(ROPE_ERR_INVALID_ARG, "xpos.scale_base: 0, but xpos has other fields set");
    return ROPE_OK;
  }
  if (d.angle == ROPE_ANGLE_COS_SIN)
    return fail(ROPE_ERR_UNSUPPORTED, "xpos: not with ROPE_ANGLE_COS_SIN, whose rows q and k share");
  if (d.rotary_dim > ROPE_MAX_XPOS_DIM)
    return fail(ROPE_ERR_UNSUPPORTED, "rotary_dim: %d, must be at most %d with xpos", d.rotary_dim, ROPE_MAX_XPOS_DIM);
  const double gamma = from.gamma == 0 ? 0.4 : from.gamma;
  ROPE_TRY(check_between("xpos.scale_base", from.scale_base, ROPE_XPOS_SCALE_BASE_MIN, ROPE_XPOS_SCALE_BASE_MAX));
  ROPE_TRY(check_between("xpos.gamma", gamma, ROPE_XPOS_GAMMA_MIN, ROPE_XPOS_GAMMA_MAX));
  constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  const DefaultFloatEnvironment environment;
  x->center = from.center;
  // zeta = 1 - (1 - 2i / rotary_dim) / (1 + gamma), whose logarithm log1p() has to 1e-11, relative, for every gamma.
  for (int32_t i = 0; i < d.rotary_dim / 2; ++i)
    x->rates[i] = std::log1p((2 * i - d.rotary_dim) / (d.rotary_dim * (1 + gamma))) / (kLn2 * from.scale_base);
  return ROPE_OK;
}

}  // namespace rope::api
