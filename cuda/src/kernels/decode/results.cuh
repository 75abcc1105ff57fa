// What becomes of the sums of a block's warps: they are added up, and with those of other splits by the block that
// comes last, which needs no second launch.
#pragma once

#include "softmax.cuh"

namespace rope::cuda {

inline constexpr int kColumns = 64, kColumnStride = kColumns + 4;  // of a row that warps exchange at a time

// Four neighbouring elements of a row, as one access moves them.
struct alignas(16) Quad {
  float x[4];
};

__device__ __forceinline__ Quad& quad_at(float* at) { return *reinterpret_cast<Quad*>(at); }

// Sums that are relative to different largest scores, added up for four neighbouring elements of a row.
struct RowResult {
  float largest = kNoScore, sum = 0.0f;
  Quad o = {};

  // Those of several, in one step.
  template <int kCount>
  __device__ __forceinline__ void add(const float (&tops)[kCount], const float (&sums)[kCount],
                                      const Quad (&quads)[kCount]) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < kCount; ++i) top = fmaxf(top, tops[i]);
    const float keep = exp2_fast(largest - finite_top(top));
    sum *= keep;
#pragma unroll
    for (int j = 0; j < 4; ++j) o.x[j] *= keep;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float factor = exp2_fast(tops[i] - finite_top(top));
      sum = __builtin_fmaf(factor, sums[i], sum);
#pragma unroll
      for (int j = 0; j < 4; ++j) o.x[j] = __builtin_fmaf(factor, quads[i].x[j], o.x[j]);
    }
    largest = top;
  }
};

// The element of a head that column `column` of part `part` is.
template <class S>
__device__ __forceinline__ int32_t element_of(int32_t part, int32_t column) {
  constexpr int kPieceSteps = S::kValueDims / 2;
  const int32_t step = part * 4 + column % 8 / 2;
  return (column / 8 + step / kPieceSteps * 8) * S::kValueDims + step % kPieceSteps * 2 + column % 2;
}

// Row r of the block, elements `element` to + 3, and lse with the first ones.
template <class D>
__device__ __forceinline__ void store_result(const DecodeArgs& args, const DecodeBlock& b, int32_t r, int32_t element,
                                             RowResult x) {
  constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
  const DecodeParams& p = args.params;
  const int32_t h = b.query_head(r), token = b.token(r);
  if (p.sinks) {
    const float sink[1] = {p.sinks[h] * kLog2E}, one[1] = {1.0f};
    x.add(sink, one, {{}});
  }
  if (b.length != p.lengths[b.request]) x.sum = __builtin_nanf("");
  const bool any = x.sum != 0.0f;  // also where it is not a number
  const float scale = any ? (p.v.scales ? *p.v.scales : p.v.scale) / x.sum : 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) x.o.x[j] *= scale;
  char* const row = p.o.data + (int64_t(b.request) * p.q_tokens + token) * p.o.token_stride + h * p.o.head_stride;
#pragma unroll
  for (int j = 0; j < 4; ++j) reinterpret_cast<uint16_t*>(row)[element + j] = narrow_to<D>(args.dtype, x.o.x[j]);
  if (p.lse && element == 0)
    p.lse[(int64_t(b.request) * p.q_heads + h) * p.q_tokens + token] =
        any ? (x.largest + log2_fast(x.sum)) * kLn2 : kNoScore;
}

// Where the results of a split are.
struct SplitPlace {
  float *sums, *partial;
};

template <class S>
__device__ __forceinline__ SplitPlace split_place(const DecodeArgs& args, int32_t split) {
  const int64_t rows = (int64_t(blockIdx.x) * args.splits + split) * S::kRows;
  return {args.sums + rows * 2, args.partial + rows * S::kHeadDim};
}

// The results of all splits that have keys, from what their blocks left.
template <class S, class D>
__device__ __forceinline__ void add_splits(const DecodeArgs& args, const DecodeBlock& b, int32_t rows) {
  constexpr int kTogether = 8, kQuads = S::kHeadDim / 4;
  for (int32_t i = int32_t(threadIdx.x); i < rows * kQuads; i += kDecodeThreads) {
    const int32_t r = i / kQuads, quad = i % kQuads;
    RowResult result;
    for (int32_t first = b.first_split; first < b.last_split; first += kTogether) {
      float tops[kTogether], sums[kTogether];
      Quad quads[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const SplitPlace at = split_place<S>(args, first + k < b.last_split ? first + k : first);
        const bool there = first + k < b.last_split;
        tops[k] = there ? at.sums[2 * r] : kNoScore;
        sums[k] = there ? at.sums[2 * r + 1] : 0.0f;
        quads[k] = there ? quad_at(at.partial + r * S::kHeadDim + quad * 4) : Quad{};
      }
      result.add(tops, sums, quads);
    }
    store_result<D>(args, b, r, element_of<S>(quad * 4 / kColumns, quad * 4 % kColumns), result);
  }
}

// This block is the last of its unit to have left its split.
__device__ __forceinline__ bool is_last(const DecodeArgs& args, const DecodeBlock& b) {
  __shared__ int32_t number;
  publish();
  synchronize(false);
  if (threadIdx.x == 0) {
    number = take_number(args.counters + blockIdx.x);
    if (number == b.last_split - b.first_split - 1) args.counters[blockIdx.x] = 0;
  }
  synchronize(false);
  publish();
  return number == b.last_split - b.first_split - 1;
}

}  // namespace rope::cuda
