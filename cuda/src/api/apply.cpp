// rope_apply: the descriptor checked once for both backends, then what is compiled for it.
#include "apply.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "../kernels/device.h"

namespace rope::api {
namespace {

constexpr int64_t kMaxTokens = INT32_MAX;

rope_status check_shape(rope_apply_desc* d) {
  if (d->flags & ~uint32_t(ROPE_FLAG_INVERSE | ROPE_FLAG_PDL | ROPE_FLAG_POSITIONS_READY | ROPE_FLAG_IN_CACHE))
    return fail(ROPE_ERR_INVALID_ARG,
                "flags: %#x has bits other than ROPE_FLAG_INVERSE (1), ROPE_FLAG_PDL (2), ROPE_FLAG_POSITIONS_READY "
                "(4), ROPE_FLAG_IN_CACHE (8)",
                d->flags);
  if (d->head_dim < 2 || d->head_dim > ROPE_MAX_HEAD_DIM)
    return fail(ROPE_ERR_INVALID_ARG, "head_dim: %d, must be 2 to %d", d->head_dim, ROPE_MAX_HEAD_DIM);
  if (d->rotary_dim == 0) d->rotary_dim = d->head_dim;
  if (d->rotary_dim < 2 || d->rotary_dim % 2 || d->rotary_dim > d->head_dim || d->rotary_dim > ROPE_MAX_ROTARY_DIM)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even, at least 2, at most head_dim (%d) and %d",
                d->rotary_dim, d->head_dim, ROPE_MAX_ROTARY_DIM);
  if (d->rotary_offset < 0 || d->rotary_offset > d->head_dim - d->rotary_dim)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_offset: %d, must be 0 to head_dim - rotary_dim (%d)", d->rotary_offset,
                d->head_dim - d->rotary_dim);
  ROPE_TRY(check_range("num_tokens", d->num_tokens, 0, kMaxTokens));
  ROPE_TRY(read_attention_factor(&d->attention_factor));
  return check_execution(d->backend, d->stream, d->num_threads);
}

rope_status read_sections(const rope_apply_desc& d, Sections* s) {
  const rope_sections& from = d.sections;
  if (!from.num_streams) {
    if (from.interleaved || from.stream_stride || from.sizes[0] || from.sizes[1] || from.sizes[2] || from.sizes[3])
      return fail(ROPE_ERR_INVALID_ARG, "sections.num_streams: 0, but sections has other fields set");
    return ROPE_OK;
  }
  ROPE_TRY(check_range("sections.num_streams", from.num_streams, 2, 4));
  ROPE_TRY(check_range("sections.interleaved", from.interleaved, 0, 1));
  if (!d.positions) return fail(ROPE_ERR_INVALID_ARG, "positions: NULL, required with sections");
  *s = {from.num_streams, from.interleaved != 0, {}, from.stream_stride ? from.stream_stride : d.num_tokens};
  int64_t sum = 0;
  for (int32_t i = 0; i < 4; ++i) {
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

rope_status read_positions(const rope_apply_desc& d, Positions* p) {
  ROPE_TRY(check_index_dtype("position_dtype", d.position_dtype));
  const bool is_int32 = d.position_dtype == ROPE_INDEX_INT32;
  if (d.positions && d.indptr) return fail(ROPE_ERR_INVALID_ARG, "indptr: not allowed together with positions");
  if (d.offset && (d.positions || d.indptr))
    return fail(ROPE_ERR_INVALID_ARG, "offset: %lld, must be 0 with positions or indptr",
                static_cast<long long>(d.offset));
  if (d.offsets && !d.indptr) return fail(ROPE_ERR_INVALID_ARG, "offsets: only allowed with indptr");
  if (!d.indptr && d.num_requests)
    return fail(ROPE_ERR_INVALID_ARG, "num_requests: %lld, must be 0 without indptr",
                static_cast<long long>(d.num_requests));
  *p = {PositionKind::kOffset, 0, d.offset, nullptr, nullptr, {}};
  ROPE_TRY(read_sections(d, &p->sections));
  if (d.positions) {
    ROPE_TRY(check_address("positions", d.positions, index_bytes(d.position_dtype)));
    p->kind = is_int32 ? PositionKind::kIds32 : PositionKind::kIds64;
    p->ids = d.positions;
  } else if (d.indptr) {
    if (d.num_requests < 1 || d.num_requests > INT32_MAX)
      return fail(ROPE_ERR_INVALID_ARG, "num_requests: %lld, must be 1 to %d with indptr",
                  static_cast<long long>(d.num_requests), INT32_MAX);
    ROPE_TRY(check_address("indptr", d.indptr, index_bytes(d.position_dtype)));
    if (d.offsets) ROPE_TRY(check_address("offsets", d.offsets, index_bytes(d.position_dtype)));
    p->kind = is_int32 ? PositionKind::kRagged32 : PositionKind::kRagged64;
    p->num_requests = int32_t(d.num_requests);
    p->ids = d.indptr;
    p->offsets = d.offsets;
  }
  return ROPE_OK;
}

// One of q and k with its output.
struct Operand {
  const char *name, *out_name;
  Rows in, out;
  bool present;

  bool in_place() const { return same_rows(in, out); }
  const char* written() const { return in_place() ? name : out_name; }
};

}  // namespace

rope_status check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %lld, must be %lld to %lld", name, static_cast<long long>(value),
              static_cast<long long>(low), static_cast<long long>(high));
}

rope_status check_index_dtype(const char* name, int32_t value) {
  if (value == ROPE_INDEX_INT64 || value == ROPE_INDEX_INT32) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %d, must be one of ROPE_INDEX_INT64 (0), ROPE_INDEX_INT32 (1)", name, value);
}

rope_status read_attention_factor(float* factor) {
  if (!std::isfinite(*factor))
    return fail(ROPE_ERR_INVALID_ARG, "attention_factor: %g, must be finite", double(*factor));
  if (*factor == 0) *factor = 1.0f;
  return ROPE_OK;
}

rope_status check_execution(int32_t backend, const void* stream, int32_t num_threads) {
  const bool cpu = backend == ROPE_BACKEND_CPU;
  if (cpu && stream) return fail(ROPE_ERR_INVALID_ARG, "stream: must be NULL on the CPU backend");
  if (cpu ? num_threads < 0 : num_threads != 0)
    return fail(ROPE_ERR_INVALID_ARG, "num_threads: %d, must be %s", num_threads,
                cpu ? "0 (all) or more" : "0 on the CUDA backend");
  return ROPE_OK;
}

Execution execution_of(int32_t backend, uint32_t flags, void* stream, int32_t num_threads) {
  const bool dependent = (flags & ROPE_FLAG_PDL) && backend == ROPE_BACKEND_CUDA && cuda::has_dependent_launch();
  return {stream, dependent, (flags & ROPE_FLAG_POSITIONS_READY) != 0, num_threads};
}

rope_status launch_status(int error) {
  if (error == 0) return ROPE_OK;
  return fail(cuda::is_no_device(error) ? ROPE_ERR_NO_DEVICE : ROPE_ERR_CUDA, "launch failed: %s",
              cuda::error_name(error));
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

rope_status check_positions_apart(const rope_apply_desc& d, const Positions& p, const char* written_name,
                                  const Rows& written) {
  const int64_t bytes = index_bytes(d.position_dtype);
  const int64_t ids = d.num_tokens + std::max(p.sections.streams - 1, 0) * p.sections.stride;
  for (const Extent& read :
       {Extent{"positions", d.positions, ids * bytes}, Extent{"indptr", d.indptr, (d.num_requests + 1) * bytes},
        Extent{"offsets", d.offsets, d.num_requests * bytes}})
    ROPE_TRY(check_apart(written_name, written, read));
  return ROPE_OK;
}

rope_status check_device_pointer(const char* name, const void* pointer) {
  if (!pointer || !cuda::is_host_only(pointer)) return ROPE_OK;
  return fail(ROPE_ERR_INVALID_ARG, "%s: %p is host memory, which the CUDA backend cannot read", name, pointer);
}

namespace {

rope_status read_operand(const rope_apply_desc& d, const rope_tensor& in, const rope_tensor& out, int32_t heads,
                         Operand* o) {
  o->present = in.data != nullptr;
  if (!o->present) {
    if (out.data) return fail(ROPE_ERR_INVALID_ARG, "%s: given without %s", o->out_name, o->name);
    return ROPE_OK;
  }
  if (heads < 1 || heads > ROPE_MAX_HEADS)
    return fail(ROPE_ERR_INVALID_ARG, "num_%s_heads: %d, must be 1 to %d", o->name, heads, ROPE_MAX_HEADS);
  const int64_t bytes = dtype_bytes(d.dtype);
  ROPE_TRY(read_rows(o->name, in, d.num_tokens, heads, d.head_dim, bytes, &o->in));
  o->out = o->in;
  if (out.data) ROPE_TRY(read_rows(o->out_name, out, d.num_tokens, heads, d.head_dim, bytes, &o->out));
  if (!rows_are_distinct(o->out))
    return fail(
        ROPE_ERR_INVALID_ARG,
        "%s: strides overlap (token %lld, head %lld, row %lld bytes), every row that is written must be its own "
        "memory",
        o->written(), static_cast<long long>(o->out.token_stride), static_cast<long long>(o->out.head_stride),
        static_cast<long long>(o->out.row));
  return o->in_place() ? ROPE_OK : check_apart(o->out_name, o->out, o->name, o->in);
}

rope_status check_operands(const Operand& q, const Operand& k) {
  if (!q.present && !k.present) return fail(ROPE_ERR_INVALID_ARG, "q: NULL and k: NULL, at least one must be given");
  if (!q.present || !k.present) return ROPE_OK;
  ROPE_TRY(check_apart(k.written(), k.out, q.written(), q.out));
  if (!k.in_place()) ROPE_TRY(check_apart(k.out_name, k.out, q.name, q.in));
  if (!q.in_place()) ROPE_TRY(check_apart(q.out_name, q.out, k.name, k.in));
  return ROPE_OK;
}

rope_status check_operand_positions(const rope_apply_desc& d, const Positions& p, const Operand& o) {
  return o.present ? check_positions_apart(d, p, o.written(), o.out) : ROPE_OK;
}

Heads heads_of(const Operand& o) {
  return {o.in.data,        const_cast<char*>(o.out.data), o.in.token_stride, o.in.head_stride, o.out.token_stride,
          o.out.head_stride};
}

rope_status run_rotation(const rope_apply_desc& d, RotateFn rotation, const Positions& positions,
                         const Execution& execution, int* error) {
  Operand q = {"q", "q_out", {}, {}, false}, k = {"k", "k_out", {}, {}, false};
  ROPE_TRY(read_operand(d, d.q, d.q_out, d.num_q_heads, &q));
  ROPE_TRY(read_operand(d, d.k, d.k_out, d.num_k_heads, &k));
  ROPE_TRY(check_operands(q, k));
  ROPE_TRY(check_operand_positions(d, positions, q));
  ROPE_TRY(check_operand_positions(d, positions, k));
  if (d.backend == ROPE_BACKEND_CUDA)
    for (const Operand* o : {&q, &k}) {
      if (!o->present) continue;
      ROPE_TRY(check_device_pointer(o->name, o->in.data));
      if (!o->in_place()) ROPE_TRY(check_device_pointer(o->out_name, o->out.data));
    }
  RotateParams p = {};
  p.q = heads_of(q);
  p.k = heads_of(k);
  p.num_q_heads = q.present ? d.num_q_heads : 0;
  p.num_k_heads = k.present ? d.num_k_heads : 0;
  p.num_tokens = d.num_tokens;
  p.head_dim = d.head_dim;
  p.rotary_dim = d.rotary_dim;
  p.rotary_offset = d.rotary_offset;
  p.cos_scale = d.attention_factor;
  p.sin_scale = d.flags & ROPE_FLAG_INVERSE ? -p.cos_scale : p.cos_scale;
  p.positions = positions;
  *error = rotation(p, d.frequencies, execution);
  return ROPE_OK;
}

rope_status run_pipeline(const rope_apply_desc& d, PipelineFn pipeline, const Positions& positions,
                         const Execution& execution, int* error) {
  PipelineParams p = {};
  XPos xpos;
  p.num_tokens = d.num_tokens;
  p.rotary_dim = d.rotary_dim;
  p.rotary_offset = d.rotary_offset;
  p.cos_scale = d.attention_factor;
  p.sin_scale = d.flags & ROPE_FLAG_INVERSE ? -p.cos_scale : p.cos_scale;
  p.positions = positions;
  ROPE_TRY(read_pipeline(d, &p, &xpos));
  *error = pipeline(p, {d.frequencies, d.xpos.scale_base != 0 ? &xpos : nullptr}, execution);
  return ROPE_OK;
}

rope_status find_stages(const rope_apply_desc& d, PipelineFn* pipeline) {
  if (d.flags & ROPE_FLAG_IN_CACHE)
    return find_cache_rotation(d.backend, d.dtype, d.layout, d.angle, d.k_quantize.out_dtype != ROPE_OUT_SAME,
                               pipeline);
  return find_pipeline(d.backend, d.dtype, d.layout, d.angle, pipeline);
}

rope_status apply(const rope_apply_desc* desc) {
  rope_apply_desc d;
  ROPE_TRY(read_descriptor(desc, offsetof(rope_apply_desc, attention_factor), "rope_apply_desc", &d));
  const bool stages = has_stages(d);
  RotateFn rotation = nullptr;
  PipelineFn pipeline = nullptr;
  ROPE_TRY(stages ? find_stages(d, &pipeline) : find_rotation(d.backend, d.dtype, d.layout, d.angle, &rotation));
  ROPE_TRY(check_shape(&d));
  Positions positions;
  ROPE_TRY(read_positions(d, &positions));
  if (!stages && !d.frequencies)
    return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL, must be what rope_frequencies filled");
  if (d.num_tokens == 0) return ROPE_OK;
  if (d.backend == ROPE_BACKEND_CUDA) {
    ROPE_TRY(check_device_pointer("positions", d.positions));
    ROPE_TRY(check_device_pointer("indptr", d.indptr));
    ROPE_TRY(check_device_pointer("offsets", d.offsets));
  }
  const Execution execution = execution_of(d.backend, d.flags, d.stream, d.num_threads);
  int error = 0;
  ROPE_TRY(stages ? run_pipeline(d, pipeline, positions, execution, &error)
                  : run_rotation(d, rotation, positions, execution, &error));
  return launch_status(error);
}

}  // namespace
}  // namespace rope::api

extern "C" {

void rope_apply_desc_init(rope_apply_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_apply(const rope_apply_desc* desc) { return rope::api::apply(desc); }

}  // extern "C"
