// Rotations in a cache on the CPU, built for several instruction sets (sets.h). No two tokens have one slot,
// so they may run in any order.
#include <type_traits>

#include "../operations/general.h"
#include "parallel.h"
#include "rows.h"
#include "sets.h"

namespace rope::cpu {
namespace {

struct Job {
  const PipelineCall& params;
  const PairData& pairs;
};

// One head of a quantised cache, in float32 between its old and its new codes.
template <Layout kLayout>
void rotate_codes(const PipelineParams& p, uint8_t* codes, const ScalePlace& scales, int32_t head,
                  const typename Row<F32, kLayout>::Angles& angles) {
  const PipelineOperand& keys = p.operands[0];
  const Quantize q = keys.quantize;
  float scale = scales.scales ? scales.scales[head * scales.head_step] : q.scale;
  const int32_t begin = keys.whole ? 0 : p.rotary_offset, end = keys.whole ? keys.dim : p.rotary_offset + p.rotary_dim;
  F32::Storage x[kMaxPipelineDim];
  for_code(q.type, [&](auto code) {
    for (int32_t i = begin; i < end; ++i) x[i] = bit_cast<F32::Storage>(code.decode(codes[i]) * scale);
  });
  Row<F32, kLayout>::rotate(x + p.rotary_offset, x + p.rotary_offset, p.rotary_dim / 2, angles);
  if (q.kind == ScaleKind::kDynamic) {
    float largest = 0.0f;
    for (int32_t i = begin; i < end; ++i) largest = larger_magnitude(largest, F32::widen(x[i]));
    scale = scales.scales[head] = dynamic_scale(q.type, largest);
  }
  const float factor = scales.scales ? 1.0f / scale : q.factor;
  for_code(q.type, [&](auto code) {
    for (int32_t i = begin; i < end; ++i) codes[i] = uint8_t(code.encode2(F32::widen(x[i]) * factor, 0.0f));
  });
}

// The same of a head in groups or blocks.
template <Layout kLayout>
void rotate_groups(const PipelineCall& p, char* codes, char* scales, const typename Row<F32, kLayout>::Angles& angles) {
  const PipelineOperand& keys = p.operands[0];
  const Groups& groups = p.groups[0];
  const OutType type = keys.quantize.type;
  F32::Storage x[kMaxPipelineDim];
  const int32_t count = keys.dim / groups.size;
  for (int32_t n = 0; n < count; ++n)
    decode_group(type, groups, n, codes, scales, [&](int32_t i, float y) { x[i] = bit_cast<F32::Storage>(y); });
  Row<F32, kLayout>::rotate(x + p.rotary_offset, x + p.rotary_offset, p.rotary_dim / 2, angles);
  for (int32_t n = 0; n < count; ++n)
    encode_group(type, groups, n, [&](int32_t i) { return F32::widen(x[i]); }, codes, scales);
}

template <class Stored, Layout kLayout>
void rotate_tokens(const void* context, int64_t begin, int64_t end) {
  constexpr bool kQuantised = std::is_same_v<Stored, Codes>;
  using Keys = Row<std::conditional_t<kQuantised, F32, Stored>, kLayout>;
  const auto& [p, pair_data] = *static_cast<const Job*>(context);
  const PipelineOperand& keys = p.operands[0];
  const Groups& groups = p.groups[0];
  const int32_t pairs = p.rotary_dim / 2;
  alignas(64) float cos[kMaxRotaryDim / 2], sin[kMaxRotaryDim / 2];
  for (int32_t i = pairs; i % kAnglePadding; ++i) cos[i] = sin[i] = 0.0f;
  typename Keys::Angles angles;
  for (int64_t token = begin; token < end; ++token) {
    PlacedToken state = {};
    CachePlace place = {};
    if (!token_state(p, token, true, &state)) continue;
    if (!cache_place<true>(p.cache, cache_index(p.cache, token), true, &place)) continue;
    for (int32_t i = 0; i < pairs; ++i) {
      const CosSin a = pair_angle(p, pair_data, keys.xpos_sign, p.cos_sin, state, i);
      cos[i] = a.cos;
      sin[i] = a.sin;
    }
    Keys::arrange(cos, sin, pairs, &angles);
    char* const rows = keys.out + place.page * keys.out_page_stride + place.entry * keys.out_token_stride;
    const ScalePlace scales = stored_scales(p, keys, token, place);
    for (int32_t head = 0; head < keys.heads; ++head) {
      auto* const row = reinterpret_cast<typename Stored::Storage*>(rows + head * keys.out_head_stride);
      if constexpr (kQuantised) {
        if (groups.size) {
          rotate_groups<kLayout>(p, reinterpret_cast<char*>(row), group_scales(groups, keys, token, head, place),
                                 angles);
        } else {
          rotate_codes<kLayout>(p, row, scales, head, angles);
        }
      } else {
        Keys::rotate(row + p.rotary_offset, row + p.rotary_offset, pairs, angles);
      }
    }
  }
}

// Stored: a dtype, or Codes.
template <class Stored>
Outcome rotate_stored(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  const PipelineOperand& keys = p.operands[0];
  const int64_t elements = int64_t(keys.heads) * (keys.whole ? keys.dim : p.rotary_dim);
  const Job job{p, pairs};
  return for_layout(p.layout, [&](auto layout) {
    for_token_ranges(p.num_tokens, elements * int64_t(sizeof(typename Stored::Storage)), e.threads,
                     rotate_tokens<Stored, layout.value>, &job);
    return Outcome{};
  });
}

}  // namespace

template <class Set, class D>
Outcome rotate_cache(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  return p.operands[0].quantize.type == OutType::kSame ? rotate_stored<D>(p, pairs, e)
                                                       : rotate_stored<Codes>(p, pairs, e);
}

#define ROPE_INSTANCE(D) \
  template Outcome rotate_cache<ThisSet, D>(const PipelineCall&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
