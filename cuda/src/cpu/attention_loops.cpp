// Attention on the CPU, in float32: the online softmax of FlashAttention (arXiv:2205.14135) over blocks of keys. Built
// for several instruction sets (sets.h); sums are in one order, so that a row's result depends on its own sequence
// alone.
//
// A tile is kRows rows of one key head: a row is a query of one of the heads that share it. Loops run over keys, or
// over elements of v, which are neighbours in the tile's own copies: a vector of them at a time, without sums across.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "sets.h"

namespace rope::cpu {
namespace {

constexpr int32_t kRows = 32, kKeys = 64;
constexpr float kNone = -std::numeric_limits<float>::infinity();

template <class D>
struct Tile {
  const AttentionParams& p;
  int64_t first_q, first_k;                         // tokens of the sequence, in q and in k
  int32_t sequence, q_tokens, k_tokens, head, row;  // head: of k; row: the first one, of q_tokens * group
  int32_t group, rows;

  float q[kRows][kMaxAttentionHeadDim];
  float k[kMaxAttentionHeadDim][kKeys];  // transposed
  float v[kKeys][kMaxAttentionHeadDim];
  float scores[kRows][kKeys];
  float o[kRows][kMaxAttentionHeadDim];
  float highest[kRows], sum[kRows];
  int32_t low[kRows], high[kRows];  // the keys that a row sees

  explicit Tile(const AttentionParams& params) : p(params), group(params.q_heads / params.k_heads) {}

  int32_t token(int32_t r) const { return (row + r) / group; }
  int32_t query_head(int32_t r) const { return head * group + (row + r) % group; }

  const typename D::Storage* at(const AttentionTensor& x, int64_t t, int32_t h) const {
    const int64_t s = p.q_indptr ? 0 : sequence;
    return reinterpret_cast<const typename D::Storage*>(x.data + s * x.sequence_stride + t * x.token_stride +
                                                        h * x.head_stride);
  }

  void load_queries() {
    const int64_t ahead = int64_t(k_tokens) - q_tokens;
    for (int32_t r = 0; r < rows; ++r) {
      const auto* from = at(p.q, first_q + token(r), query_head(r));
      for (int32_t i = 0; i < p.head_dim; ++i) q[r][i] = D::widen(from[i]);
      const int64_t place = token(r) + ahead;
      low[r] = p.window_left < 0 ? 0 : int32_t(std::max<int64_t>(place - p.window_left, 0));
      high[r] = p.window_right < 0 ? k_tokens : int32_t(std::clamp<int64_t>(place + p.window_right + 1, 0, k_tokens));
      highest[r] = kNone;
      sum[r] = 0;
      std::memset(o[r], 0, sizeof(float) * size_t(p.v_head_dim));
    }
  }

  void load_keys(int32_t first, int32_t keys) {
    for (int32_t j = 0; j < keys; ++j) {
      const auto* from = at(p.k, first_k + first + j, head);
      for (int32_t i = 0; i < p.head_dim; ++i) k[i][j] = D::widen(from[i]);
      const auto* value = at(p.v, first_k + first + j, head);
      for (int32_t i = 0; i < p.v_head_dim; ++i) v[j][i] = D::widen(value[i]);
    }
  }

  void add_keys(int32_t first, int32_t keys) {
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t begin = std::max(low[r] - first, 0), end = std::min(high[r] - first, keys);
      if (begin >= end) continue;
      float* const s = scores[r];
      std::memset(s, 0, sizeof(scores[r]));
      for (int32_t i = 0; i < p.head_dim; ++i)
        for (int32_t j = 0; j < kKeys; ++j) s[j] += q[r][i] * k[i][j];
      float most = highest[r];
      for (int32_t j = begin; j < end; ++j) {
        s[j] *= p.scale;
        if (p.softcap > 0) s[j] = p.softcap * std::tanh(s[j] / p.softcap);
        most = std::max(most, s[j]);
      }
      const float safe = most == kNone ? 0 : most, keep = std::exp(highest[r] - safe);
      highest[r] = most;
      sum[r] *= keep;
      for (int32_t i = 0; i < p.v_head_dim; ++i) o[r][i] *= keep;
      for (int32_t j = begin; j < end; ++j) {
        const float weight = std::exp(s[j] - safe);
        sum[r] += weight;
        for (int32_t i = 0; i < p.v_head_dim; ++i) o[r][i] += weight * v[j][i];
      }
    }
  }

  void store() {
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t h = query_head(r);
      if (p.sinks) {
        const float most = std::max(highest[r], p.sinks[h]), keep = most == kNone ? 1 : std::exp(highest[r] - most);
        sum[r] = sum[r] * keep + (most == kNone ? 0 : std::exp(p.sinks[h] - most));
        highest[r] = most;
        for (int32_t i = 0; i < p.v_head_dim; ++i) o[r][i] *= keep;
      }
      const bool any = sum[r] != 0;  // also where it is not a number
      auto* to = const_cast<typename D::Storage*>(at(p.o, first_q + token(r), h));
      for (int32_t i = 0; i < p.v_head_dim; ++i) to[i] = D::narrow(any ? o[r][i] / sum[r] : 0);
      if (!p.lse) continue;
      const int64_t line = p.q_indptr ? h * p.q_total + first_q : (int64_t(sequence) * p.q_heads + h) * q_tokens;
      p.lse[line + token(r)] = any ? highest[r] + std::log(sum[r]) : kNone;
    }
  }

  void compute() {
    load_queries();
    int32_t from = k_tokens, to = 0;
    for (int32_t r = 0; r < rows; ++r) {
      from = std::min(from, low[r]);
      to = std::max(to, high[r]);
    }
    // Blocks start at multiples of kKeys, whatever the tile: a row's sums have the order of its own sequence.
    for (int32_t first = from / kKeys * kKeys; first < to; first += kKeys) {
      const int32_t keys = std::min(kKeys, k_tokens - first);
      load_keys(first, keys);
      add_keys(first, keys);
    }
    store();
  }
};

struct Job {
  const AttentionParams& params;
  int64_t tiles;  // of a key head of a sequence, at most
};

template <class D>
void attend(const void* context, int64_t begin, int64_t end) {
  const Job& job = *static_cast<const Job*>(context);
  const AttentionParams& p = job.params;
  Tile<D> t(p);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t at = n / job.tiles;
    t.head = int32_t(at % p.k_heads);
    t.sequence = int32_t(at / p.k_heads);
    const int32_t s = t.sequence;
    t.first_q = p.q_indptr ? p.q_indptr[s] : 0;
    t.first_k = p.k_indptr ? p.k_indptr[s] : 0;
    t.q_tokens = p.q_indptr ? p.q_indptr[s + 1] - p.q_indptr[s] : p.q_tokens;
    t.k_tokens = p.k_indptr ? p.k_indptr[s + 1] - p.k_indptr[s] : p.k_tokens;
    const int64_t first = n % job.tiles * kRows, all = int64_t(t.q_tokens) * t.group;
    if (first >= all) continue;
    t.row = int32_t(first);
    t.rows = int32_t(std::min<int64_t>(kRows, all - first));
    t.compute();
  }
}

}  // namespace

template <class Set, class D>
Outcome attention(const AttentionParams& p, const PairData&, const Execution& e) {
  if (p.asks) return {};
  const int64_t group = p.q_heads / p.k_heads;
  const Job job{p, (p.q_tokens * group + kRows - 1) / kRows};
  // The time of a tile, as the bytes that a rotation moves in it.
  const int64_t cost = int64_t(p.k_tokens) * (p.head_dim + p.v_head_dim) * kRows / 4 + 1;
  for_token_ranges(int64_t(p.sequences) * p.k_heads * job.tiles, cost, e.threads, attend<D>, &job);
  return {};
}

#define ROPE_INSTANCE(D) \
  template Outcome attention<ThisSet, D>(const AttentionParams&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
