// rope_build_cos_sin: the descriptor checked once for both backends, then what is compiled for it.
#include "checks.h"

namespace rope::api {
namespace {

using Desc = rope_build_cos_sin_desc;

rope_status check_shape(Desc* d) {
  if (d->angle == ROPE_ANGLE_COS_SIN)
    return fail(ROPE_ERR_INVALID_ARG, "angle: %d, must be one of ROPE_ANGLE_EXACT (0), ROPE_ANGLE_FP32 (1)", d->angle);
  ROPE_TRY(check_flags(d->flags, ROPE_FLAG_PDL));
  ROPE_TRY(check_range("reserved", d->reserved, 0, 0));
  if (d->rotary_dim < 2 || d->rotary_dim > ROPE_MAX_ROTARY_DIM || d->rotary_dim % 2)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even and 2 to %d", d->rotary_dim, ROPE_MAX_ROTARY_DIM);
  ROPE_TRY(check_range("num_rows", d->num_rows, 0, INT32_MAX));
  if (!d->frequencies) return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL, must be what rope_frequencies filled");
  return read_attention_factor(&d->attention_factor);
}

rope_status read_positions(const Desc& d, Positions* p) {
  ROPE_TRY(check_position_dtype(d.position_dtype));
  *p = {PositionKind::kOffset, 0, d.offset, nullptr, nullptr, {}, 0};
  if (!d.positions) return ROPE_OK;
  if (d.offset)
    return fail(ROPE_ERR_INVALID_ARG, "offset: %lld, must be 0 with positions", static_cast<long long>(d.offset));
  if (d.position_dtype == ROPE_INDEX_FLOAT32 && d.rotary_dim > ROPE_MAX_FLOAT32_ROTARY_DIM)
    return fail(ROPE_ERR_UNSUPPORTED, "rotary_dim: %d, must be at most %d with ROPE_INDEX_FLOAT32", d.rotary_dim,
                ROPE_MAX_FLOAT32_ROTARY_DIM);
  p->kind = id_kind(d.position_dtype);
  p->ids = d.positions;
  return check_pointer(d.backend, "positions", d.positions, index_bytes(d.position_dtype));
}

// Where the cosines go, or the sines, or both in one row.
rope_status read_place(const Desc& d, const char* name, void* data, int64_t width, Rows* rows) {
  if (!data) return fail(ROPE_ERR_INVALID_ARG, "%s: NULL, must be memory that the rows are written to", name);
  ROPE_TRY(read_rows(name, {data, d.row_stride, 0}, {}, {1, d.num_rows, 1, width}, dtype_bytes(d.dtype), rows));
  ROPE_TRY(check_device_pointer(d.backend, name, data));
  if (d.positions && !are_apart(*rows, d.positions, d.num_rows * index_bytes(d.position_dtype)))
    return fail(ROPE_ERR_INVALID_ARG,
                "positions: overlaps %s in memory, which is written; must be memory that is apart", name);
  return ROPE_OK;
}

rope_status build_cos_sin(const Desc* desc) {
  Desc d;
  ROPE_TRY(read_descriptor(desc, offsetof(Desc, parallel_for), "rope_build_cos_sin_desc", &d));
  const Operations* operations;
  ROPE_TRY(find_operations(d.backend, d.dtype, ROPE_LAYOUT_NEOX, d.angle, &operations));
  ROPE_TRY(check_shape(&d));
  Execution execution;
  const Threads threads = {d.num_threads, d.parallel_for, d.parallel_context};
  ROPE_TRY(read_execution(d.backend, d.flags, d.stream, threads, &execution));
  const int64_t pairs = d.rotary_dim / 2, width = d.sin ? pairs : 2 * pairs;
  if (d.row_stride) ROPE_TRY(check_range("row_stride", d.row_stride, width, ROPE_MAX_ROW_STRIDE));
  CosSinParams p = {};
  ROPE_TRY(read_positions(d, &p.positions));
  if (d.num_rows == 0) return ROPE_OK;

  Rows cos, sin;
  ROPE_TRY(read_place(d, "cos", d.cos, width, &cos));
  p.cos = static_cast<char*>(d.cos);
  p.sin = p.cos + pairs * dtype_bytes(d.dtype);
  if (d.sin) {
    ROPE_TRY(read_place(d, "sin", d.sin, width, &sin));
    if (!are_apart(cos, sin))
      return fail(ROPE_ERR_INVALID_ARG, "sin: overlaps cos in memory, must be memory that is apart");
    p.sin = static_cast<char*>(d.sin);
  }
  p.num_rows = d.num_rows;
  p.row_stride = cos.token.stride;
  p.pairs = int32_t(pairs);
  p.scale = d.attention_factor;
  p.angle = Angle(d.angle);
  return status_of(operations->build_cos_sin(p, {d.frequencies, nullptr}, execution));
}

}  // namespace
}  // namespace rope::api

extern "C" {

void rope_build_cos_sin_desc_init(rope_build_cos_sin_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_build_cos_sin(const rope_build_cos_sin_desc* desc) { return rope::api::build_cos_sin(desc); }

}  // extern "C"
