// What the pipeline's options mean for one token, one head and one element: the code that both backends share.
#pragma once

#include "../math/norm.h"
#include "pipeline.h"

namespace rope {

ROPE_INLINE void count_one(int64_t* counter) {
  if (!counter) return;
#ifdef __CUDA_ARCH__
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull);
#else
  __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
#endif
}

// The bits of an element, and the number that they are.
ROPE_INLINE uint32_t bits_at(const void* values, Dtype dtype, int64_t i) {
  return dtype == Dtype::kF32 ? static_cast<const uint32_t*>(values)[i] : static_cast<const uint16_t*>(values)[i];
}

ROPE_INLINE float float_of(Dtype dtype, uint32_t bits) {
  switch (dtype) {
    case Dtype::kF32: return bit_cast<float>(bits);
    case Dtype::kF16: return F16::widen(uint16_t(bits));
    case Dtype::kBF16: return BF16::widen(uint16_t(bits));
  }
  return 0.0f;
}

ROPE_INLINE float float_at(const void* values, Dtype dtype, int64_t i) {
  return float_of(dtype, bits_at(values, dtype, i));
}

// Where a token stands: what all of its pairs share.
struct TokenState {
  int64_t position, from;
  const uint64_t *words, *words_from;  // null: the call's own table
  float cos_scale, sin_scale;
};

// Which frequencies and magnitude the token has. False: none, it is to be left alone.
ROPE_INLINE bool choose_set(const TokenParams& p, int64_t token, TokenState* s) {
  s->words = s->words_from = nullptr;
  s->cos_scale = p.cos_scale;
  s->sin_scale = p.sin_scale;
  if (p.sets.words) {
    const int32_t set = p.sets.ids[token], from = p.sets.ids_from ? p.sets.ids_from[token] : set;
    if (uint32_t(set) >= uint32_t(p.sets.count) || uint32_t(from) >= uint32_t(p.sets.count)) return false;
    s->words = p.sets.words + int64_t(set) * (p.rotary_dim / 2);
    s->words_from = p.sets.words + int64_t(from) * (p.rotary_dim / 2);
    if (p.sets.factors) {
      s->cos_scale *= p.sets.factors[set];
      s->sin_scale *= p.sets.factors[set];
    }
  }
  return true;
}

// False: the token is to be left alone. `counts`: this caller reports it, if it is to be reported.
ROPE_INLINE bool token_state(const TokenParams& p, int64_t token, bool counts, TokenState* s) {
  if (!position_of(p.positions, token, &s->position)) return false;
  s->from = p.positions_from
                ? index_at(p.positions_from, positions_are_int32(p.positions), position_place(p.positions, token))
                : 0;
  if (!choose_set(p, token, s)) return false;
  if (p.angle != Angle::kCosSin) return true;
  bool inside = uint64_t(s->position) < uint64_t(p.cos_sin.rows);
  for (int32_t i = 1; i < p.positions.sections.streams; ++i)
    inside &= uint64_t(stream_position(p.positions, token, i)) < uint64_t(p.cos_sin.rows);
  if (!inside && counts) count_one(p.cos_sin.num_skipped);
  return inside;
}

ROPE_INLINE uint64_t phase_at(Angle angle, int64_t position, uint64_t word) {
  return angle == Angle::kFp32 ? phase_at<Angle::kFp32>(position, word) : phase_at<Angle::kExact>(position, word);
}

// For an operand with that sign of xPos.
ROPE_INLINE CosSin pair_angle(const TokenParams& p, const PairData& pairs, int32_t xpos_sign, const TokenState& s,
                              int64_t token, int32_t pair) {
  const Sections& sections = p.positions.sections;
  const int64_t position =
      sections.streams ? stream_position(p.positions, token, stream_of(sections, pair)) : s.position;
  if (p.angle == Angle::kCosSin) {
    const int64_t i = position * p.cos_sin.stride + pair;
    return {float_at(p.cos_sin.cos, p.cos_sin.dtype, i) * s.cos_scale,
            float_at(p.cos_sin.sin, p.cos_sin.dtype, i) * s.sin_scale};
  }
  uint64_t phase = phase_at(p.angle, position, s.words ? s.words[pair] : pairs.words[pair]);
  if (p.positions_from) phase -= phase_at(p.angle, s.from, s.words_from ? s.words_from[pair] : pairs.words[pair]);
  const CosSin a = scaled_angle(phase, s.cos_scale, s.sin_scale);
  if (!xpos_sign) return a;
  // Position arithmetic wraps.
  const int64_t distance = int64_t(uint64_t(position) - uint64_t(p.positions_from ? s.from : pairs.xpos->center));
  const float magnitude = xpos_magnitude(pairs.xpos->rates[pair], double(distance), xpos_sign);
  return {a.cos * magnitude, a.sin * magnitude};
}

// A token's place in a cache. False: it has none.
struct CachePlace {
  int64_t page, entry;
};

// Page and entry of the index-th token; 32-bit division, where it is enough, takes a tenth of the time.
template <bool kAnyIndex>
ROPE_INLINE CachePlace divide_by_page(const CacheMap& c, int64_t index) {
  if (c.page_shift >= 0) return {index >> c.page_shift, index & (c.page_size - 1)};
  if (!kAnyIndex && uint64_t(index) > 0xffffffffu) return {-1, 0};
  const int64_t page = kAnyIndex ? index / c.page_size : int64_t(uint32_t(index) / uint32_t(c.page_size));
  return {page, index - page * c.page_size};
}

// What a token's place is found by.
struct CacheIndex {
  int64_t index;
  int32_t request;
};

ROPE_INLINE CacheIndex cache_index(const CacheMap& c, int64_t token) {
  return {index_at(c.indices, c.index_is_int32, token), c.request_ids ? c.request_ids[token] : 0};
}

ROPE_INLINE bool is_negative(CacheIndex at) { return at.request < 0 || at.index < 0; }

// The place that the token names, be it in the cache or not. False: it names none. kAnyIndex: else the cache has fewer
// than 2^32 slots, or the page size is a power of two.
template <bool kAnyIndex>
ROPE_INLINE bool look_up_place(const CacheMap& c, CacheIndex at, CachePlace* place) {
  if (is_negative(at)) return false;
  *place = divide_by_page<kAnyIndex>(c, at.index);
  if (!c.page_table) return true;
  const int64_t start = c.page_indptr ? c.page_indptr[at.request] : at.request * c.page_table_stride;
  const int64_t pages = c.page_indptr ? c.page_indptr[at.request + 1] - start : c.page_table_stride;
  place->page = uint64_t(place->page) < uint64_t(pages) ? c.page_table[start + place->page] : -1;
  return true;
}

// Whether that is in the cache. `counts`: this caller reports it if not, and if it is to be reported.
ROPE_INLINE bool is_in_cache(const CacheMap& c, bool counts, CachePlace* place) {
  if (uint64_t(place->page) < uint64_t(c.num_pages)) return true;
  if (counts) count_one(c.num_skipped);
#ifndef __CUDA_ARCH__
  *place = {};  // the kernel forms an address of it, which it does not use: on the CPU that must not overflow
#endif
  return false;
}

// False: the token has no place.
template <bool kAnyIndex>
ROPE_INLINE bool cache_place(const CacheMap& c, CacheIndex at, bool counts, CachePlace* place) {
  return look_up_place<kAnyIndex>(c, at, place) && is_in_cache(c, counts, place);
}

// The row of a dynamic scale.
ROPE_INLINE int64_t scale_row(const TokenParams& p, const PipelineOperand& o, int64_t token, const CachePlace& place) {
  return o.cached ? place.page * p.cache.page_size + place.entry : token;
}

// Where a given scale is, and the step to the next head's; null: in the parameters.
struct ScalePlace {
  float* scales;
  int32_t head_step;
};

ROPE_INLINE ScalePlace scale_place(const Quantize& q, int64_t token, int32_t head) {
  switch (q.kind) {
    case ScaleKind::kTensor: return {q.scales, 0};
    case ScaleKind::kHead: return {q.scales + head, 1};
    case ScaleKind::kToken: return {q.scales + token, 0};
    default: return {nullptr, 0};
  }
}

// Where the scales are that a token's row of a cache was stored with, of head 0.
ROPE_INLINE ScalePlace stored_scales(const TokenParams& p, const PipelineOperand& o, int64_t token,
                                     const CachePlace& place) {
  if (o.quantize.kind != ScaleKind::kDynamic) return scale_place(o.quantize, token, 0);
  return {o.quantize.scales + scale_row(p, o, token, place) * o.heads, 1};
}

// Where the scales of a row's groups begin.
ROPE_INLINE char* group_scales(const Groups& g, const PipelineOperand& o, int64_t token, int32_t head,
                               const CachePlace& place) {
  const int64_t row = o.cached ? place.page * g.page_stride + place.entry * g.row_stride : token * g.row_stride;
  return g.scales + row + head * g.head_stride;
}

ROPE_INLINE float dynamic_scale(OutType type, float largest_magnitude) {
  return largest_magnitude > 0.0f ? largest_magnitude / largest(type) : 1.0f;
}

// The element of the weights that a head's begin with.
ROPE_INLINE int32_t first_weight(const Norm& n, const PipelineOperand& o, int32_t head) {
  return n.across_heads ? head * o.dim : 0;
}

// What a weight that was read multiplies with.
ROPE_INLINE float biased_weight(const Norm& n, float weight) { return weight + n.weight_bias; }

template <class D>
ROPE_INLINE float norm_weight(const Norm& n, const void* weights, int32_t i) {
  const float w = n.weight_is_f32 ? static_cast<const float*>(weights)[i]
                                  : D::widen(static_cast<const typename D::Storage*>(weights)[i]);
  return biased_weight(n, w);
}

}  // namespace rope
