// Decoding on the CPU: tiles of rows (softmax_tile.h) over keys of a paged cache. Built for several instruction sets
// (sets.h).
//
// A tile is kRows rows of one key head of a request: a row is a query of one of the heads that share it.
#include "parallel.h"
#include "sets.h"
#include "softmax_tile.h"

namespace rope::cpu {
namespace {

template <class D>
struct DecodeTile : SoftmaxTile {
  const DecodeParams& p;
  const uint64_t* words;
  int32_t request, length, head, row;  // head: of k; row: the first one, of q_tokens * group
  int32_t group;

  DecodeTile(const DecodeParams& params, const uint64_t* words_of_pairs)
      : p(params), words(words_of_pairs), group(params.q_heads / params.k_heads) {
    head_dim = v_head_dim = p.head_dim;
    scale = p.scale;
    softcap = p.softcap;
  }

  int32_t token(int32_t r) const { return (row + r) / group; }
  int32_t query_head(int32_t r) const { return head * group + (row + r) % group; }

  typename D::Storage* at(const DecodeTensor& x, int32_t r) const {
    const int64_t t = int64_t(request) * p.q_tokens + token(r);
    return reinterpret_cast<typename D::Storage*>(x.data + t * x.token_stride + query_head(r) * x.head_stride);
  }

  template <Layout kLayout>
  void turn(int32_t r, int64_t position) {
    for (int32_t i = 0; i < p.turn.rotary_dim / 2; ++i) {
      const PairMap<kLayout, 1> map{i, p.turn.rotary_dim / 2};
      float* const rotated = q[r] + p.turn.rotary_offset;
      float &first = rotated[map.first()], &second = rotated[map.second()];
      const Pair y = rotate_pair({first, second}, decode_angle(p.turn, words, position, map.pair(0)));
      first = D::widen(D::narrow(y.first));
      second = D::widen(D::narrow(y.second));
    }
  }

  void load_queries() {
    for (int32_t r = 0; r < rows; ++r) {
      const auto* from = at(p.q, r);
      for (int32_t i = 0; i < p.head_dim; ++i) q[r][i] = D::widen(from[i]);
      int64_t position;
      if (p.turn.rotary_dim && decode_position(p.turn, int64_t(request) * p.q_tokens + token(r),
                                               length - p.q_tokens + token(r), &position)) {
        if (p.turn.layout == Layout::kNeox)
          turn<Layout::kNeox>(r, position);
        else
          turn<Layout::kGptj>(r, position);
      }
      const SeenKeys seen = seen_keys(p, length, token(r));
      low[r] = seen.low;
      high[r] = seen.high;
      clear(r);
    }
  }

  // The row of a key, or of its value, step elements apart in `to`.
  void load_row(const DecodePages& pages, const CachePlace& place, float* to, int32_t step) const {
    const char* from =
        pages.data + place.page * pages.page_stride + place.entry * pages.entry_stride + head * pages.head_stride;
    if (p.type == OutType::kSame) {
      const auto* x = reinterpret_cast<const typename D::Storage*>(from);
      for (int32_t i = 0; i < p.head_dim; ++i) to[i * step] = D::widen(x[i]);
      return;
    }
    const float stored_scale = pages.scales ? *pages.scales : pages.scale;
    for_code(p.type, [&](auto code) {
      for (int32_t i = 0; i < p.head_dim; ++i) to[i * step] = code.decode(uint8_t(from[i])) * stored_scale;
    });
  }

  void load_keys(int32_t first, int32_t keys) {
    for (int32_t j = 0; j < keys; ++j) {
      CachePlace place = {};
      cache_place<true>(p.cache, {first + j, request}, false, &place);
      load_row(p.k, place, &k[0][j], kKeys);
      load_row(p.v, place, v[j], 1);
    }
  }

  void compute() {
    load_queries();
    add_seen(length, [this](int32_t first, int32_t keys) { load_keys(first, keys); });
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t h = query_head(r);
      if (p.sinks) add_sink(r, p.sinks[h]);
      store<D>(r, at(p.o, r));
      if (p.lse) p.lse[(int64_t(request) * p.q_heads + h) * p.q_tokens + token(r)] = lse(r);
    }
  }
};

struct Job {
  const DecodeParams& params;
  const uint64_t* words;
  int64_t tiles;  // of a key head of a request
};

template <class D>
void attend(const void* context, int64_t begin, int64_t end) {
  const Job& job = *static_cast<const Job*>(context);
  const DecodeParams& p = job.params;
  DecodeTile<D> t(p, job.words);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t at = n / job.tiles;
    t.head = int32_t(at % p.k_heads);
    t.request = int32_t(at / p.k_heads);
    t.length = p.lengths[t.request];
    t.row = int32_t(n % job.tiles) * kRows;
    t.rows = std::min(kRows, p.q_tokens * t.group - t.row);
    t.compute();
  }
}

}  // namespace

template <class Set, class D>
Outcome decode(const DecodeParams& p, const PairData& pairs, const Execution& e) {
  const int32_t group = p.q_heads / p.k_heads;
  const Job job{p, pairs.words, divide_up(p.q_tokens * group, kRows)};
  // The time of a tile, as the bytes that a rotation moves in it.
  const int64_t cost = int64_t(p.max_length) * p.head_dim * std::min(kRows, p.q_tokens * group) / 2 + 1;
  for_token_ranges(int64_t(p.requests) * p.k_heads * job.tiles, cost, e.threads, attend<D>, &job);
  return {};
}

#define ROPE_INSTANCE(D) template Outcome decode<ThisSet, D>(const DecodeParams&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cpu
