// rope_build_cos_sin: the descriptor checked once for both backends, then what is compiled for it.
#include "../build_cos_sin.h"

#include "apply.h"

namespace rope::api {
namespace {

using Desc = rope_build_cos_sin_desc;

// Where the cosines go, or the sines, or both in one row.
rope_status read_place(const Desc& d, const char* name, void* data, int64_t width, Rows* rows) {
  if (!data) return fail(ROPE_ERR_INVALID_ARG, "%s: NULL, must be memory that the rows are written to", name);
  ROPE_TRY(read_rows(name, {data, d.row_stride, 0}, d.num_rows, 1, width, dtype_bytes(d.dtype), rows));
  return d.backend == ROPE_BACKEND_CUDA ? check_device_pointer(name, data) : ROPE_OK;
}

rope_status read_positions(const Desc& d, Positions* p) {
  ROPE_TRY(check_index_dtype("position_dtype", d.position_dtype));
  *p = {PositionKind::kOffset, 0, d.offset, nullptr, nullptr, {}};
  if (!d.positions) return ROPE_OK;
  if (d.offset)
    return fail(ROPE_ERR_INVALID_ARG, "offset: %lld, must be 0 with positions", static_cast<long long>(d.offset));
  p->kind = d.position_dtype == ROPE_INDEX_INT32 ? PositionKind::kIds32 : PositionKind::kIds64;
  p->ids = d.positions;
  return check_address("positions", d.positions, index_bytes(d.position_dtype));
}

rope_status build_cos_sin(const Desc* desc) {
  Desc d;
  ROPE_TRY(read_descriptor(desc, sizeof(Desc), "rope_build_cos_sin_desc", &d));
  CosSinFn build = nullptr;
  ROPE_TRY(find_cos_sin_builder(d.backend, d.dtype, d.angle, &build));
  if (d.flags & ~uint32_t(ROPE_FLAG_PDL))
    return fail(ROPE_ERR_INVALID_ARG, "flags: %#x has bits other than ROPE_FLAG_PDL (2)", d.flags);
  ROPE_TRY(check_range("reserved", d.reserved, 0, 0));
  if (d.rotary_dim < 2 || d.rotary_dim > ROPE_MAX_ROTARY_DIM || d.rotary_dim % 2)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even and 2 to %d", d.rotary_dim, ROPE_MAX_ROTARY_DIM);
  ROPE_TRY(check_range("num_rows", d.num_rows, 0, INT32_MAX));
  ROPE_TRY(read_attention_factor(&d.attention_factor));
  ROPE_TRY(check_execution(d.backend, d.stream, d.num_threads));
  if (!d.frequencies) return fail(ROPE_ERR_INVALID_ARG, "frequencies: NULL, must be what rope_frequencies filled");
  const int64_t pairs = d.rotary_dim / 2, width = d.sin ? pairs : 2 * pairs;
  if (d.row_stride) ROPE_TRY(check_range("row_stride", d.row_stride, width, ROPE_MAX_ROW_STRIDE));
  CosSinParams p = {};
  ROPE_TRY(read_positions(d, &p.positions));
  if (d.num_rows == 0) return ROPE_OK;
  if (d.backend == ROPE_BACKEND_CUDA) ROPE_TRY(check_device_pointer("positions", d.positions));

  Rows cos, sin;
  const Extent ids{"positions", d.positions, d.num_rows * index_bytes(d.position_dtype)};
  ROPE_TRY(read_place(d, "cos", d.cos, width, &cos));
  ROPE_TRY(check_apart("cos", cos, ids));
  p.cos = static_cast<char*>(d.cos);
  p.sin = p.cos + pairs * dtype_bytes(d.dtype);
  if (d.sin) {
    ROPE_TRY(read_place(d, "sin", d.sin, width, &sin));
    ROPE_TRY(check_apart("sin", sin, ids));
    if (!are_apart(cos, sin))
      return fail(ROPE_ERR_INVALID_ARG, "sin: overlaps cos in memory, must be memory that is apart");
    p.sin = static_cast<char*>(d.sin);
  }
  p.num_rows = d.num_rows;
  p.row_stride = cos.token_stride;
  p.pairs = int32_t(pairs);
  p.scale = d.attention_factor;
  return launch_status(build(p, d.frequencies, execution_of(d.backend, d.flags, d.stream, d.num_threads)));
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
