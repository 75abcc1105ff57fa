// The softmax of rows whose scores come block by block: largest score, sum of powers and what was added up so far are
// kept relative to the largest score yet (Milakov and Gimelshein, arXiv:1805.02867). A thread has two rows, a quarter
// of the columns of each; scores lie as products leave them (wgmma.cuh).
#pragma once

#include "args.h"

namespace rope::cuda {

inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Over the four threads that share a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, exchange(x, 1));
  return fmaxf(x, exchange(x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += exchange(x, 1);
  return x + exchange(x, 2);
}

struct OnlineSoftmax {
  float largest[2];  // of the scores
  float sum[2];      // of this thread's powers
  float factor[2];   // of what was added up before the last block

  __device__ __forceinline__ void clear() {
    largest[0] = largest[1] = kMinusInfinity;
    sum[0] = sum[1] = 0.0f;
  }

  // Scores to powers. kMasked: a row may have seen no key yet.
  template <bool kMasked, int kCount>
  __device__ __forceinline__ void add(float (&scores)[kCount], float scale_log2) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = largest[r];
#pragma unroll
      for (int j = 2 * r; j < kCount; j += 4) top = fmaxf(top, fmaxf(scores[j], scores[j + 1]));
      top = row_max(top);
      const float finite = kMasked && top == kMinusInfinity ? 0.0f : top;
      factor[r] = exp2_fast((largest[r] - finite) * scale_log2);
      largest[r] = top;
      const float shift = finite * scale_log2;
      float added = 0.0f;
#pragma unroll
      for (int j = 2 * r; j < kCount; j += 4) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          scores[j + c] = exp2_fast(__builtin_fmaf(scores[j + c], scale_log2, -shift));
          added += scores[j + c];
        }
      }
      sum[r] = __builtin_fmaf(sum[r], factor[r], added);
    }
  }

  // What is added up of row r, times `inverse`, is its result; `lse`: the logarithm of the row's sum of exponentials.
  // sink: a logit that counts in the sum alone, or -inf.
  struct End {
    float inverse, lse;
  };
  __device__ __forceinline__ End end(int r, float scale_log2) const {
    const float total = row_sum(sum[r]);
    if (total == 0.0f) return {0.0f, kMinusInfinity};
    return {1.0f / total, __builtin_fmaf(largest[r], scale_log2, log2_fast(total)) * kLn2};
  }
  __device__ __forceinline__ End end(int r, float scale_log2, float sink) const {
    const float total = row_sum(sum[r]), own = total == 0.0f ? kMinusInfinity : largest[r] * scale_log2;
    const float other = sink * kLog2E, top = fmaxf(own, other);
    if (top == kMinusInfinity) return {0.0f, kMinusInfinity};
    const float own_factor = exp2_fast(own - top);
    const float all = __builtin_fmaf(total, own_factor, exp2_fast(other - top));
    return {own_factor / all, (top + log2_fast(all)) * kLn2};
  }
};

}  // namespace rope::cuda
