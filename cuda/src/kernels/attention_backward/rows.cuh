// What goes by queries: sums of d_o * o and zeros for dq before its parts are added up, dq to 16 bits behind that, and
// the gradients of sinks.
#pragma once

#include "../attention/query_turn.cuh"
#include "../attention/softmax.cuh"
#include "args.h"

namespace rope::cuda {

inline constexpr int kRowsThreads = 256;

// The queries of a block of threads: kBackwardRows of a head, from `row` on.
struct RowsTile {
  BackwardSequence s;
  int32_t head, row;

  __device__ __forceinline__ explicit RowsTile(const BackwardLayout& a) {
    const int32_t each = (a.q_tokens + kBackwardRows - 1) / kBackwardRows, number = int32_t(blockIdx.x);
    const int32_t heads = number / each, sequence = heads / a.q_heads;
    row = (number - heads * each) * kBackwardRows;
    head = heads - sequence * a.q_heads;
    s = sequence_of(a, sequence);
  }

  __device__ __forceinline__ bool is_empty() const { return row >= s.q_tokens; }
  __device__ __forceinline__ int64_t workspace_row(const BackwardLayout& a) const {
    return head * a.rows + s.first_row + row;
  }
  __device__ __forceinline__ char* at(const AttentionTensor& x, int32_t i) const {
    return x.data + s.sequence * x.sequence_stride + (s.q_begin + row + i) * x.token_stride + head * x.head_stride;
  }
};

template <class D>
__device__ __forceinline__ float add_products(float sum, uint32_t x, uint32_t y) {
  const Pair a = widen2<D>(x), b = widen2<D>(y);
  return __builtin_fmaf(a.second, b.second, __builtin_fmaf(a.first, b.first, sum));
}

template <class Shape, class D>
__global__ void __launch_bounds__(kRowsThreads) prepare_rows_kernel(const __grid_constant__ RowsArgs args) {
  constexpr int kLanes = Shape::kDim / 8, kAtOnce = kRowsThreads / kLanes;  // threads of a row, rows of a pass
  release_next();
  wait_for_previous();
  const RowsTile t(args.layout);
  if (t.is_empty()) return;
  const int64_t out = t.workspace_row(args.layout);
  const int lane = int(threadIdx.x) % kLanes;
#pragma unroll
  for (int pass = 0; pass < Shape::kRows / kAtOnce; ++pass) {
    const int i = pass * kAtOnce + int(threadIdx.x) / kLanes;
    const bool is_row = t.row + i < t.s.q_tokens;
    float sum = 0.0f;
    if (is_row) {
      const uint4 x = reinterpret_cast<const uint4*>(t.at(args.o, i))[lane];
      const uint4 y = reinterpret_cast<const uint4*>(t.at(args.d_o, i))[lane];
      sum = add_products<D>(sum, x.x, y.x);
      sum = add_products<D>(sum, x.y, y.y);
      sum = add_products<D>(sum, x.z, y.z);
      sum = add_products<D>(sum, x.w, y.w);
    }
#pragma unroll
    for (int lanes = kLanes / 2; lanes; lanes /= 2) sum += exchange(sum, lanes);
    if (lane) continue;
    float lse = -kMinusInfinity;
    if (is_row) {
      const int64_t at =
          t.s.sequence * args.lse_sequence_stride + t.head * args.lse_head_stride + t.s.q_begin + t.row + i;
      const float given = args.lse[at];
      if (given != kMinusInfinity) lse = given * kLog2E;
      if (args.d_lse) sum -= args.d_lse[at];
    }
    args.layout.lse[out + i] = lse;
    args.layout.d[out + i] = sum;
  }
  float4* zeros = reinterpret_cast<float4*>(args.layout.dq + out * Shape::kDim);
#pragma unroll
  for (int i = int(threadIdx.x); i < Shape::kRows * Shape::kDim / 4; i += kRowsThreads) zeros[i] = {0, 0, 0, 0};
}

// dq as its parts were added up (kernel.cuh), to rows of 16 bits, by way of shared memory, where it is turned back.
template <class Shape, class D>
__global__ void __launch_bounds__(kRowsThreads) convert_rows_kernel(const __grid_constant__ RowsArgs args) {
  constexpr int kChunks = Shape::kDim / 8;
  wait_for_previous();
  const RowsTile t(args.layout);
  if (t.is_empty()) return;
  char* const rows = shared_memory();
  const float4* dq = reinterpret_cast<const float4*>(args.layout.dq + t.workspace_row(args.layout) * Shape::kDim);
#pragma unroll
  for (int i = int(threadIdx.x); i < Shape::kRows * Shape::kDim / 4; i += kRowsThreads) {
    const int part = i / (Shape::kPartFloats / 4), j = i / kWarpgroup % (Shape::kColumns / 8), thread = i % kWarpgroup;
    const int row = thread / kWarp * 16 + thread % kWarp / 4, column = part * Shape::kColumns + 8 * j + thread % 4 * 2;
    const float4 x = dq[i];
    const auto at = [&](int r) {
      return reinterpret_cast<uint32_t*>(rows + chunk_place<Shape::kRows>(r, column / 8) + column % 8 * 2);
    };
    *at(row) = D::narrow2(x.x * args.scale, x.y * args.scale);
    *at(row + 8) = D::narrow2(x.z * args.scale, x.w * args.scale);
  }
  synchronize(false);
  if (args.turn.cos) {
    const Tile tile = {t.row, t.head, t.s.sequence, t.s.q_begin, t.s.k_begin, t.s.q_tokens, t.s.k_tokens};
    QueryTurner<Shape, D, kRowsThreads, 2, true>(args.turn, tile, 0, Shape::kRows, int(threadIdx.x))
        .turn(shared_address(rows));
    synchronize(false);
  }
  for (int i = int(threadIdx.x); i < Shape::kRows * kChunks; i += kRowsThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (t.row + row >= t.s.q_tokens) break;
    reinterpret_cast<uint4*>(t.at(args.dq, row))[chunk] =
        load_shared(shared_address(rows) + chunk_place<Shape::kRows>(row, chunk));
  }
}

// A block for each head, in one order.
template <class D>
__global__ void __launch_bounds__(kRowsThreads) sinks_kernel(const __grid_constant__ RowsArgs args) {
  wait_for_previous();
  const BackwardLayout& a = args.layout;
  const int head = int(blockIdx.x), thread = int(threadIdx.x);
  const float sink = args.sinks[head] * kLog2E;
  float sum = 0.0f;
  for (int32_t n = 0; n < a.sequences; ++n) {
    const BackwardSequence s = sequence_of(a, n);
    for (int32_t i = thread; i < s.q_tokens; i += kRowsThreads) {
      const int64_t at = head * a.rows + s.first_row + i;
      sum = __builtin_fmaf(-exp2_fast(sink - a.lse[at]), a.d[at], sum);
    }
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes; lanes /= 2) sum += exchange(sum, lanes);
  auto& sums = *reinterpret_cast<float (*)[kRowsThreads / kWarp]>(shared_memory());
  if (thread % kWarp == 0) sums[thread / kWarp] = sum;
  synchronize(false);
  if (thread) return;
  for (int i = 1; i < kRowsThreads / kWarp; ++i) sum += sums[i];
  args.d_sinks[head] = sum;
}

}  // namespace rope::cuda
