// Rotations in a cache on the CPU, built for several instruction sets as rotate_loops.cpp. No two tokens have one slot,
// so they may run in any order.
#include <type_traits>

#include "../stages.h"
#include "cache_rotation.h"
#include "parallel.h"
#include "rows.h"
#include "set_name.h"

namespace rope::cpu {
namespace {

struct Job {
  const PipelineParams& params;
  const PairTable& table;
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
  for (int32_t i = begin; i < end; ++i) x[i] = bit_cast<F32::Storage>(dequantize(q.type, codes[i]) * scale);
  Row<F32, kLayout>::rotate(x + p.rotary_offset, x + p.rotary_offset, p.rotary_dim / 2, angles);
  if (q.kind == ScaleKind::kDynamic) {
    float largest = 0.0f;
    for (int32_t i = begin; i < end; ++i) largest = larger_magnitude(largest, F32::widen(x[i]));
    scale = scales.scales[head] = dynamic_scale(q.type, largest);
  }
  const float factor = scales.scales ? 1.0f / scale : q.factor;
  for (int32_t i = begin; i < end; ++i) codes[i] = uint8_t(quantize2(q.type, F32::widen(x[i]) * factor, 0.0f));
}

template <class Stored, Layout kLayout>
void rotate_tokens(const void* context, int64_t begin, int64_t end) {
  constexpr bool kQuantised = std::is_same_v<Stored, U8>;
  using Keys = Row<std::conditional_t<kQuantised, F32, Stored>, kLayout>;
  const auto& [p, table] = *static_cast<const Job*>(context);
  const PipelineOperand& keys = p.operands[0];
  const int32_t pairs = p.rotary_dim / 2;
  alignas(64) float cos[kMaxRotaryDim / 2], sin[kMaxRotaryDim / 2];
  for (int32_t i = pairs; i % kAnglePadding; ++i) cos[i] = sin[i] = 0.0f;
  typename Keys::Angles angles;
  for (int64_t token = begin; token < end; ++token) {
    TokenState state;
    CachePlace place = {};
    if (!token_state(p, token, true, &state)) continue;
    if (!cache_place<true>(p.cache, cache_index(p.cache, token), true, &place)) continue;
    for (int32_t i = 0; i < pairs; ++i) {
      const CosSin a = pair_angle(p, table, keys.xpos_sign, state, token, i);
      cos[i] = a.cos;
      sin[i] = a.sin;
    }
    Keys::arrange(cos, sin, pairs, &angles);
    char* const rows = keys.out + place.page * keys.out_page_stride + place.entry * keys.out_token_stride;
    const ScalePlace scales = stored_scales(p, keys, token, place);
    for (int32_t head = 0; head < keys.heads; ++head) {
      auto* const row = reinterpret_cast<typename Stored::Storage*>(rows + head * keys.out_head_stride);
      if constexpr (kQuantised) {
        rotate_codes<kLayout>(p, row, scales, head, angles);
      } else {
        Keys::rotate(row + p.rotary_offset, row + p.rotary_offset, pairs, angles);
      }
    }
  }
}

template <class Stored>
struct ForStored {
  template <Layout kLayout>
  struct Instance {
    static int run(const PipelineParams& p, const PairTable& table, const Execution& e) {
      const PipelineOperand& keys = p.operands[0];
      const int32_t elements = keys.whole ? keys.dim : p.rotary_dim;
      const Job job{p, table};
      for_token_ranges(p.num_tokens, int64_t(keys.heads) * elements * int64_t(sizeof(typename Stored::Storage)),
                       e.num_threads, rotate_tokens<Stored, kLayout>, &job);
      return 0;
    }
  };
};

}  // namespace

extern const CacheRotationTable ROPE_CONCAT(kCacheRotation, ROPEROPE_CPU_SET) = cache_rotation_table<ForStored>();

}  // namespace rope::cpu
