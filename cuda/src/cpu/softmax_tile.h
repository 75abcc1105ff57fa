// Rows of queries over blocks of keys on the CPU, in float32: the online softmax of FlashAttention (arXiv:2205.14135).
// Built for several instruction sets (sets.h); sums are in one order, so that a row's result depends on its own keys
// alone.
//
// Loops run over keys, or over elements of v, which are neighbours in the tile's own copies: a vector of them at a
// time, without sums across.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../operations/attention.h"

namespace rope::cpu {
namespace {

constexpr int32_t kRows = 32, kKeys = 64;
constexpr float kNone = -std::numeric_limits<float>::infinity();

struct SoftmaxTile {
  int32_t rows, head_dim, v_head_dim;
  float scale, softcap;

  float q[kRows][kMaxAttentionHeadDim];
  float k[kMaxAttentionHeadDim][kKeys];  // transposed
  float v[kKeys][kMaxAttentionHeadDim];
  float scores[kRows][kKeys];
  float o[kRows][kMaxAttentionHeadDim];
  float highest[kRows], sum[kRows];
  int32_t low[kRows], high[kRows];  // the keys that a row sees

  void clear(int32_t r) {
    highest[r] = kNone;
    sum[r] = 0;
    std::memset(o[r], 0, sizeof(float) * size_t(v_head_dim));
  }

  // Of keys `first` on, which k and v have.
  void add_keys(int32_t first, int32_t keys) {
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t begin = std::max(low[r] - first, 0), end = std::min(high[r] - first, keys);
      if (begin >= end) continue;
      float* const s = scores[r];
      std::memset(s, 0, sizeof(scores[r]));
      for (int32_t i = 0; i < head_dim; ++i)
        for (int32_t j = 0; j < kKeys; ++j) s[j] += q[r][i] * k[i][j];
      float most = highest[r];
      for (int32_t j = begin; j < end; ++j) {
        s[j] *= scale;
        if (softcap > 0) s[j] = softcap * std::tanh(s[j] / softcap);
        most = std::max(most, s[j]);
      }
      const float safe = most == kNone ? 0 : most, keep = std::exp(highest[r] - safe);
      highest[r] = most;
      sum[r] *= keep;
      for (int32_t i = 0; i < v_head_dim; ++i) o[r][i] *= keep;
      for (int32_t j = begin; j < end; ++j) {
        const float weight = std::exp(s[j] - safe);
        sum[r] += weight;
        for (int32_t i = 0; i < v_head_dim; ++i) o[r][i] += weight * v[j][i];
      }
    }
  }

  // Blocks start at multiples of kKeys, whatever the tile: a row's sums have the order of its own sequence.
  // load(first, keys) fills k and v.
  template <class Load>
  void add_seen(int32_t num_keys, Load load) {
    int32_t from = num_keys, to = 0;
    for (int32_t r = 0; r < rows; ++r) {
      from = std::min(from, low[r]);
      to = std::max(to, high[r]);
    }
    for (int32_t first = from / kKeys * kKeys; first < to; first += kKeys) {
      const int32_t keys = std::min(kKeys, num_keys - first);
      load(first, keys);
      add_keys(first, keys);
    }
  }

  // A key without a value.
  void add_sink(int32_t r, float sink) {
    const float most = std::max(highest[r], sink), keep = most == kNone ? 1 : std::exp(highest[r] - most);
    sum[r] = sum[r] * keep + (most == kNone ? 0 : std::exp(sink - most));
    highest[r] = most;
    for (int32_t i = 0; i < v_head_dim; ++i) o[r][i] *= keep;
  }

  // Also where it is not a number.
  bool has_seen(int32_t r) const { return sum[r] != 0; }

  template <class D>
  void store(int32_t r, typename D::Storage* to) const {
    for (int32_t i = 0; i < v_head_dim; ++i) to[i] = D::narrow(has_seen(r) ? o[r][i] / sum[r] : 0);
  }

  float lse(int32_t r) const { return has_seen(r) ? highest[r] + std::log(sum[r]) : kNone; }
};

}  // namespace
}  // namespace rope::cpu
