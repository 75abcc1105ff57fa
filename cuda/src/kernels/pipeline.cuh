// The pipeline kernel: one token's q, k and v through every stage in one pass (../pipeline.h).
//
// Threads are mapped as in rotate.cuh: x over slots of a head, two chunks each, y over heads, z over tokens. Heads
// count through all operands. What needs a whole head, the norm and dynamic scales (kReduce), meets in shared memory; a
// head's slots then lie in one block, and every thread takes the same number of turns.
#pragma once

#include "../stages.h"
#include "chunk.h"
#include "launch.h"
#include "pipeline_plan.h"

namespace rope::cuda {

template <int kMaxPairs>
struct PipelineArgs {
  PipelineParams params;
  bool prefetch, release_early;
  alignas(16) uint64_t table[kMaxPairs];
};

namespace detail {

// One head of one token, and the thread's two chunks of it, in elements.
struct Share {
  const PipelineOperand* operand;
  int32_t head, first, second;
  bool live, rotated;
};

// Where a thread's chunks lie: rotated slots come first, then what is only stored, chunk by chunk; a last slot that has
// one chunk only takes it twice.
template <Layout kLayout, int kVec>
__device__ __forceinline__ Share share_of(const PipelineParams& p, int32_t index, int32_t slot) {
  Share s = {p.operands, index, 0, 0, index < p.heads, false};
  if (!s.live) return s;
  while (s.head >= s.operand->heads) s.head -= s.operand++->heads;
  const PipelineOperand& o = *s.operand;
  const int32_t half = o.rotated ? p.rotary_dim / 2 : 0, rotated_slots = half / kVec;
  const int32_t chunks = (o.dim - 2 * half) / kVec, stored_slots = (chunks + 1) / 2;
  if (slot < rotated_slots) {
    const PairMap<kLayout, kVec> map{slot, half};
    s.first = p.rotary_offset + map.first();
    s.second = p.rotary_offset + map.second();
    s.rotated = true;
    return s;
  }
  const int32_t n = slot - rotated_slots, m = n + stored_slots < chunks ? n + stored_slots : n;
  const auto element = [&](int32_t chunk) {
    const int32_t at = chunk * kVec;
    return o.rotated && at >= p.rotary_offset ? at + p.rotary_dim : at;
  };
  s.live = n < stored_slots && o.whole;
  s.first = element(n);
  s.second = element(m);
  return s;
}

// kVec floats as the elements of a row that is stored.
template <class D, int kVec>
__device__ __forceinline__ void store(char* row, int32_t element, OutType type, float factor, const float* x) {
  if (type == OutType::kSame) {
    Chunk<D, kVec> chunk;
    chunk.narrow(x);
    *reinterpret_cast<Chunk<D, kVec>*>(row + int64_t(element) * Chunk<D, kVec>::kElementBytes) = chunk;
  } else if constexpr (kVec == 1) {
    row[element] = char(quantize2(type, x[0] * factor, 0.0f));
  } else {
    struct alignas(kVec) Bytes {
      uint16_t two[kVec / 2];
    } bytes;
#pragma unroll
    for (int j = 0; j < kVec / 2; ++j)
      bytes.two[j] = uint16_t(quantize2(type, x[2 * j] * factor, x[2 * j + 1] * factor));
    *reinterpret_cast<Bytes*>(row + element) = bytes;
  }
}

// Groups of the norm's sum, or slots' largest magnitudes, of every row in flight in a block.
template <int kVec, int kUnroll>
struct Meeting {
  static constexpr int kGroup = kVec < kNormGroup ? 1 : kNormGroup;  // elements whose squares one float holds
  static constexpr int kFloats = kPipelineBlock * 2 * kVec / kGroup;
  float at[kUnroll][kFloats];
};

// The norm's factor of a row whose groups are at `groups`.
template <int kGroup>
__device__ __forceinline__ float row_factor(const float* groups, int32_t dim, float eps) {
  float sums[kNormSums] = {};
  for (int32_t i = 0; i < dim; i += kNormGroup * kNormSums)
#pragma unroll
    for (int c = 0; c < kNormSums; ++c) {
      const int32_t at = i + c * kNormGroup;
      if constexpr (kGroup == 1) {
        float x[kNormGroup];
        for (int j = 0; j < kNormGroup; ++j) x[j] = at + j < dim ? groups[at + j] : 0.0f;
        sums[c] += (x[0] + x[1]) + (x[2] + x[3]);
      } else if (at < dim) {
        sums[c] += groups[at / kNormGroup];
      }
    }
  return norm_factor(norm_total(sums), dim, eps);
}

}  // namespace detail

template <class D, Layout kLayout, int kVec, int kUnroll, bool kReduce, int kMaxPairs>
__global__ void __launch_bounds__(kPipelineBlock)
    pipeline_kernel(const __grid_constant__ PipelineArgs<kMaxPairs> args) {
  using C = Chunk<D, kVec>;
  using Meeting = detail::Meeting<kVec, kUnroll>;
  const PipelineParams& p = args.params;
  const uint64_t* table = as_memory(args.table);
  const int64_t token = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  const int32_t slot = blockIdx.z * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.y;
  int32_t head = blockIdx.y * blockDim.y + threadIdx.y;

  detail::Share share[kUnroll];
  const char* in[kUnroll];
  const auto take_heads = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      share[u] = detail::share_of<kLayout, kVec>(p, head + u * step, slot);
      const PipelineOperand& o = *share[u].operand;
      share[u].live = share[u].live && token < p.num_tokens;
      in[u] = o.in + token * o.in_token_stride + share[u].head * o.in_head_stride;
    }
  };
  take_heads();
  if (args.release_early) release_next();
  if (args.prefetch) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!share[u].live) continue;
      prefetch(in[u] + int64_t(share[u].first) * C::kElementBytes);
      prefetch(in[u] + int64_t(share[u].second) * C::kElementBytes);
    }
  }
  wait_for_previous();
  release_next();

  C a[kUnroll], b[kUnroll];
  const auto load_heads = [&] {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!share[u].live) continue;
      a[u] = *reinterpret_cast<const C*>(in[u] + int64_t(share[u].first) * C::kElementBytes);
      b[u] = *reinterpret_cast<const C*>(in[u] + int64_t(share[u].second) * C::kElementBytes);
    }
  };
  load_heads();  // in flight while the position arrives

  const bool reports = slot == 0 && head == 0;
  TokenState state;
  CachePlace place = {};
  const bool moves = token < p.num_tokens && token_state(p, token, reports, &state);
  const bool cached = moves && cache_place(p.cache, token, reports, &place);
  if (!kReduce && !moves) return;
  const PairMap<kLayout, kVec> map{slot, p.rotary_dim / 2};
  CosSin angle[kVec];
#pragma unroll
  for (int j = 0; j < kVec; ++j)
    angle[j] = moves && slot < p.rotary_dim / 2 / kVec ? pair_angle(p, table, state, token, map.pair(j)) : CosSin{};

  const int32_t turns = (p.heads + step * kUnroll - 1) / (step * kUnroll);
  for (int32_t turn = 0;; ++turn) {
    float x[kUnroll][2 * kVec];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      share[u].live &= share[u].operand->cached ? cached : moves;
      if (!share[u].live) continue;
      a[u].widen(x[u]);
      b[u].widen(x[u] + kVec);
    }

    const auto rotate_heads = [&] {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!share[u].live || !share[u].rotated) continue;
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
          const Pair y = rotate({x[u][map.element0(j)], x[u][map.element1(j)]}, angle[j]);
          x[u][map.element0(j)] = y.first;
          x[u][map.element1(j)] = y.second;
        }
      }
    };

    float factor[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (share[u].live) factor[u] = 1.0f / given_scale(share[u].operand->quantize, token, share[u].head);

    if constexpr (kReduce) {
      __shared__ Meeting meeting;
      const int32_t row = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x * 2 * kVec / Meeting::kGroup;
      if (p.norm.on && p.norm.after) rotate_heads();
      if (p.norm.on) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (!share[u].live || !share[u].operand->weight) continue;
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float* y = x[u] + c * kVec;
            float* groups = meeting.at[u] + row + (c ? share[u].second : share[u].first) / Meeting::kGroup;
            if constexpr (Meeting::kGroup == 1) {
              groups[0] = y[0] * y[0];
            } else {
#pragma unroll
              for (int j = 0; j < kVec; j += kNormGroup)
                groups[j / kNormGroup] = norm_group(y[j], y[j + 1], y[j + 2], y[j + 3]);
            }
          }
        }
        synchronize_block();
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const PipelineOperand& o = *share[u].operand;
          if (!share[u].live || !o.weight) continue;
          const float r = detail::row_factor<Meeting::kGroup>(meeting.at[u] + row, o.dim, p.norm.eps);
#pragma unroll
          for (int j = 0; j < 2 * kVec; ++j) {
            const int32_t element = j < kVec ? share[u].first + j : share[u].second + j - kVec;
            x[u][j] = x[u][j] * r * norm_weight<D>(p.norm, o.weight, element);
          }
        }
        synchronize_block();
      }
      if (!(p.norm.on && p.norm.after)) rotate_heads();
      if (p.dynamic) {
        float* const largest_at = meeting.at[0];  // [rows][kUnroll][slots]
        const int32_t largest_row = (threadIdx.z * blockDim.y + threadIdx.y) * kUnroll * blockDim.x;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          float largest = 0.0f;
#pragma unroll
          for (int j = 0; j < 2 * kVec; ++j) largest = share[u].live ? larger_magnitude(largest, x[u][j]) : largest;
          largest_at[largest_row + u * blockDim.x + threadIdx.x] = largest;
        }
        synchronize_block();
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const PipelineOperand& o = *share[u].operand;
          if (!share[u].live || o.quantize.kind != ScaleKind::kDynamic) continue;
          float largest = 0.0f;
          for (uint32_t i = 0; i < blockDim.x; ++i)
            largest = larger_magnitude(largest, largest_at[largest_row + u * blockDim.x + i]);
          const float scale = dynamic_scale(o.quantize.type, largest);
          factor[u] = 1.0f / scale;
          if (slot == 0) o.quantize.scales[scale_row(p, o, token, place) * o.heads + share[u].head] = scale;
        }
        synchronize_block();
      }
    } else {
      rotate_heads();
    }

#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!share[u].live) continue;
      const PipelineOperand& o = *share[u].operand;
      char* const out = row_out(o, token, share[u].head, place);
      detail::store<D, kVec>(out, share[u].first, o.quantize.type, factor[u], x[u]);
      detail::store<D, kVec>(out, share[u].second, o.quantize.type, factor[u], x[u] + kVec);
    }
    if (turn + 1 == turns) return;
    head += step * kUnroll;
    take_heads();
    load_heads();
  }
}

}  // namespace rope::cuda
