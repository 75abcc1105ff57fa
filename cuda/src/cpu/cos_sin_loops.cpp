// Rows of cos and sin on the CPU, built for several instruction sets (sets.h).
#include "../operations/general.h"
#include "parallel.h"
#include "sets.h"

namespace rope::cpu {
namespace {

struct Job {
  const CosSinParams& params;
  const uint64_t* words;
};

template <class D, Angle kAngle>
void build_rows(const void* context, int64_t begin, int64_t end) {
  using Storage = typename D::Storage;
  const auto& [p, words] = *static_cast<const Job*>(context);
  for (int64_t row = begin; row < end; ++row) {
    int64_t position = 0;
    const bool moves = !p.of_tokens || position_of(p.positions, row, &position);
    if (!p.of_tokens) position = simple_position(p.positions, row);
    auto* cos = reinterpret_cast<Storage*>(p.cos + row * p.row_stride);
    auto* sin = reinterpret_cast<Storage*>(p.sin + row * p.row_stride);
#pragma GCC ivdep  // cos, sin and the words are apart
    for (int32_t i = 0; i < p.pairs; ++i) {
      const CosSin a = scaled_angle(phase_at<kAngle>(position, words[i]), p.scale, p.scale);
      cos[i] = D::narrow(moves ? a.cos : 1.0f);
      sin[i] = D::narrow(moves ? a.sin : 0.0f);
    }
  }
}

template <class D>
void build_float_rows(const void* context, int64_t begin, int64_t end) {
  using Storage = typename D::Storage;
  const auto& [p, words] = *static_cast<const Job*>(context);
  for (int64_t row = begin; row < end; ++row)
    for (int32_t i = 0; i < p.pairs; ++i) {
      const float position = static_cast<const float*>(p.positions.ids)[row];
      const CosSin a = angle_at_float(p.angle, position, words, i, p.pairs, p.scale);
      reinterpret_cast<Storage*>(p.cos + row * p.row_stride)[i] = D::narrow(a.cos);
      reinterpret_cast<Storage*>(p.sin + row * p.row_stride)[i] = D::narrow(a.sin);
    }
}

}  // namespace

template <class Set, class D>
Outcome build_cos_sin(const CosSinParams& p, const PairData& pairs, const Execution& e) {
  const Job job{p, pairs.words};
  return for_angle(p.angle, [&](auto angle) {
    const bool is_float = p.positions.kind == PositionKind::kFloat32;
    for_token_ranges(p.num_rows, 2 * p.pairs * int64_t(sizeof(typename D::Storage)), e.threads,
                     is_float ? build_float_rows<D> : build_rows<D, angle.value>, &job);
    return Outcome{};
  });
}

#define ROPE_INSTANCE(D) \
  template Outcome build_cos_sin<ThisSet, D>(const CosSinParams&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
