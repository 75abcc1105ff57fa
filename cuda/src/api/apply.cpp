// rope_apply: the descriptor checked once for both backends, then what is compiled for it.
#include "apply.h"

#include <algorithm>

#include "places.h"
#include "tensors.h"

namespace rope::api {
namespace {

// Without a rotation only what the other stages do is left. Kernels then take a head's two halves for pairs.
rope_status check_nothing_turns(rope_apply_desc* d) {
  const struct {
    const char* name;
    bool given;
  } turns[] = {{"rotary_dim", d->rotary_dim != 0},
               {"rotary_offset", d->rotary_offset != 0},
               {"ROPE_FLAG_IN_CACHE", (d->flags & ROPE_FLAG_IN_CACHE) != 0},
               {"angle", d->angle == ROPE_ANGLE_COS_SIN},
               {"sections", d->sections.num_streams != 0},
               {"positions_from", d->positions_from != nullptr},
               {"frequency_sets", d->frequency_sets.words != nullptr},
               {"num_blocks", d->num_blocks > 1},
               {"xpos", d->xpos.scale_base != 0}};
  for (const auto& x : turns)
    if (x.given)
      return fail(ROPE_ERR_INVALID_ARG, "%s: not allowed with ROPE_FLAG_NO_ROTATION, with which nothing turns", x.name);
  d->rotary_dim = std::min(d->head_dim, ROPE_MAX_ROTARY_DIM) / 2 * 2;
  return ROPE_OK;
}

rope_status check_shape(rope_apply_desc* d) {
  ROPE_TRY(check_flags(d->flags, ROPE_FLAG_INVERSE | ROPE_FLAG_PDL | ROPE_FLAG_POSITIONS_READY | ROPE_FLAG_IN_CACHE |
                                     ROPE_FLAG_NO_ROTATION | ROPE_FLAG_CHECK_PLACES));
  const int32_t reserved = d->reserved | d->norm.reserved | d->q_quantize.reserved | d->k_quantize.reserved |
                           d->v_quantize.reserved | d->cos_sin.reserved | d->frequency_sets.reserved |
                           d->k_cos_sin.reserved | d->reserved_2;
  ROPE_TRY(check_range("reserved", reserved, 0, 0));
  ROPE_TRY(check_range("head_dim", d->head_dim, 2, ROPE_MAX_HEAD_DIM));
  if (d->flags & ROPE_FLAG_NO_ROTATION) ROPE_TRY(check_nothing_turns(d));
  if (d->rotary_dim == 0) d->rotary_dim = d->head_dim;
  if (d->rotary_dim < 2 || d->rotary_dim % 2 || d->rotary_dim > d->head_dim || d->rotary_dim > ROPE_MAX_ROTARY_DIM)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_dim: %d, must be even, at least 2, at most head_dim (%d) and %d",
                d->rotary_dim, d->head_dim, ROPE_MAX_ROTARY_DIM);
  if (d->rotary_offset < 0 || d->rotary_offset > d->head_dim - d->rotary_dim)
    return fail(ROPE_ERR_INVALID_ARG, "rotary_offset: %d, must be 0 to head_dim - rotary_dim (%d)", d->rotary_offset,
                d->head_dim - d->rotary_dim);
  if (d->num_blocks == 0) d->num_blocks = 1;
  if (d->num_blocks < 1 || d->rotary_dim / 2 % d->num_blocks)
    return fail(ROPE_ERR_INVALID_ARG, "num_blocks: %d, must be 1 or more and divide rotary_dim / 2 = %d", d->num_blocks,
                d->rotary_dim / 2);
  ROPE_TRY(check_range("num_tokens", d->num_tokens, 0, INT32_MAX));
  return read_attention_factor(&d->attention_factor);
}

rope_status check_k_dtype(const rope_apply_desc& d) {
  const bool other = d.dtype != ROPE_DTYPE_F32 && (d.k_dtype == ROPE_OUT_F16 || d.k_dtype == ROPE_OUT_BF16);
  if (d.k_dtype && !other && d.k_dtype != ROPE_OUT_F32 + d.dtype)
    return fail(ROPE_ERR_UNSUPPORTED, "k_dtype: %d, must be 0 or%s", d.k_dtype,
                d.dtype == ROPE_DTYPE_F32 ? " ROPE_OUT_F32 (4), as dtype"
                                          : " of two bytes as dtype, ROPE_OUT_F16 (5) or ROPE_OUT_BF16 (6)");
  if (d.k_dtype && (d.flags & ROPE_FLAG_IN_CACHE))
    return fail(ROPE_ERR_INVALID_ARG, "k_dtype: %d, must be 0 with ROPE_FLAG_IN_CACHE, with which dtype is the keys'",
                d.k_dtype);
  return ROPE_OK;
}

// All but positions and tensors.
rope_status read_options(const rope_apply_desc& d, PipelineCall* p, XPos* xpos) {
  p->num_tokens = d.num_tokens;
  p->rotary_dim = d.rotary_dim;
  p->rotary_offset = d.rotary_offset;
  p->cos_scale = d.attention_factor;
  p->sin_scale = d.flags & ROPE_FLAG_INVERSE ? -p->cos_scale : p->cos_scale;
  p->angle = Angle(d.angle);
  ROPE_TRY(read_layouts(d, p));
  ROPE_TRY(read_blocks(d, p));
  ROPE_TRY(read_angles(d, p));
  ROPE_TRY(read_xpos(d, xpos));
  ROPE_TRY(read_norm(d, &p->norm));
  p->slot_skips = d.cache.skips_tokens != 0;
  return read_cache(d, &p->cache);
}

}  // namespace

rope_status apply(const rope_apply_desc* desc, bool asks) {
  ApplyCall call;
  ROPE_TRY(read_call(desc, &call));
  const rope_apply_desc& d = call.d;
  PipelineCall& p = call.pipeline;
  if (d.num_tokens == 0) return ROPE_OK;
  ROPE_TRY(read_tensors(d, &p));
  ROPE_TRY(read_norm_sums(d, &p));
  if (d.flags & ROPE_FLAG_CHECK_PLACES) ROPE_TRY(check_places(d, p.cache));
  if (asks) return ROPE_OK;
  uint8_t streams[ROPE_MAX_ROTARY_DIM / 2];
  const PairData pairs = {d.frequencies, d.xpos.scale_base != 0 ? &call.xpos : nullptr, streams_of(d, p, streams)};
  const auto operation = d.flags & ROPE_FLAG_IN_CACHE ? call.operations->rotate_cache : call.operations->pipeline;
  return status_of(operation(p, pairs, call.execution));
}

rope_status read_call(const rope_apply_desc* desc, ApplyCall* call) {
  rope_apply_desc& d = call->d;
  ROPE_TRY(read_descriptor(desc, offsetof(rope_apply_desc, attention_factor), "rope_apply_desc", &d));
  ROPE_TRY(find_operations(d.backend, d.dtype, d.layout, d.angle, &call->operations));
  ROPE_TRY(check_shape(&d));
  ROPE_TRY(check_k_dtype(d));
  const Threads threads = {d.num_threads, d.parallel_for, d.parallel_context};
  ROPE_TRY(read_execution(d.backend, d.flags, d.stream, threads, &call->execution));
  ROPE_TRY(read_positions(d, &call->pipeline));
  return d.num_tokens ? read_options(d, &call->pipeline, &call->xpos) : rope_status(ROPE_OK);
}

}  // namespace rope::api

extern "C" {

void rope_apply_desc_init(rope_apply_desc* desc) {
  *desc = {};
  desc->struct_size = sizeof(*desc);
}

rope_status rope_apply(const rope_apply_desc* desc) { return rope::api::apply(desc, false); }

}  // extern "C"
