// Gradients of attention on the CPU, in float32 (operations/attention.h has the formulas). Built for several
// instruction sets (sets.h). Powers come from lse and are computed twice: for dq by tiles of rows, and for dk and dv by
// blocks of keys, so that each result is one thread's, added up in the order of its own sequence.
//
// Rows are as in attention_loops.cpp: queries of the heads that share a key head. Loops run over keys, or over elements
// of a head, which are neighbours in the tile's own copies.
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

using Elements = float[kMaxAttentionHeadDim];

template <class D>
struct Tile {
  using Storage = typename D::Storage;

  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const int32_t group;
  // What the tile belongs to.
  int32_t sequence, head;  // of k
  int64_t first_q, first_k;
  int32_t q_tokens, k_tokens;
  // Rows [row, row + rows) of q_tokens * group, keys [key, key + keys).
  int32_t row, rows, key, keys;

  Elements q[kRows], d_o[kRows], dq[kRows];
  float lse[kRows], d[kRows];       // d: output_sum()
  int32_t low[kRows], high[kRows];  // the keys that a row sees
  Elements k[kKeys], dk[kKeys], dv[kKeys];
  float k_columns[kMaxAttentionHeadDim][kKeys], v_columns[kMaxAttentionHeadDim][kKeys];
  float weights[kKeys], d_scores[kKeys];  // of one row

  explicit Tile(const AttentionBackwardParams& params) : b(params), p(params.forward), group(p.q_heads / p.k_heads) {}

  int32_t token(int32_t r) const { return (row + r) / group; }
  int32_t query_head(int32_t r) const { return head * group + (row + r) % group; }

  void place(int32_t s, int32_t h) {
    sequence = s;
    head = h;
    first_q = p.q_indptr ? p.q_indptr[s] : 0;
    first_k = p.k_indptr ? p.k_indptr[s] : 0;
    q_tokens = p.q_indptr ? p.q_indptr[s + 1] - p.q_indptr[s] : p.q_tokens;
    k_tokens = p.k_indptr ? p.k_indptr[s + 1] - p.k_indptr[s] : p.k_tokens;
  }

  Storage* at(const AttentionTensor& x, int64_t t, int32_t h) const {
    const int64_t s = p.q_indptr ? 0 : sequence;
    return reinterpret_cast<Storage*>(x.data + s * x.sequence_stride + t * x.token_stride + h * x.head_stride);
  }

  static void load(const Storage* from, int32_t count, float* to) {
    for (int32_t i = 0; i < count; ++i) to[i] = D::widen(from[i]);
  }
  static void store(const float* from, int32_t count, Storage* to) {
    for (int32_t i = 0; i < count; ++i) to[i] = D::narrow(from[i]);
  }

  // Where lse and its gradient have a query.
  int64_t place_of(int32_t h, int32_t t) const {
    return t + (p.q_indptr ? h * p.q_total + first_q : (int64_t(sequence) * p.q_heads + h) * q_tokens);
  }

  // The sum of d_o * o, of d_o that is loaded, less d_lse.
  float output_sum(const float* gradient, int32_t t, int32_t h) const {
    const Storage* o = at(p.o, first_q + t, h);
    float sum = 0;
    for (int32_t i = 0; i < p.v_head_dim; ++i) sum += gradient[i] * D::widen(o[i]);
    return b.d_lse ? sum - b.d_lse[place_of(h, t)] : sum;
  }

  void load_queries(int32_t first) {
    row = first;
    rows = int32_t(std::min<int64_t>(kRows, int64_t(q_tokens) * group - first));
    for (int32_t r = 0; r < rows; ++r) {
      const int64_t place = token(r) + int64_t(k_tokens) - q_tokens;
      low[r] = p.window_left < 0 ? 0 : int32_t(std::max<int64_t>(place - p.window_left, 0));
      high[r] = p.window_right < 0 ? k_tokens : int32_t(std::clamp<int64_t>(place + p.window_right + 1, 0, k_tokens));
      load(at(p.q, first_q + token(r), query_head(r)), p.head_dim, q[r]);
      load(at(b.d_o, first_q + token(r), query_head(r)), p.v_head_dim, d_o[r]);
      lse[r] = p.lse[place_of(query_head(r), token(r))];
      d[r] = output_sum(d_o[r], token(r), query_head(r));
    }
  }

  void load_keys(int32_t first) {
    key = first;
    keys = std::min(kKeys, k_tokens - first);
    for (int32_t j = 0; j < keys; ++j) {
      load(at(p.k, first_k + key + j, head), p.head_dim, k[j]);
      for (int32_t i = 0; i < p.head_dim; ++i) k_columns[i][j] = k[j][i];
      const Storage* value = at(p.v, first_k + key + j, head);
      for (int32_t i = 0; i < p.v_head_dim; ++i) v_columns[i][j] = D::widen(value[i]);
    }
  }

  // Weights of row r, and the gradients of its products q k^T, for the keys [begin, end) of the block; false: none.
  bool differentiate(int32_t r, int32_t* begin, int32_t* end) {
    *begin = std::max(low[r] - key, 0);
    *end = std::min(high[r] - key, keys);
    if (*begin >= *end || lse[r] == kNone) return false;
    std::memset(weights, 0, sizeof weights);
    std::memset(d_scores, 0, sizeof d_scores);
    for (int32_t i = 0; i < p.head_dim; ++i)
      for (int32_t j = 0; j < kKeys; ++j) weights[j] += q[r][i] * k_columns[i][j];
    for (int32_t i = 0; i < p.v_head_dim; ++i)
      for (int32_t j = 0; j < kKeys; ++j) d_scores[j] += d_o[r][i] * v_columns[i][j];
    for (int32_t j = *begin; j < *end; ++j) {
      float score = weights[j] * p.scale, slope = p.scale;
      if (p.softcap > 0) {
        const float part = std::tanh(score / p.softcap);
        score = p.softcap * part;
        slope *= 1 - part * part;
      }
      weights[j] = std::exp(score - lse[r]);
      d_scores[j] = weights[j] * (d_scores[j] - d[r]) * slope;
    }
    return true;
  }

  static void add(float factor, const float* x, int32_t count, float* sum) {
    for (int32_t i = 0; i < count; ++i) sum[i] += factor * x[i];
  }

  // dq of kRows rows.
  void of_queries(int32_t first) {
    load_queries(first);
    std::memset(dq, 0, sizeof dq);
    int32_t from = k_tokens, to = 0;
    for (int32_t r = 0; r < rows; ++r) {
      from = std::min(from, low[r]);
      to = std::max(to, high[r]);
    }
    for (int32_t first_key = from / kKeys * kKeys; first_key < to; first_key += kKeys) {
      load_keys(first_key);
      for (int32_t r = 0, begin, end; r < rows; ++r)
        if (differentiate(r, &begin, &end))
          for (int32_t j = begin; j < end; ++j) add(d_scores[j], k[j], p.head_dim, dq[r]);
    }
    for (int32_t r = 0; r < rows; ++r) store(dq[r], p.head_dim, at(b.dq, first_q + token(r), query_head(r)));
  }

  // dk and dv of kKeys keys.
  void of_keys(int32_t first) {
    load_keys(first);
    std::memset(dk, 0, sizeof dk);
    std::memset(dv, 0, sizeof dv);
    const int64_t ahead = int64_t(k_tokens) - q_tokens;  // the queries that see some of them
    const int64_t from = p.window_right < 0 ? 0 : key - ahead - p.window_right;
    const int64_t to = p.window_left < 0 ? q_tokens : key + keys - ahead + p.window_left;
    const int64_t end_row = std::clamp<int64_t>(to, 0, q_tokens) * group;
    for (int64_t r0 = std::clamp<int64_t>(from, 0, q_tokens) * group / kRows * kRows; r0 < end_row; r0 += kRows) {
      load_queries(int32_t(r0));
      for (int32_t r = 0, begin, end; r < rows; ++r) {
        if (!differentiate(r, &begin, &end)) continue;
        for (int32_t j = begin; j < end; ++j) {
          add(d_scores[j], q[r], p.head_dim, dk[j]);
          add(weights[j], d_o[r], p.v_head_dim, dv[j]);
        }
      }
    }
    for (int32_t j = 0; j < keys; ++j) {
      store(dk[j], p.head_dim, at(b.dk, first_k + key + j, head));
      store(dv[j], p.v_head_dim, at(b.dv, first_k + key + j, head));
    }
  }

  // Of one query head, over all sequences.
  void of_sink(int32_t h) {
    double sum = 0;
    for (int32_t s = 0; s < p.sequences; ++s) {
      place(s, h / group);
      for (int32_t t = 0; t < q_tokens; ++t) {
        const float all = p.lse[place_of(h, t)];
        if (all == kNone) continue;
        load(at(b.d_o, first_q + t, h), p.v_head_dim, d_o[0]);
        sum -= double(std::exp(p.sinks[h] - all) * output_sum(d_o[0], t, h));
      }
    }
    b.d_sinks[h] = float(sum);
  }
};

struct Job {
  const AttentionBackwardParams& params;
  int64_t tiles;  // of a key head of a sequence, at most
};

template <class D, bool kOfKeys>
void differentiate(const void* context, int64_t begin, int64_t end) {
  const Job& job = *static_cast<const Job*>(context);
  Tile<D> t(job.params);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t at = n / job.tiles;
    t.place(int32_t(at / t.p.k_heads), int32_t(at % t.p.k_heads));
    const int64_t first = n % job.tiles * (kOfKeys ? kKeys : kRows);
    if (kOfKeys && first < t.k_tokens) t.of_keys(int32_t(first));
    if (!kOfKeys && first < int64_t(t.q_tokens) * t.group) t.of_queries(int32_t(first));
  }
}

template <class D>
void differentiate_sinks(const void* context, int64_t begin, int64_t end) {
  Tile<D> t(static_cast<const Job*>(context)->params);
  for (int64_t h = begin; h < end; ++h) t.of_sink(int32_t(h));
}

}  // namespace

template <class Set, class D>
Outcome attention_backward(const AttentionBackwardParams& b, const PairData&, const Execution& e) {
  if (b.asks) return {};
  const AttentionParams& p = b.forward;
  const int64_t rows = int64_t(p.q_tokens) * (p.q_heads / p.k_heads), heads = int64_t(p.sequences) * p.k_heads;
  // The time of a tile, as the bytes that a rotation moves in it.
  const int64_t row_cost = int64_t(p.head_dim + p.v_head_dim) / 2 + 1;
  const Job of_queries{b, (rows + kRows - 1) / kRows}, of_keys{b, (p.k_tokens + kKeys - 1) / kKeys};
  for_token_ranges(heads * of_queries.tiles, p.k_tokens * row_cost * kRows + 1, e.threads, differentiate<D, false>,
                   &of_queries);
  for_token_ranges(heads * of_keys.tiles, rows * row_cost * kKeys + 1, e.threads, differentiate<D, true>, &of_keys);
  if (b.d_sinks)
    for_token_ranges(p.q_heads, int64_t(p.sequences) * p.q_tokens * row_cost + 1, e.threads, differentiate_sinks<D>,
                     &of_keys);
  return {};
}

#define ROPE_INSTANCE(D) \
  template Outcome attention_backward<ThisSet, D>(const AttentionBackwardParams&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
