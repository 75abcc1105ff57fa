// Attention on the CPU: tiles of rows (softmax_tile.h). Built for several instruction sets (sets.h).
//
// A tile is kRows rows of one key head: a row is a query of one of the heads that share it.
#include "parallel.h"
#include "sets.h"
#include "softmax_tile.h"

namespace rope::cpu {
namespace {

template <class D>
struct Tile : SoftmaxTile {
  const AttentionParams& p;
  int64_t first_q, first_k;                         // tokens of the sequence, in q and in k
  int32_t sequence, q_tokens, k_tokens, head, row;  // head: of k; row: the first one, of q_tokens * group
  int32_t group;

  explicit Tile(const AttentionParams& params) : p(params), group(params.q_heads / params.k_heads) {
    head_dim = p.head_dim;
    v_head_dim = p.v_head_dim;
    scale = p.scale;
    softcap = p.softcap;
  }

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
      clear(r);
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

  void compute() {
    load_queries();
    add_seen(k_tokens, [this](int32_t first, int32_t keys) { load_keys(first, keys); });
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t h = query_head(r);
      if (p.sinks) add_sink(r, p.sinks[h]);
      store<D>(r, const_cast<typename D::Storage*>(at(p.o, first_q + token(r), h)));
      if (!p.lse) continue;
      const int64_t line = p.q_indptr ? h * p.q_total + first_q : (int64_t(sequence) * p.q_heads + h) * q_tokens;
      p.lse[line + token(r)] = lse(r);
    }
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
