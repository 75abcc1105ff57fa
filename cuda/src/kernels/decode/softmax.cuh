// The softmax of rows whose scores come tile by tile: largest score, sum of powers and what was added up so far are
// kept relative to the largest score yet (arXiv:1805.02867). A lane has queries g and g + 8 and a quarter of their
// keys.
#pragma once

#include "tiles.cuh"

namespace rope::cuda {

inline constexpr float kNoScore = -__builtin_inff();

// What powers are relative to.
__device__ __forceinline__ float finite_top(float top) { return top == kNoScore ? 0.0f : top; }

// Over the four lanes that share queries.
__device__ __forceinline__ float largest_of_keys(float x) {
  x = fmaxf(x, exchange(x, 1));
  return fmaxf(x, exchange(x, 2));
}
__device__ __forceinline__ float sum_of_keys(float x) {
  x += exchange(x, 1);
  return x + exchange(x, 2);
}

template <class S>
struct RowSums {
  float largest[S::kRowTiles], sum[S::kRowTiles];  // sum: of this lane's keys
  SeenKeys seen[S::kRowTiles];

  __device__ __forceinline__ void clear(const DecodeParams& p, const DecodeBlock& b, int32_t lane) {
#pragma unroll
    for (int n = 0; n < S::kRowTiles; ++n) {
      largest[n] = kNoScore;
      sum[n] = 0.0f;
      const int32_t token = b.token(n * 8 + lane / 4);
      seen[n] = token < p.q_tokens ? seen_keys(p, b.length, token) : SeenKeys{0, 0};
    }
  }

  // Scores of keys `tile` on to weights, and the factors of what was added up before.
  template <class M>
  __device__ __forceinline__ void add(const DecodeArgs& args, int32_t tile, int32_t lane, float scale,
                                      float (&scores)[S::kGroups][2][4],
                                      uint32_t (&weights)[S::kRowTiles][S::kGroups][2], float (&factor)[S::kRowTiles]) {
#pragma unroll
    for (int n = 0; n < S::kRowTiles; ++n) {
      float top = largest[n];
      const auto for_scores = [&](auto f) {
#pragma unroll
        for (int i = 0; i < S::kGroups; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int e = 0; e < 2; ++e) f(scores[i][half][2 * n + e], tile + i * 16 + half * 8 + lane % 4 * 2 + e);
      };
      for_scores([&](float& x, int32_t key) {
        x *= scale;
        if (args.softcap_log2 > 0.0f)  // tanh(y) = 1 - 2 / (e^2y + 1)
          x = args.softcap_log2 * __builtin_fmaf(-2.0f, reciprocal_fast(exp2_fast(x) + 1.0f), 1.0f);
        if (key < seen[n].low || key >= seen[n].high) x = kNoScore;
        top = fmaxf(top, x);
      });
      top = largest_of_keys(top);
      factor[n] = exp2_fast(largest[n] - finite_top(top));
      largest[n] = top;
      sum[n] *= factor[n];
      for_scores([&](float& x, int32_t) {
        x = exp2_fast(x - finite_top(top));
        sum[n] += x;
      });
#pragma unroll
      for (int i = 0; i < S::kGroups; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          weights[n][i][half] = M::narrow2(scores[i][half][2 * n], scores[i][half][2 * n + 1]);
    }
  }
};

}  // namespace rope::cuda
