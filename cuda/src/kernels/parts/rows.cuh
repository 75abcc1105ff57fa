// Sums of squares and largest magnitudes of heads whose elements are spread over threads.
#pragma once

#include "../../operations/token.h"
#include "launch.h"
#include "plan.h"
#include "slot.h"

namespace rope::cuda {

// A head that lies in one warp, its slots in `lanes` neighbouring ones, a power of two; first and second are chunks of
// its first and second half. The head's dim is a multiple of 8 and of 2 * kVec, and at least 16. Heads without
// elements in a thread (`live` is false) count as zeros.
template <int kVec>
struct WarpRows {
  int32_t lanes;

  template <int kUnroll>
  __device__ __forceinline__ void sums_of_squares(const float (&x)[kUnroll][2 * kVec], bool live, float* total) const {
    static_assert(kVec == 2 || kVec == 4 || kVec == 8, "else groups would not end where chunks do");
    constexpr int kFirstFold = kVec == 8 ? 1 : kVec == 4 ? 2 : 4;  // lanes below it hold neighbouring groups
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const float *a = x[u], *b = a + kVec;
      if constexpr (kVec == 2) {
        float g = a[0] * a[0] + a[1] * a[1], h = b[0] * b[0] + b[1] * b[1];
        if (!live) g = h = 0.0f;
        total[u] = (g + exchange(g, 1)) + (h + exchange(h, 1));
      } else {
        total[u] = norm_group(a[0], a[1], a[2], a[3]) + norm_group(b[0], b[1], b[2], b[3]);
        if constexpr (kVec == 8) total[u] += norm_group(a[4], a[5], a[6], a[7]) + norm_group(b[4], b[5], b[6], b[7]);
        if (!live) total[u] = 0.0f;
      }
      if constexpr (kVec < 8) total[u] += exchange(total[u], kFirstFold / 2);
    }
#pragma unroll
    for (int lane = 16; lane >= kFirstFold; lane /= 2) {
      if (lane >= lanes) continue;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) total[u] += exchange(total[u], lane);
    }
  }

  // `largest` is this thread's largest magnitude, and becomes the head's.
  template <int kUnroll>
  __device__ __forceinline__ void largest(float (&largest)[kUnroll]) const {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
      if (lane >= lanes) continue;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) largest[u] = larger_magnitude(largest[u], exchange(largest[u], lane));
    }
  }
};

// Any head that lies in one block; its slots are `lanes` neighbouring threads, this one's is `lane`. They meet in
// shared memory, in a row of their own.
template <int kVec>
struct BlockRows {
  int32_t lanes, lane, dim;
  bool in_warp, own_row;
  Slot slot;
  float* row;

  static constexpr int kGroup = kVec < kNormGroup ? 1 : kNormGroup;  // elements of one of a row's first floats
  // Of a row: a float for each group (or element), then one for each four groups.
  __device__ static int32_t floats(int32_t lanes) { return lanes * (2 * kVec / kGroup + 2); }
  static constexpr int kFloats = kMaxBlock * (2 * kVec / kGroup + 2);

  __device__ __forceinline__ void sums_of_squares(const float (&x)[1][2 * kVec], bool live, float* total) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (!live) break;
      const float* z = x[0] + c * kVec;
      float* const groups = row + (c ? slot.second : slot.first) / kGroup;
      if constexpr (kGroup == 1) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) groups[j] = z[j] * z[j];
      } else {
#pragma unroll
        for (int j = 0; j < kVec; j += kNormGroup)
          groups[j / kNormGroup] = norm_group(z[j], z[j + 1], z[j + 2], z[j + 3]);
      }
    }
    synchronize(in_warp);
    const auto group = [&](int32_t i) {
      if constexpr (kGroup > 1) return row[i];
      const auto square = [&](int32_t j) { return j < dim ? row[j] : 0.0f; };
      return (square(4 * i) + square(4 * i + 1)) + (square(4 * i + 2) + square(4 * i + 3));
    };
    float* const sums = row + lanes * (2 * kVec / kGroup);
    int32_t count = (norm_half(dim) + 1) / 2;
    for (int32_t i = lane; own_row && i < count; i += lanes) sums[i] = norm_four_groups(dim, i, group);
    synchronize(in_warp);
    for (int32_t half = power_of_two(count) / 2; half > 0; half /= 2) {
      for (int32_t i = lane; own_row && i + half < count; i += lanes) sums[i] += sums[i + half];
      count = half;
      synchronize(in_warp);
    }
    *total = own_row ? sums[0] : 0.0f;
    synchronize(in_warp);
  }

  __device__ __forceinline__ void largest(float (&largest)[1]) const {
    if (own_row) row[lane] = largest[0];
    synchronize(in_warp);
    for (int32_t i = 0; own_row && i < lanes; ++i) largest[0] = larger_magnitude(largest[0], row[i]);
    synchronize(in_warp);
  }
};

// The sum of `count` values that the block's threads put into shared memory, for all of them.
__device__ __forceinline__ float sum_together(float* values, int32_t count) {
  synchronize(false);
  for (int32_t half = power_of_two(count) / 2; half > 0; half /= 2) {
    for (int32_t i = int32_t(threadIdx.x); i < half && i + half < count; i += int32_t(blockDim.x))
      values[i] += values[i + half];
    count = half;
    synchronize(false);
  }
  return values[0];
}

}  // namespace rope::cuda
