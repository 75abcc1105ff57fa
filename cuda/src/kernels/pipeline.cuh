// The pipeline kernel: one token's q, k and v through every stage in one pass (../pipeline.h).
//
// A block works on one operand, so that all that tells operands apart is uniform: blockIdx.y counts blocks of the first
// operand, then those of the next; blockIdx.x counts tokens, z slots that do not fit one block. A block's threads are
// dealt out to slots of a head, two chunks each, then to heads, then to tokens. What needs a whole head, the norm and
// dynamic scales (kReduce), meets in shared memory; a head's slots then lie in one block, and every thread takes the
// same number of turns.
#pragma once

#include "../stages.h"
#include "chunk.h"
#include "launch.h"
#include "pipeline_plan.h"
#include "words.h"

namespace rope::cuda {

template <int kMaxPairs>
struct PipelineArgs {
  PipelineParams params;
  OperandPlan plans[kMaxOperands];
  bool prefetch, release_early;
  alignas(16) uint64_t table[kMaxPairs];
};

namespace detail {

// A thread's two chunks of every head, in elements.
struct Share {
  bool live, rotated;
  int32_t first, second;
};

// Rotated slots come first, then what is only stored, chunk by chunk; a last slot that has one chunk only takes it
// twice.
template <Layout kLayout, int kVec>
__device__ __forceinline__ Share share_of(const PipelineParams& p, const PipelineOperand& o, int32_t slot) {
  const int32_t half = o.rotated ? p.rotary_dim / 2 : 0, rotated_slots = half / kVec;
  if (slot < rotated_slots) {
    const PairMap<kLayout, kVec> map{slot, half};
    return {true, true, p.rotary_offset + map.first(), p.rotary_offset + map.second()};
  }
  const int32_t chunks = (o.dim - 2 * half) / kVec, stored_slots = (chunks + 1) / 2;
  const int32_t n = slot - rotated_slots, m = n + stored_slots < chunks ? n + stored_slots : n;
  const auto element = [&](int32_t chunk) {
    const int32_t at = chunk * kVec;
    return o.rotated && at >= p.rotary_offset ? at + p.rotary_dim : at;
  };
  return {n < stored_slots && o.whole, false, element(n), element(m)};
}

template <OutType kType, int kVec>
__device__ __forceinline__ void store_quantised(char* at, float factor, const float* x) {
  if constexpr (kVec == 1) {
    *at = char(quantize2(kType, x[0] * factor, 0.0f));
  } else {
    struct alignas(kVec) Bytes {
      uint16_t two[kVec / 2];
    } bytes;
#pragma unroll
    for (int j = 0; j < kVec / 2; ++j)
      bytes.two[j] = uint16_t(quantize2(kType, x[2 * j] * factor, x[2 * j + 1] * factor));
    *reinterpret_cast<Bytes*>(at) = bytes;
  }
}

template <int kVec>
__device__ __forceinline__ void store_quantised(OutType type, char* row, const Share& s, float factor, const float* x) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    char* const at = row + (c ? s.second : s.first);
    if (type == OutType::kE4M3) store_quantised<OutType::kE4M3, kVec>(at, factor, x + c * kVec);
    if (type == OutType::kE5M2) store_quantised<OutType::kE5M2, kVec>(at, factor, x + c * kVec);
    if (type == OutType::kInt8) store_quantised<OutType::kInt8, kVec>(at, factor, x + c * kVec);
  }
}

// Where the threads of a head meet: groups of the norm's sum, or each slot's largest magnitude. A group's squares are
// one float; element by element, each square is.
template <int kVec, int kUnroll>
struct Meeting {
  static constexpr int kGroup = kVec < kNormGroup ? 1 : kNormGroup;
  static constexpr int kFloats = kPipelineBlock * (2 * kVec / kGroup + 4);
  alignas(16) float at[kUnroll][kFloats];

  // Floats of a row, a multiple of four.
  __device__ static int32_t row_floats(int32_t slots) { return (slots * 2 * kVec / kGroup + 3) / 4 * 4; }
};

// The sum of squares of a row whose groups are at `groups`.
template <int kGroup>
__device__ __forceinline__ float row_total(const float* groups, int32_t dim) {
  struct alignas(16) Four {
    float x[kNormSums];
  };
  float sums[kNormSums] = {};
  int32_t i = 0;
  if constexpr (kGroup == kNormGroup) {
    const Four* four = reinterpret_cast<const Four*>(groups);
#pragma unroll 4
    for (; i + kNormGroup * kNormSums <= dim; i += kNormGroup * kNormSums, ++four)
#pragma unroll
      for (int c = 0; c < kNormSums; ++c) sums[c] += four->x[c];
  }
#pragma unroll
  for (int c = 0; c < kNormSums; ++c) {
    const auto group = [&](int32_t at) {
      if constexpr (kGroup == kNormGroup) return groups[at / kNormGroup];
      const auto x = [&](int32_t j) { return j < dim ? groups[j] : 0.0f; };
      return (x(at) + x(at + 1)) + (x(at + 2) + x(at + 3));
    };
    for (int32_t at = i + c * kNormGroup; at < dim; at += kNormGroup * kNormSums) sums[c] += group(at);
  }
  return norm_total(sums);
}

// Weights of kVec elements from `element` on.
template <class D, int kVec>
__device__ __forceinline__ void load_weights(const Norm& n, const void* weights, int32_t element, float* w) {
  if (n.wide_weights) {
    Chunk<D, kVec> chunk = *reinterpret_cast<const Chunk<D, kVec>*>(static_cast<const char*>(weights) +
                                                                    int64_t(element) * Chunk<D, kVec>::kElementBytes);
    chunk.widen(w);
#pragma unroll
    for (int j = 0; j < kVec; ++j) w[j] += n.weight_bias;
  } else {
#pragma unroll
    for (int j = 0; j < kVec; ++j) w[j] = norm_weight<D>(n, weights, element + j);
  }
}

}  // namespace detail

// kQuantised: some output is. kGeneral: any kind of position, angle and cache index; else exact angles by the call's
// table, one position a token (an offset or an id) and slots below 2^32, which is what most calls want and a fraction
// of the code.
template <class D, Layout kLayout, int kVec, int kUnroll, bool kReduce, bool kQuantised, bool kGeneral, int kMaxPairs>
__global__ void __launch_bounds__(kPipelineBlock)
    pipeline_kernel(const __grid_constant__ PipelineArgs<kMaxPairs> args) {
  using C = Chunk<D, kVec>;
  using Meeting = detail::Meeting<kVec, kUnroll>;
  const PipelineParams& p = args.params;
  int32_t which = 0, y = blockIdx.y;
  while (y >= args.plans[which].blocks) y -= args.plans[which++].blocks;
  const PipelineOperand& o = p.operands[which];
  const OperandPlan& plan = args.plans[which];
  const int32_t row = threadIdx.x / plan.slots, lane = threadIdx.x - row * plan.slots;
  const int32_t row_token = row / plan.columns, slot = blockIdx.z * plan.slots + lane, step = plan.columns;
  const int64_t token = row_token < plan.tokens ? int64_t(blockIdx.x) * plan.tokens + row_token : p.num_tokens;
  if (!kReduce && token >= p.num_tokens) return;
  int32_t head = y * step * kUnroll * plan.turns + row - row_token * plan.columns;

  const detail::Share share = detail::share_of<kLayout, kVec>(p, o, slot);
  const PairMap<kLayout, kVec> map{share.rotated ? slot : 0, p.rotary_dim / 2};
  const int64_t first = int64_t(share.first) * C::kElementBytes, second = int64_t(share.second) * C::kElementBytes;
  const char* in = o.in + token * o.in_token_stride + head * o.in_head_stride;
  const int64_t in_step = step * o.in_head_stride;
  const bool inside = share.live && token < p.num_tokens;
  const auto live = [&](int u) { return inside && head + u * step < o.heads; };
  uint64_t word[kVec], digest = reinterpret_cast<uint64_t>(in) ^ first ^ second ^ in_step ^ inside;
  if constexpr (!kGeneral) {
    load_words(as_memory(args.table), map, word);
#pragma unroll
    for (int j = 0; j < kVec; ++j) digest ^= word[j];
  }
  if (args.release_early) release_next();
  if (args.prefetch) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      prefetch(in + u * in_step + first);
      prefetch(in + u * in_step + second);
    }
  }
  wait_for_previous(digest);
  release_next();

  C a[kUnroll], b[kUnroll];
  const auto load_heads = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      a[u] = *reinterpret_cast<const C*>(in + u * in_step + first);
      b[u] = *reinterpret_cast<const C*>(in + u * in_step + second);
    }
  };
  load_heads();  // in flight while position and slot arrive

  const bool reports = blockIdx.y == 0 && slot == 0 && head == 0;
  TokenState state;
  CachePlace place = {};
  bool moves = token < p.num_tokens;
  if constexpr (kGeneral) {
    moves = moves && token_state(p, token, reports, &state);
  } else {
    moves = moves && simple_position(p.positions, token, &state.position);
  }
  if (moves && (o.cached || reports)) {
    const bool placed = cache_place<kGeneral>(p.cache, token, reports, &place);
    moves = placed || !o.cached;
  }
  if (!kReduce && !moves) return;
  CosSin angle[kVec] = {};
  if (moves && share.rotated) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if constexpr (kGeneral) {
        angle[j] = pair_angle(p, args.table, state, token, map.pair(j));
      } else {
        angle[j] = angle_at<Angle::kExact>(state.position, word[j], p.cos_scale, p.sin_scale);
      }
    }
  }
  const bool per_head = o.quantize.kind == ScaleKind::kHead;
  const float token_factor = kQuantised && moves && !per_head ? 1.0f / given_scale(o.quantize, token, 0) : 1.0f;
  char* out = row_out(o, token, head, place);
  const int64_t out_step = step * o.out_head_stride;

  for (int32_t turn = 0;; ++turn) {
    float x[kUnroll][2 * kVec];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u)) continue;
      a[u].widen(x[u]);
      b[u].widen(x[u] + kVec);
    }

    const auto rotate_heads = [&] {
      if (!share.rotated) return;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
          const Pair z = rotate({x[u][map.element0(j)], x[u][map.element1(j)]}, angle[j]);
          x[u][map.element0(j)] = z.first;
          x[u][map.element1(j)] = z.second;
        }
    };

    float dynamic_factor[kUnroll];
    if constexpr (kReduce) {
      __shared__ Meeting meeting;
      const int32_t groups_at = row * Meeting::row_floats(plan.slots);
      if (p.norm.after) rotate_heads();
      if (o.weight) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (!live(u)) continue;
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float* z = x[u] + c * kVec;
            float* groups = meeting.at[u] + groups_at + (c ? share.second : share.first) / Meeting::kGroup;
            if constexpr (Meeting::kGroup == 1) {
#pragma unroll
              for (int j = 0; j < kVec; ++j) groups[j] = z[j] * z[j];
            } else {
#pragma unroll
              for (int j = 0; j < kVec; j += kNormGroup)
                groups[j / kNormGroup] = norm_group(z[j], z[j + 1], z[j + 2], z[j + 3]);
            }
          }
        }
        synchronize(plan.rows_in_warps);
        float w[2 * kVec] = {};
        if (inside) {
          detail::load_weights<D, kVec>(p.norm, o.weight, share.first, w);
          detail::load_weights<D, kVec>(p.norm, o.weight, share.second, w + kVec);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (!live(u)) continue;
          const float total = detail::row_total<Meeting::kGroup>(meeting.at[u] + groups_at, o.dim);
          const float r = norm_factor(total, p.norm.inverse_dim, p.norm.eps);
#pragma unroll
          for (int j = 0; j < 2 * kVec; ++j) x[u][j] = x[u][j] * r * w[j];
        }
        synchronize(plan.rows_in_warps);
      }
      if (!p.norm.after) rotate_heads();
      if (o.quantize.kind == ScaleKind::kDynamic) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          float largest = 0.0f;
#pragma unroll
          for (int j = 0; j < 2 * kVec; ++j) largest = live(u) ? larger_magnitude(largest, x[u][j]) : largest;
          meeting.at[u][groups_at + lane] = largest;
        }
        synchronize(plan.rows_in_warps);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (!live(u)) continue;
          float largest = 0.0f;
          for (int32_t i = 0; i < plan.slots; ++i) largest = larger_magnitude(largest, meeting.at[u][groups_at + i]);
          const float scale = dynamic_scale(o.quantize.type, largest);
          dynamic_factor[u] = 1.0f / scale;
          if (slot == 0 && moves) o.quantize.scales[scale_row(p, o, token, place) * o.heads + head + u * step] = scale;
        }
        synchronize(plan.rows_in_warps);
      }
    } else {
      rotate_heads();
    }

#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live(u) || !moves) continue;
      char* const row = out + u * out_step;
      if (!kQuantised || o.quantize.type == OutType::kSame) {
        if (share.rotated || (kReduce && o.weight)) {  // else a copy, bit for bit
          a[u].narrow(x[u]);
          b[u].narrow(x[u] + kVec);
        }
        *reinterpret_cast<C*>(row + first) = a[u];
        *reinterpret_cast<C*>(row + second) = b[u];
      } else {
        const ScaleKind kind = o.quantize.kind;
        const float factor = kReduce && kind == ScaleKind::kDynamic ? dynamic_factor[u]
                             : kind == ScaleKind::kHead             ? 1.0f / o.quantize.scales[head + u * step]
                                                                    : token_factor;
        detail::store_quantised<kVec>(o.quantize.type, row, share, factor, x[u]);
      }
    }
    if (turn + 1 == plan.turns) return;
    head += step * kUnroll;
    in += kUnroll * in_step;
    out += kUnroll * out_step;
    load_heads();
  }
}

}  // namespace rope::cuda
