// A pipeline that is a rotation alone, on the CPU, built for several instruction sets (sets.h): whole heads at a time.
#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "rotate.h"
#include "rows.h"

namespace rope::cpu {
namespace {

// Heads this far ahead of the one being rotated are prefetched (KERNELS.md). Past the last head that is where the next
// token lies, if heads are contiguous; a prefetch may point anywhere.
constexpr int32_t kPrefetchBytes = 4608;

ROPE_INLINE void prefetch(const void* at, int64_t ahead, int32_t bytes) {
  for (int32_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(at) + ahead + line);
}

struct Job {
  const PipelineParams& params;
  const uint64_t* words;
};

template <class D, Layout kLayout>
void rotate_heads(const PipelineParams& p, const PipelineOperand& o, int64_t token,
                  const typename Row<D, kLayout>::Angles& angles) {
  using Storage = typename D::Storage;
  const int32_t bytes = p.rotary_dim * int32_t(sizeof(Storage)), ahead = std::max(kPrefetchBytes / bytes, 1);
  for (int32_t head = 0; head < o.heads; ++head) {
    const auto* in = reinterpret_cast<const Storage*>(o.in + token * o.in_token_stride + head * o.in_head_stride);
    auto* out = reinterpret_cast<Storage*>(o.out + token * o.out_token_stride + head * o.out_head_stride);
    prefetch(in + p.rotary_offset, ahead * o.in_head_stride, bytes);
    if (in != out) {
      prefetch(out + p.rotary_offset, ahead * o.out_head_stride, bytes);
      const int32_t end = p.rotary_offset + p.rotary_dim;
      std::memcpy(out, in, sizeof(Storage) * size_t(p.rotary_offset));
      std::memcpy(out + end, in + end, sizeof(Storage) * size_t(o.dim - end));
    }
    Row<D, kLayout>::rotate(in + p.rotary_offset, out + p.rotary_offset, p.rotary_dim / 2, angles);
  }
}

// Of a token that is left alone.
template <class D>
void copy_heads(const PipelineOperand& o, int64_t token) {
  for (int32_t head = 0; head < o.heads; ++head) {
    const char* const in = o.in + token * o.in_token_stride + head * o.in_head_stride;
    char* const out = o.out + token * o.out_token_stride + head * o.out_head_stride;
    if (in != out) std::memcpy(out, in, sizeof(typename D::Storage) * size_t(o.dim));
  }
}

template <class D, Layout kLayout, Angle kAngle>
void rotate_tokens(const void* context, int64_t begin, int64_t end) {
  const auto& [p, words] = *static_cast<const Job*>(context);
  const int32_t pairs = p.rotary_dim / 2;
  alignas(64) float cos[kMaxRotaryDim / 2], sin[kMaxRotaryDim / 2];
  for (int32_t i = pairs; i % kAnglePadding; ++i) cos[i] = sin[i] = 0.0f;
  typename Row<D, kLayout>::Angles angles;
  const Sections& sections = p.positions.sections;
  for (int64_t token = begin; token < end; ++token) {
    int64_t position;
    if (!position_of(p.positions, token, &position)) {
      for (int32_t i = 0; p.copies && i < p.num_operands; ++i) copy_heads<D>(p.operands[i], token);
      continue;
    }
    for (int32_t i = 0; i < pairs; ++i) {
      if (sections.streams) position = stream_position(p.positions, token, stream_of(sections, i));
      const CosSin a = scaled_angle(phase_at<kAngle>(position, words[i]), p.cos_scale, p.sin_scale);
      cos[i] = a.cos;
      sin[i] = a.sin;
    }
    Row<D, kLayout>::arrange(cos, sin, pairs, &angles);
    for (int32_t i = 0; i < p.num_operands; ++i) rotate_heads<D, kLayout>(p, p.operands[i], token, angles);
  }
}

}  // namespace

template <class Set, class D>
Outcome rotate(const PipelineParams& p, int64_t row, const PairData& pairs, const Execution& e) {
  const Job job{p, pairs.words};
  return for_layout(p.layout, [&](auto layout) {
    return for_angle(p.angle, [&](auto angle) {
      for_token_ranges(p.num_tokens, row, e.threads, rotate_tokens<D, layout.value, angle.value>, &job);
      return Outcome{};
    });
  });
}

#define ROPE_INSTANCE(D) \
  template Outcome rotate<ThisSet, D>(const PipelineParams&, int64_t, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
