#include "query_rows.h"

#include "checks.h"

namespace rope::api {
namespace {

// Sequences have the same positions.
bool are_shared(const PipelineCall& p) {
  return p.positions.kind == PositionKind::kOffset || (p.positions.ids && p.places.sequence_stride == 0);
}

}  // namespace

bool has_query_rows(const ApplyCall& rotation) {
  const PipelineCall& p = rotation.pipeline;
  const PositionPlaces& places = p.places;
  const bool ragged = p.positions.kind == PositionKind::kRagged32 || p.positions.kind == PositionKind::kRagged64;
  const bool follow = places.stride == 1 && (are_shared(p) || places.sequence_stride == places.sequence_length);
  return can_turn_on_the_way(p.rotary_dim, p.rotary_offset) && p.angle != Angle::kCosSin && !p.rare && !p.sets.words &&
         !p.positions.sections.streams && !p.positions_from && p.skip == kUsualSkip && !rotation.d.xpos.scale_base &&
         (ragged || follow);
}

rope_status build_query_rows(const ApplyCall& rotation, int64_t sequence_tokens, void* rows, AttentionTurn* turn) {
  const PipelineCall& p = rotation.pipeline;
  const bool shared = sequence_tokens && are_shared(p);
  const Operations* operations;
  ROPE_TRY(find_operations(rotation.d.backend, ROPE_DTYPE_F32, ROPE_LAYOUT_NEOX, rotation.d.angle, &operations));
  CosSinParams x = {};
  x.num_rows = shared ? sequence_tokens : rotation.d.num_tokens;
  x.row_stride = p.rotary_dim * kQueryRowBytes;
  x.pairs = p.rotary_dim / 2;
  x.cos = static_cast<char*>(rows);
  x.sin = x.cos + x.pairs * kQueryRowBytes;
  x.scale = p.cos_scale;
  x.positions = p.positions;
  x.angle = p.angle;
  x.of_tokens = true;
  *turn = {reinterpret_cast<float*>(x.cos),
           reinterpret_cast<float*>(x.sin),
           shared ? 0 : sequence_tokens * p.rotary_dim,
           p.rotary_dim,
           p.layout,
           p.rotary_dim,
           p.rotary_offset};
  return status_of(operations->build_cos_sin(x, {rotation.d.frequencies, nullptr}, rotation.execution));
}

}  // namespace rope::api
