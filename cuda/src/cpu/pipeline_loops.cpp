// The pipeline on the CPU, built for several instruction sets (sets.h): a head at a time, in float32.
#include <algorithm>
#include <cstring>

#include "../operations/general.h"
#include "parallel.h"
#include "rotate.h"

namespace rope::cpu {
namespace {

struct Job {
  const PipelineCall& params;
  const PairData& pairs;
};

// The sum of `count` values, which are overwritten.
float fold(float* sums, int32_t count) {
  for (int32_t half = power_of_two(count) / 2; half > 0; half /= 2) {
    for (int32_t i = 0; i + half < count; ++i) sums[i] += sums[i + half];
    count = half;
  }
  return sums[0];
}

float sum_of_squares(const float* x, int32_t dim) {
  const auto group = [&](int32_t i) {
    float z[kNormGroup] = {};
    std::copy_n(x + kNormGroup * i, std::min(kNormGroup, dim - kNormGroup * i), z);
    return norm_group(z[0], z[1], z[2], z[3]);
  };
  float sums[kMaxPipelineDim / kNormGroup / 4];
  const int32_t count = (norm_half(dim) + 1) / 2;
  for (int32_t i = 0; i < count; ++i) sums[i] = norm_four_groups(dim, i, group);
  return fold(sums, count);
}

// across: the mean of the sums of squares of the heads that are normalised together, or null.
template <class D>
void normalise(const PipelineParams& p, const PipelineOperand& o, int32_t head, const float* across, float* x) {
  const float total = across ? *across : sum_of_squares(x, o.dim);
  const float r = norm_factor(total, p.norm.inverse_dim, p.norm.eps);
  const int32_t first = first_weight(p.norm, o, head);
  for (int32_t i = 0; i < o.dim; ++i) x[i] = x[i] * r * norm_weight<D>(p.norm, o.weight, first + i);
}

// The angles of a token's pairs: of their first elements, and of the second ones, which may be the same.
struct Angles {
  const float *cos, *sin, *cos_second, *sin_second;
};

template <Layout kLayout>
void rotate_row(const PipelineCall& p, Angles a, float* row) {
  float* x = row + p.rotary_offset;
  const int32_t half = p.rotary_dim / 2 / p.blocks;
  for (int32_t block = 0, pair = 0; block < p.blocks; ++block, x += 2 * half)
    for (int32_t i = 0; i < half; ++i, ++pair) {
      const int32_t first = kLayout == Layout::kNeox ? i : 2 * i,
                    second = kLayout == Layout::kNeox ? i + half : 2 * i + 1;
      const Pair y =
          rotate_pair({x[first], x[second]}, {{a.cos[pair], a.sin[pair]}, {a.cos_second[pair], a.sin_second[pair]}});
      x[first] = y.first;
      x[second] = y.second;
    }
}

// What a quantised head is multiplied with.
float quantize_factor(const PipelineParams& p, const PipelineOperand& o, int64_t token, int32_t head,
                      const CachePlace& place, const float* x) {
  if (o.quantize.kind != ScaleKind::kDynamic) {
    const ScalePlace given = scale_place(o.quantize, token, head);
    return given.scales ? 1.0f / *given.scales : o.quantize.factor;
  }
  float largest = 0.0f;
  for (int32_t i = 0; i < o.dim; ++i) largest = larger_magnitude(largest, x[i]);
  const float scale = dynamic_scale(o.quantize.type, largest);
  o.quantize.scales[scale_row(p, o, token, place) * o.heads + head] = scale;
  return 1.0f / scale;
}

// The elements of a head, `step` bytes apart.
template <class T>
struct Elements {
  char* at;
  int64_t step;

  ROPE_INLINE_MEMBER T& operator[](int32_t i) const { return *reinterpret_cast<T*>(at + i * step); }
};

template <class T>
Elements<T> elements(const char* at, int64_t gap) {
  return {const_cast<char*>(at), int64_t(sizeof(T)) + gap};
}

template <class D>
Elements<const typename D::Storage> head_at(const PipelineOperand& o, const OperandExtras& x, SequencePlace at,
                                            int32_t head) {
  return elements<const typename D::Storage>(o.in + in_offset(o, x, at, head), x.in_gap);
}

// The rotated part with its pairs as another layout has them.
template <Layout kLayout>
void move_pairs(const PipelineParams& p, float* row) {
  float moved[kMaxRotaryDim];
  float* const x = row + p.rotary_offset;
  const int32_t half = p.rotary_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    const bool neox = kLayout == Layout::kNeox;
    moved[neox ? 2 * i : i] = x[neox ? i : 2 * i];
    moved[neox ? 2 * i + 1 : i + half] = x[neox ? i + half : 2 * i + 1];
  }
  std::copy_n(moved, p.rotary_dim, x);
}

// The sum of the squares of a token's heads, at the place of the norm.
template <class D, Layout kLayout>
float sum_across_heads(const PipelineCall& p, const PipelineOperand& o, const OperandExtras& extras, SequencePlace at,
                       Angles angles) {
  float sums[kMaxNormHeads], x[kMaxPipelineDim];
  for (int32_t head = 0; head < o.heads; ++head) {
    const auto in = head_at<D>(o, extras, at, head);
    for (int32_t i = 0; i < o.dim; ++i) x[i] = D::widen(in[i]);
    if (p.norm.after && o.rotated) rotate_row<kLayout>(p, angles, x);
    sums[head] = sum_of_squares(x, o.dim);
  }
  return fold(sums, o.heads);
}

// Its mean, over the heads of all ranks; where the call writes sums, they are there behind it.
template <class D, Layout kLayout>
float mean_across_heads(const PipelineCall& p, int32_t operand, int64_t token, SequencePlace at, Angles angles) {
  const PipelineOperand& o = p.operands[operand];
  const NormSums& sums = p.sums[operand];
  const bool given = sums.of_tokens && !p.writes_sums;
  const float total = given ? sums.of_tokens[token] : sum_across_heads<D, kLayout>(p, o, p.extras[operand], at, angles);
  if (p.writes_sums) sums.of_tokens[token] = total;
  return total / (given ? sums.heads : float(o.heads));
}

// What a token's heads have in common. place: in the cache, null where it has none.
struct TokenWork {
  int64_t token;
  SequencePlace at;
  const CachePlace* place;
  Angles angles;
};

// In another type than the call's.
void store_other(const PipelineCall& p, const PipelineOperand& o, const OperandExtras& extras, const TokenWork& w,
                 int32_t head, const float* x, char* out) {
  if (is_dtype(o.quantize.type)) {
    for_dtype(o.quantize.type, [&](auto other) {
      const auto y = elements<typename decltype(other)::Storage>(out, extras.out_gap);
      for (int32_t i = 0; i < o.dim; ++i) y[i] = other.narrow(x[i]);
    });
    return;
  }
  const CachePlace place = w.place ? *w.place : CachePlace{};
  if (const Groups& groups = p.groups_of(o); groups.size) {
    char* const scales = group_scales(groups, o, w.token, head, place);
    for (int32_t n = 0; n < o.dim / groups.size; ++n)
      encode_group(o.quantize.type, groups, n, [&](int32_t i) { return x[i]; }, out, scales);
    return;
  }
  const float factor = quantize_factor(p, o, w.token, head, place, x);
  const auto y = elements<uint8_t>(out, extras.out_gap);
  for_code(o.quantize.type, [&](auto code) {
    for (int32_t i = 0; i < o.dim; ++i) y[i] = uint8_t(code.encode2(x[i] * factor, 0.0f));
  });
}

template <class D, Layout kLayout>
void one_head(const PipelineCall& p, const PipelineOperand& o, const OperandExtras& extras, const TokenWork& w,
              int32_t head, const float* across) {
  using Storage = typename D::Storage;
  float x[kMaxPipelineDim];
  const auto in = head_at<D>(o, extras, w.at, head);
  const int32_t begin = o.whole ? 0 : p.rotary_offset, end = o.whole ? o.dim : p.rotary_offset + p.rotary_dim;
  for (int32_t i = begin; i < end; ++i) x[i] = D::widen(in[i]);
  if (o.weight && !p.norm.after) normalise<D>(p, o, head, across, x);
  if (o.rotated) rotate_row<kLayout>(p, w.angles, x);
  if (o.weight && p.norm.after) normalise<D>(p, o, head, across, x);
  if (o.rotated && p.out_layout != kLayout) move_pairs<kLayout>(p, x);
  const auto store = [&](Elements<Storage> y, bool whole) {
    for (int32_t i = begin; i < end; ++i) {
      const bool copied = !o.weight && (!o.rotated || uint32_t(i - p.rotary_offset) >= uint32_t(p.rotary_dim));
      if (!copied) {
        y[i] = D::narrow(x[i]);
      } else if (whole) {
        y[i] = in[i];  // bit for bit
      }
    }
  };
  if (!o.cached || w.place) {
    char* const out = o.out + (o.cached ? head * o.out_head_stride + w.place->page * o.out_page_stride +
                                              w.place->entry * o.out_token_stride
                                        : out_offset(o, extras, w.at, head));
    if (o.quantize.type == OutType::kSame) {
      store(elements<Storage>(out, extras.out_gap), o.whole);
    } else {
      store_other(p, o, extras, w, head, x, out);
    }
  }
  if (extras.kept)
    store(elements<Storage>(extras.kept + kept_offset(extras, w.at, head), extras.kept_gap), extras.kept_whole);
}

// Of a token that is left alone.
template <class D>
void copy_heads(const PipelineOperand& o, const OperandExtras& extras, SequencePlace at) {
  if (!extras.copies) return;
  for (int32_t head = 0; head < o.heads; ++head) {
    const auto in = head_at<D>(o, extras, at, head);
    const auto out = extras.kept
                         ? elements<typename D::Storage>(extras.kept + kept_offset(extras, at, head), extras.kept_gap)
                         : elements<typename D::Storage>(o.out + out_offset(o, extras, at, head), extras.out_gap);
    for (int32_t i = 0; i < o.dim; ++i) out[i] = in[i];
  }
}

// Where the call writes sums of squares it does nothing else.
template <class D, Layout kLayout>
void all_heads(const PipelineCall& p, int32_t operand, const TokenWork& w) {
  const PipelineOperand& o = p.operands[operand];
  const bool across = o.weight && p.norm.across_heads;
  const float mean = across ? mean_across_heads<D, kLayout>(p, operand, w.token, w.at, w.angles) : 0.0f;
  if (p.writes_sums) return;
  for (int32_t head = 0; head < o.heads; ++head)
    one_head<D, kLayout>(p, o, p.extras[operand], w, head, across ? &mean : nullptr);
}

template <class D, Layout kLayout>
void pipeline_tokens(const void* context, int64_t begin, int64_t end) {
  const auto& [p, pairs] = *static_cast<const Job*>(context);
  float cos[kMaxRotaryDim / 2], sin[kMaxRotaryDim / 2], cos_second[kMaxRotaryDim / 2], sin_second[kMaxRotaryDim / 2];
  const bool second = p.table.elements;
  const Angles angles = {cos, sin, second ? cos_second : cos, second ? sin_second : sin};
  for (int64_t token = begin; token < end; ++token) {
    PlacedToken state = {};
    CachePlace place = {};
    TokenWork w = {token, place_in_sequence(token, p.sequence_length), nullptr, angles};
    bool moves = token_state(p, token, !p.writes_sums, &state);
    if (p.cache.indices) {
      const CacheIndex index = cache_index(p.cache, token);
      if (p.slot_skips) moves = moves && !is_negative(index);
      if (moves && cache_place<true>(p.cache, index, !p.writes_sums, &place)) w.place = &place;
    }
    const PipelineOperand* turned = nullptr;  // the operand that the angles are of
    const CosSinRows* turned_by = nullptr;
    for (int32_t i = 0; i < p.num_operands; ++i) {
      const PipelineOperand& o = p.operands[i];
      const OperandExtras& extras = p.extras[i];
      const CosSinRows& rows = rows_of(p, i);
      if (p.writes_sums && !p.sums[i].of_tokens) continue;
      if (!moves && !p.writes_sums) copy_heads<D>(o, extras, w.at);
      if (!moves || (o.cached && !w.place && !extras.kept && !p.writes_sums)) continue;
      if (o.rotated && !(turned && turned->xpos_sign == o.xpos_sign && turned_by == &rows)) {
        turned = &o;
        turned_by = &rows;
        for (int32_t j = 0; j < p.rotary_dim / 2; ++j) {
          const PairTurn a = pair_turn(p, pairs, o.xpos_sign, rows, state, j);
          cos[j] = a.first.cos;
          sin[j] = a.first.sin;
          if (!second) continue;
          cos_second[j] = a.second.cos;
          sin_second[j] = a.second.sin;
        }
      }
      extras.twin ? all_heads<typename D::Twin, kLayout>(p, i, w) : all_heads<D, kLayout>(p, i, w);
    }
  }
}

}  // namespace

template <class Set, class D>
Outcome pipeline(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  int64_t row = 0;
  for (int32_t i = 0; i < p.num_operands; ++i)
    row += int64_t(p.operands[i].heads) * p.operands[i].dim * int64_t(sizeof(typename D::Storage));
  if (is_rotation(p)) return rotate<Set, D>(p, row, pairs, e);
  const Job job{p, pairs};
  return for_layout(p.layout, [&](auto layout) {
    for_token_ranges(p.num_tokens, row, e.threads, pipeline_tokens<D, layout.value>, &job);
    return Outcome{};
  });
}

#define ROPE_INSTANCE(D) template Outcome pipeline<ThisSet, D>(const PipelineCall&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
