// What all options mean for one token and one pair, the rare ones too (PipelineCall): for the CPU, the general kernel
// and keys in a cache. The functions of token.h for a PipelineParams are the pipeline kernel's, whose code has none of
// this.
#pragma once

#include "token.h"

namespace rope {

// A position as it is read. Of kFloat32 it is the bits of the float32.
struct PlacedToken : TokenState {
  int64_t place;  // element of the positions
};

// A token's number in its sequence, and which that is.
struct SequencePlace {
  int64_t sequence, token;
};

ROPE_INLINE SequencePlace place_in_sequence(int64_t token, int64_t length) {
  if (!length) return {0, token};
  const int64_t sequence = uint32_t(token) / uint32_t(length);  // there are no more than 32 bits of tokens
  return {sequence, token - sequence * length};
}

// Where a head of a token is read, where one that is in no cache is stored, and where one that is in one is stored too.
ROPE_INLINE int64_t in_offset(const PipelineOperand& o, const OperandExtras& x, SequencePlace at, int32_t head) {
  return at.sequence * x.in_sequence_stride + at.token * o.in_token_stride + head * o.in_head_stride;
}

ROPE_INLINE int64_t out_offset(const PipelineOperand& o, const OperandExtras& x, SequencePlace at, int32_t head) {
  return at.sequence * x.out_sequence_stride + at.token * o.out_token_stride + head * o.out_head_stride;
}

ROPE_INLINE int64_t kept_offset(const OperandExtras& x, SequencePlace at, int32_t head) {
  return at.sequence * x.kept_sequence_stride + at.token * x.kept_token_stride + head * x.kept_head_stride;
}

ROPE_INLINE bool positions_are_floats(const PipelineParams& p) { return p.positions.kind == PositionKind::kFloat32; }

ROPE_INLINE float as_float(int64_t position) { return bit_cast<float>(uint32_t(position)); }

// Rows of words that a call has: with float32 positions the whole turns stand behind the fractions.
ROPE_INLINE int32_t word_rows(PositionKind kind, Angle angle) {
  return kind == PositionKind::kFloat32 && angle == Angle::kExact ? 2 : 1;
}

ROPE_INLINE int64_t read_position(const PipelineParams& p, const void* positions, int64_t place) {
  return index_at(positions, positions_are_int32(p.positions) || positions_are_floats(p), place);
}

// False: the token is to be left alone. `counts`: this caller reports it, if it is to be reported.
ROPE_INLINE bool token_state(const PipelineCall& p, int64_t token, bool counts, PlacedToken* s) {
  const auto [sequence, number] = place_in_sequence(token, p.places.sequence_length);
  s->place = sequence * p.places.sequence_stride + number * p.places.stride;
  switch (p.positions.kind) {
    case PositionKind::kOffset: s->position = int64_t(uint64_t(p.positions.offset) + uint64_t(number)); break;
    case PositionKind::kRagged32:
    case PositionKind::kRagged64:
      if (!position_of(p.positions, token, &s->position)) return false;
      break;
    default:
      s->position = read_position(p, p.positions.ids, s->place);
      if (!positions_are_floats(p) && p.skip.is(s->position)) return false;
  }
  s->from = p.positions_from ? read_position(p, p.positions_from, s->place) : 0;
  if (!choose_set(p, token, s)) return false;
  if (p.angle != Angle::kCosSin) return true;
  bool inside = uint64_t(s->position) < uint64_t(p.cos_sin.rows);
  for (int32_t i = 1; i < p.positions.sections.streams; ++i)
    inside &= uint64_t(stream_position(p.positions, s->place, i)) < uint64_t(p.cos_sin.rows);
  if (!inside && counts) count_one(p.cos_sin.num_skipped);
  return inside;
}

// Of scalars alone: what is called passes structs through memory.
ROPE_RARE uint64_t phase_of_radians(float radians) { return detail::phase_of_radians<6>(radians); }
ROPE_RARE uint64_t phase_at_float(float position, uint64_t word, uint64_t whole) {
  return phase_at(position, word, whole);
}
ROPE_RARE CosSin angle_of_phase(uint64_t phase, float cos_scale, float sin_scale) {
  return scaled_angle(phase, cos_scale, sin_scale);
}
ROPE_RARE float xpos_magnitude_at(double rate, double distance, int32_t sign) {
  return xpos_magnitude(rate, distance, sign);
}

// The phase of one of so many pairs at a float32 position. False: there is none, as the position, or kFp32's product,
// is not finite.
ROPE_INLINE bool phase_of_float(Angle angle, float position, const uint64_t* words, int32_t pair, int32_t pairs,
                                uint64_t* phase) {
  if (angle == Angle::kExact) {
    *phase = phase_at_float(position, words[pair], words[pairs + pair]);
    return is_finite(position);
  }
  const float radians = position * bit_cast<float>(uint32_t(words[pair]));
  *phase = phase_of_radians(radians);
  return is_finite(radians);
}

// The phase of a pair at a position, which there may be none of.
ROPE_INLINE bool phase_of(const PipelineParams& p, int64_t position, const uint64_t* words, int32_t pair,
                          uint64_t* phase) {
  if (!positions_are_floats(p)) {
    const uint64_t word = words[pair];
    *phase = p.angle == Angle::kExact ? phase_at<Angle::kExact>(position, word)
                                      : phase_of_radians(float(position) * bit_cast<float>(uint32_t(word)));
    return true;
  }
  return phase_of_float(p.angle, as_float(position), words, pair, p.rotary_dim / 2, phase);
}

// What xPos decays with. Of integers, position arithmetic wraps.
ROPE_INLINE double xpos_distance(const PipelineParams& p, const PairData& pairs, int64_t position, int64_t from) {
  if (!positions_are_floats(p)) {
    const int64_t other = p.positions_from ? from : pairs.xpos->center;
    return double(int64_t(uint64_t(position) - uint64_t(other)));
  }
  return double(as_float(position)) - (p.positions_from ? double(as_float(from)) : double(pairs.xpos->center));
}

ROPE_INLINE int64_t pair_position(const PipelineCall& p, const PairData& pairs, const PlacedToken& s, int32_t pair) {
  const Sections& sections = p.positions.sections;
  if (!sections.streams) return s.position;
  return read_position(p, p.positions.ids, pairs.streams[pair] * sections.stride + s.place);
}

// The rows that an operand turns by.
ROPE_INLINE const CosSinRows& rows_of(const PipelineCall& p, int32_t operand) {
  return p.k_rows.cos && operand == p.k_operand ? p.k_rows : p.cos_sin;
}

// What turns nothing into anything: the canonical NaN (math/dtype.h).
ROPE_INLINE CosSin no_angle() { return {bit_cast<float>(0x7fffffffu), bit_cast<float>(0x7fffffffu)}; }

// Of a row of cos and sin that is made for a float32 position.
ROPE_INLINE CosSin angle_at_float(Angle angle, float position, const uint64_t* words, int32_t pair, int32_t pairs,
                                  float scale) {
  uint64_t phase;
  return phase_of_float(angle, position, words, pair, pairs, &phase) ? angle_of_phase(phase, scale, scale) : no_angle();
}

// Of element i of the rows.
ROPE_INLINE CosSin angle_in_table(const PipelineCall& p, const CosSinRows& rows, const PlacedToken& s, int64_t i) {
  if (!p.table.radians)
    return {float_at(rows.cos, rows.dtype, i) * s.cos_scale, float_at(rows.sin, rows.dtype, i) * s.sin_scale};
  const float radians = static_cast<const float*>(rows.cos)[i];
  return is_finite(radians) ? angle_of_phase(phase_of_radians(radians), s.cos_scale, s.sin_scale) : no_angle();
}

// For an operand with that sign of xPos, and those rows.
ROPE_INLINE CosSin pair_angle(const PipelineCall& p, const PairData& pairs, int32_t xpos_sign, const CosSinRows& rows,
                              const PlacedToken& s, int32_t pair) {
  const int64_t position = pair_position(p, pairs, s, pair);
  if (p.angle == Angle::kCosSin) return angle_in_table(p, rows, s, position * rows.stride + pair);
  uint64_t phase, from = 0;
  bool turns = phase_of(p, position, s.words ? s.words : pairs.words, pair, &phase);
  if (p.positions_from) turns &= phase_of(p, s.from, s.words_from ? s.words_from : pairs.words, pair, &from);
  if (!turns) return no_angle();
  const CosSin a = angle_of_phase(phase - from, s.cos_scale, s.sin_scale);
  if (!xpos_sign) return a;
  const float magnitude =
      xpos_magnitude_at(pairs.xpos->rates[pair], xpos_distance(p, pairs, position, s.from), xpos_sign);
  return {a.cos * magnitude, a.sin * magnitude};
}

// The same, where the pair's elements may have columns of their own.
ROPE_INLINE PairTurn pair_turn(const PipelineCall& p, const PairData& pairs, int32_t xpos_sign, const CosSinRows& rows,
                               const PlacedToken& s, int32_t pair) {
  if (!p.table.elements) {
    const CosSin a = pair_angle(p, pairs, xpos_sign, rows, s, pair);
    return {a, a};
  }
  const int32_t half = p.rotary_dim / 2 / p.blocks;
  const bool neighbours = p.layout == Layout::kGptj;
  const int32_t element = neighbours ? 2 * pair : pair + pair / half * half, apart = neighbours ? 1 : half;
  const int64_t i = pair_position(p, pairs, s, pair) * rows.stride + element;
  const CosSin first = angle_in_table(p, rows, s, i), second = angle_in_table(p, rows, s, i + apart);
  if (!p.table.transposed) return {first, second};
  return {{first.cos, second.sin}, {second.cos, first.sin}};
}

}  // namespace rope
