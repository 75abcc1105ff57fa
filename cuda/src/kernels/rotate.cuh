// The rotation kernel. Why it is mapped this way, with measurements: ../../KERNELS.md.
//
// A thread owns one slot of a head, two chunks that hold whole pairs (math/rotate.h): it computes their cos and sin once,
// keeps them in registers, and applies them to every head of its token that is its own. threadIdx.x runs over slots,
// y over heads, z over tokens; blockIdx.x over tokens, y over heads.
#pragma once

#include "../params.h"
#include "chunk.h"
#include "launch.h"

namespace rope::cuda {

// The whole argument, with the table by value: a launch needs no device memory of its own.
template <int kMaxPairs>
struct RotateArgs {
  RotateParams params;
  int32_t copy_slots;  // behind the rotated ones: one chunk each of what is only copied
  uint64_t table[kMaxPairs];
};

namespace detail {

struct Row {
  const char* in;
  char* out;
};

// Row of `head` of the token, q heads first, then k heads.
__device__ __forceinline__ Row row_of(const RotateParams& p, int64_t token, int32_t head) {
  const bool is_q = head < p.num_q_heads;
  const Heads& x = is_q ? p.q : p.k;
  const int64_t h = is_q ? head : head - p.num_q_heads;
  return {x.in + token * x.in_token_stride + h * x.in_head_stride,
          x.out + token * x.out_token_stride + h * x.out_head_stride};
}

// The heads that a thread works on: every head_step-th one from head_begin.
struct HeadRange {
  int32_t begin, end, step;
};

// Rotates one slot of the thread's heads, kUnroll of them in flight.
template <class D, Layout kLayout, Angle kAngle, int kVec, int kUnroll>
__device__ __forceinline__ void rotate_slot(const RotateParams& p, const uint64_t* table, int64_t token,
                                            int64_t position, int32_t slot, HeadRange heads) {
  using C = Chunk<D, kVec>;
  const PairMap<kLayout, kVec> map{slot, p.rotary_dim / 2};
  const int64_t first = int64_t(p.rotary_offset + map.first()) * C::kElementBytes;
  const int64_t second = int64_t(p.rotary_offset + map.second()) * C::kElementBytes;
  CosSin angle[kVec];
#pragma unroll
  for (int j = 0; j < kVec; ++j)
    angle[j] = angle_at<kAngle>(position, table[map.pair(j)], p.cos_scale, p.sin_scale);

  for (int32_t head = heads.begin; head < heads.end; head += heads.step * kUnroll) {
    C a[kUnroll], b[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (head + u * heads.step >= heads.end) break;
      const Row row = row_of(p, token, head + u * heads.step);
      a[u] = *reinterpret_cast<const C*>(row.in + first);
      b[u] = *reinterpret_cast<const C*>(row.in + second);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (head + u * heads.step >= heads.end) break;
      float x[2 * kVec];
      a[u].widen(x);
      b[u].widen(x + kVec);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const Pair y = rotate({x[map.element0(j)], x[map.element1(j)]}, angle[j]);
        x[map.element0(j)] = y.first;
        x[map.element1(j)] = y.second;
      }
      a[u].narrow(x);
      b[u].narrow(x + kVec);
      const Row row = row_of(p, token, head + u * heads.step);
      *reinterpret_cast<C*>(row.out + first) = a[u];
      *reinterpret_cast<C*>(row.out + second) = b[u];
    }
  }
}

// Copies the n-th chunk of those that are not rotated, for heads that are out of place.
template <class D, int kVec>
__device__ __forceinline__ void copy_slot(const RotateParams& p, int64_t token, int32_t n, HeadRange heads) {
  using C = Chunk<D, kVec>;
  int64_t element = int64_t(n) * kVec;
  if (element >= p.rotary_offset) element += p.rotary_dim;
  const int64_t at = element * C::kElementBytes;
  for (int32_t head = heads.begin; head < heads.end; head += heads.step) {
    const Row row = row_of(p, token, head);
    if (row.in != row.out) *reinterpret_cast<C*>(row.out + at) = *reinterpret_cast<const C*>(row.in + at);
  }
}

}  // namespace detail

template <class D, Layout kLayout, Angle kAngle, int kVec, int kUnroll, int kMaxPairs>
__global__ void __launch_bounds__(512) rotate_kernel(const __grid_constant__ RotateArgs<kMaxPairs> args) {
  const RotateParams& p = args.params;
  const int64_t token = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  const detail::HeadRange heads = {int32_t(blockIdx.y * blockDim.y + threadIdx.y), p.num_q_heads + p.num_k_heads,
                                   int32_t(gridDim.y * blockDim.y)};
  const int32_t rotated = p.rotary_dim / 2 / kVec, slots = rotated + args.copy_slots;

  wait_for_previous();
  release_next();
  int64_t position;
  if (token >= p.num_tokens || !position_of(p.positions, token, &position)) return;
  for (int32_t slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    if (slot < rotated) {
      detail::rotate_slot<D, kLayout, kAngle, kVec, kUnroll>(p, args.table, token, position, slot, heads);
    } else {
      detail::copy_slot<D, kVec>(p, token, slot - rotated, heads);
    }
  }
}

}  // namespace rope::cuda
