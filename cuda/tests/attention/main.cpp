// The attention kernels for sm_90a, run on the CPU (hopper_on_cpu.h), against the formula in float64.
#include <array>
#include <map>

#include "../../src/kernels/attention/launch.cuh"
#include "misuse.h"
#include "problem.h"

namespace rope::cuda::test {
namespace {

struct Lengths {
  std::vector<int32_t> q, k;  // of each sequence
  bool ragged;
};

Lengths equal(int32_t sequences, int32_t q, int32_t k) {
  return {std::vector<int32_t>(size_t(sequences), q), std::vector<int32_t>(size_t(sequences), k), false};
}

AttentionParams params(const Lengths& lengths, int32_t q_heads, int32_t k_heads, int32_t dim) {
  static float has_lse;
  static const int32_t is_ragged = 0;
  AttentionParams p = {};
  p.sequences = int32_t(lengths.q.size());
  for (size_t i = 0; i < lengths.q.size(); ++i) {
    p.q_total += lengths.q[i], p.k_total += lengths.k[i];
    p.q_tokens = std::max(p.q_tokens, lengths.q[i]), p.k_tokens = std::max(p.k_tokens, lengths.k[i]);
  }
  if (lengths.ragged) p.q_indptr = p.k_indptr = &is_ragged;
  p.q_heads = q_heads, p.k_heads = k_heads;
  p.head_dim = dim, p.v_head_dim = dim == 192 ? 128 : dim;
  p.window_left = p.window_right = kNoWindow;
  p.scale = 1 / std::sqrt(float(dim));
  p.lse = &has_lse;
  return p;
}

// Runs a call twice, the second time with the workspace as the first one left it, and checks every row. `poisoned`: a
// sequence that is full of NaN, which must not show in others; or -1.
template <class D>
double run(Random& random, AttentionParams p, const Lengths& lengths, int32_t poisoned = -1) {
  ++shape;
  Problem<D> x(random, p, lengths.q, lengths.k);
  if (poisoned >= 0) {
    for (Tensor* t : {&x.q, &x.k, &x.v})
      t->for_each([&](int64_t s, int64_t token, int32_t h, int32_t i) {
        const auto& starts = t == &x.q ? x.q_starts : x.k_starts;
        const bool bad =
            x.ragged ? token >= starts[size_t(poisoned)] && token < starts[size_t(poisoned) + 1] : s == poisoned;
        if (bad) t->at(s, token, h, i) = 0x7fff;
      });
  }
  std::vector<int32_t> workspace(kAttentionWorkspace / 4);
  x.p.workspace = workspace.data();
  emulated_multiprocessors = int(random.between(1, 5));
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Outcome outcome = attention<D>(x.p, PairData(), Execution());
    if (outcome.unsupported) std::printf("shape %d: %s\n", shape, outcome.unsupported);
    CHECK(!outcome.unsupported && outcome.error == 0);
    for (const int32_t word : workspace) CHECK(word == 0);
  }
  x.o.check_around(kAround);
  for (int32_t s = 0; s < p.sequences; ++s)
    for (int32_t h = 0; h < p.q_heads && s != poisoned; ++h)
      for (int32_t i = 0; i < x.q_tokens(s); ++i) x.check(s, h, i);
  return x.worst;
}

template <class D>
double check_tails(Random& random, int32_t dim) {
  double worst = 0;
  const auto tokens = {1, 63, 64, 65, 127, 128, 129, 200, 333};
  for (const int32_t n : tokens) {
    const Lengths lengths = equal(n < 130 ? 2 : 1, n, n);
    AttentionParams p = params(lengths, 2, 1, dim);
    p.window_right = random.chance(0.7) ? 0 : kNoWindow;
    worst = std::max(worst, run<D>(random, p, lengths));
  }
  return worst;
}

// Every option by chance, together with every other one.
template <class D>
double check_random(Random& random) {
  Lengths lengths = {{}, {}, random.chance(0.5)};
  const auto sequences = random.between(1, 4);
  const auto length = [&] {
    return int32_t(random.chance(0.2) ? random.of<int64_t>({0, 1, 64, 128}) : random.between(0, 300));
  };
  for (int64_t i = 0; i < sequences; ++i) {
    const bool again = i && !lengths.ragged;
    lengths.q.push_back(again ? lengths.q[0] : length());
    lengths.k.push_back(again ? lengths.k[0] : random.chance(0.5) ? lengths.q.back() : length());
  }
  const int32_t k_heads = int32_t(random.between(1, 2)), group = random.of<int32_t>({1, 1, 2, 3});
  AttentionParams p = params(lengths, k_heads * group, k_heads, random.of<int32_t>({64, 64, 96, 128, 192}));
  if (random.chance(0.5)) p.window_right = random.chance(0.7) ? 0 : int32_t(random.between(1, 150));
  if (random.chance(0.3)) p.window_left = random.chance(0.3) ? 0 : int32_t(random.between(1, 200));
  if (p.head_dim != 192 && random.chance(0.2)) p.softcap = random.chance(0.5) ? 30.0f : 1.0f;
  if (random.chance(0.2)) p.scale *= 4;
  if (random.chance(0.2)) p.lse = nullptr;
  std::vector<float> sinks;
  for (int32_t h = 0; h < p.q_heads; ++h) sinks.push_back(float(random.between(-30, 30)) / 5);
  if (random.chance(0.3)) p.sinks = sinks.data();
  return run<D>(random, p, lengths,
                lengths.ragged && random.chance(0.5) ? int32_t(random.between(0, sequences - 1)) : -1);
}

// Queries turned on their way against queries turned before: the same bits of o and lse.
template <class D>
void check_turn(Random& random) {
  ++shape;
  const bool ragged = random.chance(0.5);
  Lengths lengths = equal(2, int32_t(random.between(1, 400)), int32_t(random.between(0, 200)));
  if (ragged) lengths = {{int32_t(random.between(1, 300)), 0, int32_t(random.between(1, 300))}, {70, 10, 5}, true};
  AttentionParams p = params(lengths, 2, 1, random.of<int32_t>({64, 96, 128, 192}));
  p.window_right = random.chance(0.5) ? 0 : kNoWindow;
  Problem<D> x(random, p, lengths.q, lengths.k);

  AttentionTurn& turn = x.p.turn;
  turn.layout = random.chance(0.5) ? Layout::kNeox : Layout::kGptj;
  turn.rotary_dim = random.chance(0.5) ? p.head_dim : 16 * int32_t(random.between(1, p.head_dim / 16));
  turn.rotary_offset = 8 * int32_t(random.between(0, (p.head_dim - turn.rotary_dim) / 8));
  const int32_t half = turn.rotary_dim / 2;
  turn.row_stride = half + 4 * random.between(0, 1);
  turn.sequence_stride = random.chance(0.5) || ragged ? 0 : turn.row_stride * p.q_tokens;  // 0: rows for all sequences
  std::vector<float> rows[2];
  for (auto& row : rows) {
    row.assign(size_t(turn.row_stride * p.q_total), std::nanf(""));
    for (int64_t i = 0; i < p.q_total; ++i)
      for (int32_t j = 0; j < half; ++j)
        row[size_t(i * turn.row_stride + j)] = float(random.between(-1000, 1000)) / 999;
  }
  turn.cos = rows[0].data(), turn.sin = rows[1].data();

  std::vector<int32_t> workspace(kAttentionWorkspace / 4);
  x.p.workspace = workspace.data();
  emulated_multiprocessors = int(random.between(1, 5));
  CHECK(attention<D>(x.p, PairData(), Execution()).error == 0);
  std::vector<uint16_t> o;
  x.o.for_each([&](int64_t s, int64_t t, int32_t h, int32_t i) { o.push_back(x.o.at(s, t, h, i)); });
  const std::vector<float> lse = x.lse;

  for (int64_t s = 0; s < x.outer(); ++s)
    for (int64_t t = 0; t < p.q_total / x.outer(); ++t)
      for (int32_t h = 0; h < p.q_heads; ++h)
        for (int32_t j = 0; j < half; ++j) {
          const bool halves = turn.layout == Layout::kNeox;
          uint16_t& first = x.q.at(s, t, h, turn.rotary_offset + (halves ? j : 2 * j));
          uint16_t& second = x.q.at(s, t, h, turn.rotary_offset + (halves ? j + half : 2 * j + 1));
          const int64_t at = s * turn.sequence_stride + t * turn.row_stride + j;
          const Pair y = rotate_pair({D::widen(first), D::widen(second)}, CosSin{turn.cos[at], turn.sin[at]});
          first = D::narrow(y.first), second = D::narrow(y.second);
        }
  turn = {};
  CHECK(attention<D>(x.p, PairData(), Execution()).error == 0);
  size_t n = 0;
  x.o.for_each([&](int64_t s, int64_t t, int32_t h, int32_t i) { CHECK(x.o.at(s, t, h, i) == o[n++]); });
  for (size_t i = 0; i < lse.size(); ++i) CHECK(lse[i] == x.lse[i]);
}

// Blocks of keys against what each query of a tile sees.
void check_seen_blocks(Random& random) {
  constexpr int kRows = 128, kKeys = 128;
  ++shape;
  Tile t = {};
  t.q_tokens = int32_t(random.between(1, 600)), t.k_tokens = int32_t(random.between(0, 600));
  t.row = int32_t(random.between(0, (t.q_tokens - 1) / kRows)) * kRows;
  const int32_t left = random.chance(0.5) ? kNoWindow : int32_t(random.between(0, 400));
  const int32_t right = random.chance(0.4) ? kNoWindow : random.chance(0.5) ? 0 : int32_t(random.between(0, 400));
  const SeenBlocks seen = seen_blocks<kRows, kKeys>(t, left, right);
  for (int32_t n = 0; n <= 600 / kKeys; ++n) {
    bool some = false, all = true;
    for (int32_t row = t.row; row < t.row + kRows; ++row)
      for (int32_t key = n * kKeys; key < (n + 1) * kKeys; ++key) {
        const int32_t stands = row + t.k_tokens - t.q_tokens;
        const bool sees = key < t.k_tokens && (left == kNoWindow || key >= stands - left) &&
                          (right == kNoWindow || key <= stands + right);
        some |= sees, all &= sees;
      }
    CHECK(!some || (n >= seen.begin && n < seen.end));
    CHECK(all == (n >= seen.full_begin && n < seen.full_end));
  }
}

// Every tile has one number, whatever the sections, and numbers behind have none.
void check_tiles(Random& random) {
  ++shape;
  using Shape = AttentionShape<64, 64>;
  AttentionArgs args = {};
  args.q_heads = int32_t(random.between(1, 6)), args.sequences = int32_t(random.between(1, 4));
  args.q_tokens = args.k_tokens = int32_t(random.between(1, 500));
  std::vector<int32_t> starts = {0};
  for (int32_t s = 0; s < args.sequences; ++s) starts.push_back(starts.back() + int32_t(random.between(0, 300)));
  const bool ragged = random.chance(0.5);
  if (ragged) args.q_indptr = args.k_indptr = starts.data();
  args.section = int32_t(random.between(1, args.q_heads * (ragged ? 1 : args.sequences)));

  std::map<std::array<int32_t, 3>, int> count;  // sequence, head, row
  TileList<Shape> list(args);
  int32_t number = 0;
  for (Tile t; (t = list.find(number)).head >= 0; ++number) {
    CHECK(t.row >= 0 && t.row < t.q_tokens && t.head < args.q_heads);
    const Tile alone = TileList<Shape>(args).find(number);
    CHECK(alone.row == t.row && alone.head == t.head && alone.sequence == t.sequence && alone.q_begin == t.q_begin);
    int32_t s = t.sequence;
    if (ragged) {
      CHECK(t.sequence == 0);
      while (starts[size_t(s)] != t.q_begin || starts[size_t(s) + 1] == t.q_begin) ++s;
      CHECK(t.k_begin == t.q_begin && t.q_tokens == starts[size_t(s) + 1] - t.q_begin && t.k_tokens == t.q_tokens);
    }
    ++count[{s, t.head, t.row}];
  }
  int32_t tiles = 0;
  for (int32_t s = 0; s < args.sequences; ++s) {
    const int32_t tokens = ragged ? starts[size_t(s) + 1] - starts[size_t(s)] : args.q_tokens;
    tiles += divide_up(tokens, Shape::kRows) * args.q_heads;
  }
  CHECK(number == tiles && int32_t(count.size()) == tiles && list.find(number + 1).head < 0);
}

void check_refusals() {
  const Lengths lengths = equal(2, 10, 10);
  Random random(1);
  const auto reason = [&](auto change) {
    AttentionParams p = params(lengths, 4, 2, 64);
    const Problem<BF16> x(random, p, lengths.q, lengths.k);
    p = x.p;
    int multiprocessors = 1;
    change(p, multiprocessors);
    const char* text = plan_attention(p, multiprocessors).unsupported;
    return std::string(text ? text : "");
  };
  const auto starts = [&](const char* prefix, auto change) {
    ++shape;
    CHECK(reason(change).rfind(prefix, 0) == 0 && (*prefix || reason(change).empty()));
  };
  starts("", [](AttentionParams&, int&) {});
  starts("device:", [](AttentionParams&, int& multiprocessors) { multiprocessors = 0; });
  starts("head_dim, v_head_dim:", [](AttentionParams& p, int&) { p.head_dim = 80; });
  starts("head_dim, v_head_dim:", [](AttentionParams& p, int&) { p.v_head_dim = 128; });
  starts("head_dim, v_head_dim:",
         [](AttentionParams& p, int&) { p.head_dim = 192, p.v_head_dim = 128, p.softcap = 30; });
  starts("scale:", [](AttentionParams& p, int&) { p.scale = 0; });
  starts("q_indptr", [](AttentionParams& p, int&) { p.q_indptr = &p.sequences; });
  starts("q:", [](AttentionParams& p, int&) { p.q.data += 8; });
  starts("k:", [](AttentionParams& p, int&) { p.k.token_stride += 8; });
  starts("v:", [](AttentionParams& p, int&) { p.v.head_stride = 0; });
  starts("o:", [](AttentionParams& p, int&) { p.o.sequence_stride = -16; });
  starts("rotation:", [](AttentionParams& p, int&) { p.turn = {&p.scale, &p.scale, 0, 0, Layout::kNeox, 24, 0}; });
  starts("", [](AttentionParams& p, int&) { p.sequences = 1, p.o.sequence_stride = 2; });
}

}  // namespace
}  // namespace rope::cuda::test

int main(int argc, char** argv) {
  using namespace rope::cuda::test;
  const int count = argc > 1 ? std::atoi(argv[1]) : 24;  // random calls
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 7);
  check_misuse();
  check_refusals();
  for (int i = 0; i < 300; ++i) check_seen_blocks(random), check_tiles(random);
  double bf16 = std::max(check_tails<rope::BF16>(random, 128), check_tails<rope::BF16>(random, 192));
  const auto keyless = equal(2, 300, 0);  // tiles that pass by who loads keys
  for (int i = 0; i < 4; ++i) run<rope::BF16>(random, params(keyless, 8, 8, 64), keyless);
  double f16 = std::max(check_tails<rope::F16>(random, 64), check_tails<rope::F16>(random, 96));
  for (int i = 0; i < count; ++i) {
    if (random.chance(0.6)) {
      bf16 = std::max(bf16, check_random<rope::BF16>(random));
    } else {
      f16 = std::max(f16, check_random<rope::F16>(random));
    }
  }
  for (int i = 0; i < count / 4; ++i) {
    check_turn<rope::BF16>(random);
    check_turn<rope::F16>(random);
  }
  std::printf("%d shapes; largest error, as a part of its bound: bfloat16 %.2f, float16 %.2f\n", shape, bf16, f16);
}
