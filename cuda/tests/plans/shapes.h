// Random pipelines, and plain ones to change a little. Nothing is read or written: addresses are numbers.
#pragma once

#include <algorithm>

#include "../../src/operations/pipeline.h"
#include "check.h"

namespace rope::cuda::test {

// For pointers that plans only compare with null.
inline const char kSomething = 0;
inline const uint64_t kWords = 0;

// Strides of `heads` rows of `row` bytes in each of `items` tokens, or entries of a page: one behind the other or with
// gaps, and seldom with the tokens of a head side by side.
inline void place_rows(Random& r, int64_t row, int64_t step, int32_t heads, int64_t items, int64_t* item_stride,
                       int64_t* head_stride) {
  if (r.chance(0.2)) row += step * r.between(1, 3);
  const int64_t gap = r.chance(0.7) ? 0 : step * r.between(1, 3);
  if (r.chance(0.1)) {
    *item_stride = row;
    *head_stride = row * items + gap;
  } else {
    *item_stride = row * heads + gap;
    *head_stride = row;
  }
}

inline Quantize random_codes(Random& r) {
  Quantize q = {};
  q.type = r.of({OutType::kE4M3, OutType::kE5M2, OutType::kInt8});
  q.kind = r.of({ScaleKind::kHost, ScaleKind::kTensor, ScaleKind::kHead, ScaleKind::kToken, ScaleKind::kDynamic});
  return q;
}

struct OperandShape {
  int32_t heads, dim;
  bool rotated, in_place, cached, codes;
};

inline PipelineOperand random_operand(Random& r, const PipelineParams& p, int element_bytes, const OperandShape& s) {
  PipelineOperand o = {};
  o.heads = s.heads;
  o.dim = s.dim;
  o.rotated = s.rotated;
  o.cached = s.cached;
  o.whole = !s.in_place;
  if (s.codes && o.whole) o.quantize = random_codes(r);
  const int64_t step = r.step(element_bytes), row = round_up(int64_t(s.dim) * element_bytes, step);
  o.in = reinterpret_cast<const char*>((int64_t(1) << 32) + step * r.between(0, 64));
  place_rows(r, row, step, s.heads, p.num_tokens, &o.in_token_stride, &o.in_head_stride);
  if (s.in_place) {
    o.out = const_cast<char*>(o.in);
    o.out_token_stride = o.in_token_stride;
    o.out_head_stride = o.in_head_stride;
    return o;
  }
  const int64_t stored = stored_bytes(o.quantize.type, element_bytes, 1), out_step = step * stored / element_bytes;
  const int64_t items = s.cached ? p.cache.page_size : p.num_tokens;
  o.out = reinterpret_cast<char*>((int64_t(1) << 45) + out_step * r.between(0, 64));
  place_rows(r, round_up(s.dim * stored, out_step), out_step, s.heads, items, &o.out_token_stride, &o.out_head_stride);
  if (s.cached) {
    o.out_page_stride = std::max(o.out_token_stride * items, o.out_head_stride * s.heads);
    if (r.chance(0.3)) o.out_page_stride += out_step;
  }
  return o;
}

inline Sections random_sections(Random& r, int32_t pairs) {
  Sections s = {int32_t(r.between(2, 4)), r.chance(0.3), {}, 0};
  for (int32_t i = 0, left = pairs; i < s.streams; ++i)
    left -= s.sizes[i] = i + 1 < s.streams ? int32_t(r.between(0, left)) : left;
  return s;
}

// Everything but the operands.
inline PipelineParams random_call(Random& r, int32_t dim) {
  PipelineParams p = {};
  p.rotary_dim = std::min(dim, kMaxRotaryDim);
  if (r.chance(0.4)) p.rotary_dim = int32_t(r.chance(0.4) ? r.of({16, 32, 64}) : r.between(2, p.rotary_dim));
  p.rotary_dim = std::max(2, std::min(p.rotary_dim, dim) / 2 * 2);
  if (r.chance(0.3)) p.rotary_offset = int32_t(r.between(0, dim - p.rotary_dim));
  if (r.chance(0.5)) p.rotary_offset = p.rotary_offset / 8 * 8;
  p.num_tokens = r.chance(0.6) ? r.between(1, 64) : r.chance(0.7) ? r.between(64, 3000) : r.between(3000, 70000);
  p.layout = r.of({Layout::kNeox, Layout::kGptj});
  p.angle = r.chance(0.85) ? Angle::kExact : r.of({Angle::kFp32, Angle::kCosSin});
  p.positions.kind = r.chance(0.9) ? r.of({PositionKind::kIds64, PositionKind::kIds32, PositionKind::kOffset})
                                   : r.of({PositionKind::kRagged32, PositionKind::kRagged64});
  if (r.chance(0.03)) p.positions_from = &kSomething;
  if (r.chance(0.03)) p.sets.words = &kWords;
  if (r.chance(0.2)) p.positions.sections = random_sections(r, p.rotary_dim / 2);
  return p;
}

inline int32_t random_dim(Random& r) {
  if (r.chance(0.7)) return r.of({64, 80, 96, 128, 192, 256, 320, 512});
  if (r.chance(0.2)) return r.of({2, 4, 8, 16, 32});
  return int32_t(r.chance(0.9) ? r.between(2, 700) : r.between(700, 5000));
}

inline int32_t random_heads(Random& r) { return int32_t(r.chance(0.6) ? r.between(1, 12) : r.between(12, 130)); }

// Heads of q and k alone, in place or not.
inline PipelineParams random_rotation(Random& r, int element_bytes) {
  const int32_t dim = random_dim(r);
  PipelineParams p = random_call(r, dim);
  for (const int32_t heads : {random_heads(r), int32_t(r.between(1, 9))})
    if (p.num_operands == 0 || r.chance(0.8))
      p.operands[p.num_operands++] =
          random_operand(r, p, element_bytes, {heads, dim, true, r.chance(0.6), false, false});
  return p;
}

inline void add_norm(Random& r, PipelineParams* p) {
  p->norm.on = true;
  p->norm.wide_weights = r.chance(0.9);
  p->norm.across_heads = r.chance(0.1);
  for (int32_t i = 0; i < p->num_operands; ++i) {
    PipelineOperand& o = p->operands[i];
    if (!o.rotated || r.chance(0.1)) continue;
    o.weight = &kSomething;
    o.whole = true;
  }
}

// q, k, v and what is not rotated of q, each or not, with any of the stages.
inline PipelineParams random_pipeline(Random& r, int element_bytes) {
  const int32_t dim = std::min(random_dim(r), kMaxPipelineDim);
  const int32_t q_heads = random_heads(r), k_heads = int32_t(r.between(1, 9));
  PipelineParams p = random_call(r, dim);
  const bool cache = r.chance(0.5), codes = r.chance(0.4), xpos = r.chance(0.03), in_place = r.chance(0.3);
  if (cache) {
    p.cache.indices = &kSomething;
    p.cache.page_size = r.of({16, 16, 5, 1});
    p.cache.page_shift = p.cache.page_size == 16 ? 4 : p.cache.page_size == 1 ? 0 : -1;
    p.cache.num_pages = r.of({1, 100});
    if (r.chance(0.1)) p.cache.page_table = reinterpret_cast<const int32_t*>(&kSomething);
    if (p.cache.page_table || r.chance(0.05)) p.cache.request_ids = reinterpret_cast<const int32_t*>(&kSomething);
  }
  const auto add = [&](int32_t heads, int32_t own, bool rotated, bool cached) {
    const OperandShape shape = {heads, own, rotated, rotated && in_place && !cached, cached, codes && r.chance(0.8)};
    p.operands[p.num_operands++] = random_operand(r, p, element_bytes, shape);
  };
  if (r.chance(0.9)) add(q_heads, dim, true, false);
  if (r.chance(0.9)) add(k_heads, dim, true, cache);
  const int32_t v_dim = r.chance(0.7) ? dim : std::min(kMaxPipelineDim, int32_t(r.of({512, 4 * dim, dim + 8})));
  if (!p.num_operands || r.chance(0.6)) add(r.chance(0.7) ? k_heads : 1, v_dim, false, cache);
  if (p.num_operands < kMaxOperands && r.chance(0.15)) add(q_heads, r.of({dim, 128, 512}), false, false);
  for (int32_t i = 0; xpos && i < p.num_operands; ++i) p.operands[i].xpos_sign = p.operands[i].rotated;
  if (r.chance(0.35)) add_norm(r, &p);
  const bool grouped = codes && r.chance(0.15);
  for (int32_t i = 0; i < p.num_operands; ++i) {
    PipelineOperand& o = p.operands[i];
    if (grouped && o.quantize.type != OutType::kSame && o.dim % 32 == 0)
      o.quantize = {r.of({OutType::kE2M1, OutType::kQ8_0}), ScaleKind::kGroup, 1.0f, 1.0f, nullptr};
    p.dynamic |= o.quantize.kind == ScaleKind::kDynamic;
  }
  return p;
}

// bfloat16 heads of 128 elements, rotated into other memory: what the kernel for usual calls is made for.
inline PipelineParams usual_pipeline(int64_t tokens, int32_t heads, int32_t dim = 128) {
  PipelineParams p = {};
  p.num_operands = 1;
  p.num_tokens = tokens;
  p.rotary_dim = dim;
  p.positions.kind = PositionKind::kIds64;
  PipelineOperand& q = p.operands[0];
  q.in = reinterpret_cast<const char*>(1 << 20);
  q.out = reinterpret_cast<char*>(int64_t(1) << 40);
  q.in_head_stride = q.out_head_stride = 2 * dim;
  q.in_token_stride = q.out_token_stride = int64_t(2) * dim * heads;
  q.heads = heads;
  q.dim = dim;
  q.rotated = q.whole = true;
  return p;
}

inline void add_norm(PipelineParams* p) {
  p->norm.on = p->norm.wide_weights = true;
  p->operands[0].weight = &kSomething;
}

inline void add_codes(PipelineParams* p) {
  PipelineOperand& q = p->operands[0];
  q.quantize.type = OutType::kE4M3;
  q.out_head_stride /= 2;
  q.out_token_stride /= 2;
}

}  // namespace rope::cuda::test
