// The kernels of attention's gradients for sm_90a, run on the CPU (hopper_on_cpu.h), against the formula in float64.
#include "../../src/kernels/attention_backward/launch.cuh"
#include "../attention/problem.h"

namespace rope::cuda::test {
namespace {

// A sum, and what bounds its error.
struct Sum {
  double value = 0, bound = 0;
};

template <class D>
class BackwardProblem : public Problem<D> {
 public:
  using Base = Problem<D>;
  using Base::p, Base::q, Base::k, Base::v, Base::o, Base::q_starts, Base::k_starts, Base::outer, Base::row_at;

  BackwardProblem(Random& random, AttentionParams params, const std::vector<int32_t>& q_lengths,
                  const std::vector<int32_t>& k_lengths, bool has_d_lse)
      : Base(random, params, q_lengths, k_lengths),
        d_o(random, outer(), p.q_total / outer(), p.q_heads, p.v_head_dim, kAround),
        dq(random, outer(), p.q_total / outer(), p.q_heads, p.head_dim, kAround),
        dk(random, outer(), p.k_total / outer(), p.k_heads, p.head_dim, kAround),
        dv(random, outer(), p.k_total / outer(), p.k_heads, p.v_head_dim, kAround),
        d_lse(this->lse.size()),
        d_sinks(size_t(p.q_heads), std::nanf("")) {
    this->fill(random, d_o);
    std::normal_distribution<float> normal;
    for (float& x : d_lse) x = has_d_lse ? random.draw(normal) : 0;
    for (int32_t s = 0; s < p.sequences; ++s)  // what the forward gives
      for (int32_t h = 0; h < p.q_heads; ++h)
        for (int32_t i = 0; i < this->q_tokens(s); ++i) {
          const Row row = this->reference(s, h, i);
          auto* out = const_cast<uint16_t*>(row_at(o, q_starts, s, i, h));
          for (int32_t c = 0; c < p.v_head_dim; ++c) out[c] = D::narrow(float(row.o[size_t(c)]));
          this->lse[lse_place(s, h, i)] = float(row.lse);
        }
    b.forward = p;
    b.d_o = d_o.view, b.dq = dq.view, b.dk = dk.view, b.dv = dv.view;
    if (has_d_lse) b.d_lse = d_lse.data();
    if (p.sinks) b.d_sinks = d_sinks.data();
    words.assign(size_t(attention_backward_workspace(p) / 4 + 4), 0xffffffff);  // NaN
    b.workspace = words.data() + (16 - reinterpret_cast<uintptr_t>(words.data()) % 16) % 16 / 4;
  }

  size_t lse_place(int32_t s, int32_t head, int32_t token) const {
    return this->ragged ? size_t(head * p.q_total + q_starts[size_t(s)] + token)
                        : size_t((int64_t(s) * p.q_heads + head) * p.q_tokens + token);
  }

  // All gradients of a sequence; of sinks its part is added up.
  void check_sequence(int32_t s, std::vector<Sum>& sinks) {
    const int32_t rows = this->q_tokens(s), keys = this->k_tokens(s), dim = p.head_dim;
    const double u = D::kDtype == Dtype::kF16 ? 0x1p-11 : 0x1p-8, least = D::kDtype == Dtype::kF16 ? 0x1p-25 : 0;
    for (int32_t kh = 0; kh < p.k_heads; ++kh) {
      std::vector<Sum> of_k(size_t(keys * dim)), of_v(size_t(keys * dim));
      for (int32_t h = kh * this->group(); h < (kh + 1) * this->group(); ++h)
        for (int32_t i = 0; i < rows; ++i) {
          const uint16_t *x = row_at(q, q_starts, s, i, h), *g = row_at(d_o, q_starts, s, i, h);
          const double lse = double(this->lse[lse_place(s, h, i)]);
          const Sum d = dot(g, row_at(o, q_starts, s, i, h));
          const double d_all = d.value - double(d_lse[lse_place(s, h, i)]);
          if (p.sinks && lse != -kInfinity) {
            const double share = std::exp(double(p.sinks[h]) - lse);
            sinks[size_t(h)].value -= share * d_all;
            sinks[size_t(h)].bound += share * (1e-5 * (1 + std::fabs(lse)) * std::fabs(d_all) + 1e-5 * d.bound);
          }
          std::vector<Sum> of_q(size_t{unsigned(dim)});
          for (int32_t j = 0; j < keys; ++j) {
            if (!this->sees(s, i, j) || lse == -kInfinity) continue;
            const uint16_t *y = row_at(k, k_starts, s, j, kh), *z = row_at(v, k_starts, s, j, kh);
            const Sum dp = dot(g, z);
            const Sum score = dot(x, y);
            const double weight = std::exp(double(p.scale) * score.value - lse);
            // What float32 adds: sums of 128 products, their differences from lse, powers.
            const double f = 2e-5 + double(p.scale) * 8e-6 * score.bound + 4e-7 * std::fabs(lse);
            const double ds = weight * (dp.value - d_all), size = std::fabs(ds);
            const double off = size * (u + f) + weight * 1e-5 * (dp.bound + d.bound) + least;
            for (int32_t c = 0; c < dim; ++c) {
              add(of_v[size_t(j * dim + c)], weight, weight * (u + f) + least, D::widen(g[c]));
              add(of_k[size_t(j * dim + c)], ds * double(p.scale), off * double(p.scale), D::widen(x[c]));
              add(of_q[size_t(c)], ds * double(p.scale), off * double(p.scale), D::widen(y[c]));
            }
          }
          check_row("dq", row_at(dq, q_starts, s, i, h), &of_q[0], s, h, i);
        }
      for (int32_t j = 0; j < keys; ++j) {
        check_row("dk", row_at(dk, k_starts, s, j, kh), &of_k[size_t(j * dim)], s, kh, j);
        check_row("dv", row_at(dv, k_starts, s, j, kh), &of_v[size_t(j * dim)], s, kh, j);
      }
    }
  }

  int32_t group() const { return p.q_heads / p.k_heads; }

  AttentionBackwardParams b = {};
  Tensor d_o, dq, dk, dv;
  std::vector<float> d_lse, d_sinks;
  std::vector<uint32_t> words;

 private:
  static void add(Sum& sum, double factor, double off, float x) {
    sum.value += factor * double(x);
    sum.bound += off * std::fabs(double(x)) + 1e-6 * std::fabs(factor * double(x));
  }

  // Its bound: the sum of magnitudes.
  Sum dot(const uint16_t* x, const uint16_t* y) const {
    Sum sum;
    for (int32_t c = 0; c < p.head_dim; ++c) {
      const double product = double(D::widen(x[c])) * double(D::widen(y[c]));
      sum.value += product;
      sum.bound += std::fabs(product);
    }
    return sum;
  }

  void check_row(const char* name, const uint16_t* got, const Sum* want, int32_t s, int32_t head, int32_t token) {
    const double u = D::kDtype == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
    for (int32_t c = 0; c < p.head_dim; ++c) {
      const double x = double(D::widen(got[c])), error = std::fabs(x - want[c].value);
      const double bound = want[c].bound + u * (std::fabs(want[c].value) + want[c].bound) + 0x1p-25;
      if (!(error <= bound)) {
        std::printf("%s: sequence %d head %d token %d element %d: %g, not %g (%g allowed)\n", name, s, head, token, c,
                    x, want[c].value, bound);
        std::exit(1);
      }
      this->worst = std::max(this->worst, error / bound);
    }
  }
};

struct Lengths {
  std::vector<int32_t> q, k;  // of each sequence
  bool ragged;
};

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
  p.head_dim = p.v_head_dim = dim;
  p.window_left = p.window_right = kNoWindow;
  p.scale = 1 / std::sqrt(float(dim));
  p.lse = &has_lse;
  return p;
}

// `poisoned`: a sequence that is full of NaN, which must not show in others; or -1.
template <class D>
double run(Random& random, const AttentionParams& p, const Lengths& lengths, bool has_d_lse, bool deterministic,
           int32_t poisoned = -1) {
  ++shape;
  BackwardProblem<D> x(random, p, lengths.q, lengths.k, has_d_lse);
  x.b.deterministic = deterministic;
  for (Tensor* t : {&x.q, &x.k, &x.v, &x.d_o})
    t->for_each([&](int64_t s, int64_t token, int32_t h, int32_t i) {
      const auto& starts = t == &x.q || t == &x.d_o ? x.q_starts : x.k_starts;
      if (poisoned < 0) return;
      const size_t n = size_t(poisoned);
      if (x.ragged ? token >= starts[n] && token < starts[n + 1] : s == poisoned) t->at(s, token, h, i) = 0x7fff;
    });
  const Outcome outcome = attention_backward<D>(x.b, PairData(), Execution());
  if (outcome.unsupported) std::printf("shape %d: %s\n", shape, outcome.unsupported);
  CHECK(!outcome.unsupported && outcome.error == 0);
  for (Tensor* t : {&x.dq, &x.dk, &x.dv}) t->check_around(kAround);
  std::vector<Sum> sinks(size_t(p.q_heads));
  for (int32_t s = 0; s < p.sequences; ++s)
    if (s != poisoned) x.check_sequence(s, sinks);
  for (int32_t h = 0; h < p.q_heads && p.sinks && poisoned < 0; ++h)
    CHECK(std::fabs(double(x.d_sinks[size_t(h)]) - sinks[size_t(h)].value) <= sinks[size_t(h)].bound + 1e-6);
  return x.worst;
}

template <class D>
double check_tails(Random& random, int32_t dim) {
  double worst = 0;
  for (const int32_t n : {1, 63, 64, 65, 127, 128, 129, 200}) {
    const Lengths lengths = {{n}, {n}, false};
    AttentionParams p = params(lengths, 2, 1, dim);
    p.window_right = random.chance(0.7) ? 0 : kNoWindow;
    worst = std::max(worst, run<D>(random, p, lengths, false, random.chance(0.3)));
  }
  return worst;
}

// Every option by chance, together with every other one.
template <class D>
double check_random(Random& random) {
  Lengths lengths = {{}, {}, random.chance(0.5)};
  const auto sequences = random.between(1, 3);
  const auto length = [&] {
    return int32_t(random.chance(0.2) ? random.of<int64_t>({0, 1, 64, 128}) : random.between(0, 220));
  };
  for (int64_t i = 0; i < sequences; ++i) {
    const bool again = i && !lengths.ragged;
    lengths.q.push_back(again ? lengths.q[0] : length());
    lengths.k.push_back(again ? lengths.k[0] : random.chance(0.5) ? lengths.q.back() : length());
  }
  const int32_t k_heads = int32_t(random.between(1, 2)), group = random.of<int32_t>({1, 1, 2, 3});
  AttentionParams p = params(lengths, k_heads * group, k_heads, random.of<int32_t>({64, 128}));
  if (random.chance(0.5)) p.window_right = random.chance(0.7) ? 0 : int32_t(random.between(1, 150));
  if (random.chance(0.3)) p.window_left = random.chance(0.3) ? 0 : int32_t(random.between(1, 200));
  if (random.chance(0.2)) p.scale *= random.chance(0.5) ? 4 : 40;  // also logarithms whose powers are no floats
  std::vector<float> sinks;
  for (int32_t h = 0; h < p.q_heads; ++h) sinks.push_back(float(random.between(-30, 30)) / 5);
  if (random.chance(0.3)) p.sinks = sinks.data();
  const bool poisons = lengths.ragged && random.chance(0.5);
  return run<D>(random, p, lengths, random.chance(0.3), random.chance(0.4),
                poisons ? int32_t(random.between(0, sequences - 1)) : -1);
}

// Gradients turned back on the way against gradients turned back behind: the same bits.
template <class D>
void check_turn(Random& random) {
  ++shape;
  const bool ragged = random.chance(0.5);
  const int32_t tokens = int32_t(random.between(1, 300)), last = int32_t(random.between(1, 200));
  const std::vector<int32_t> lengths = ragged ? std::vector<int32_t>{tokens, 0, last} : std::vector<int32_t>(2, tokens);
  AttentionParams p = params({lengths, lengths, ragged}, 4, 2, random.of<int32_t>({64, 128}));
  p.window_right = random.chance(0.5) ? 0 : kNoWindow;
  BackwardProblem<D> x(random, p, lengths, lengths, false);
  CHECK(attention_backward<D>(x.b, PairData(), Execution()).error == 0);

  AttentionTurn turn = {};
  turn.layout = random.chance(0.5) ? Layout::kNeox : Layout::kGptj;
  turn.rotary_dim = random.chance(0.5) ? p.head_dim : 16 * int32_t(random.between(1, p.head_dim / 16));
  turn.rotary_offset = 8 * int32_t(random.between(0, (p.head_dim - turn.rotary_dim) / 8));
  const int32_t half = turn.rotary_dim / 2;
  turn.row_stride = half + 4 * random.between(0, 1);
  turn.sequence_stride = random.chance(0.5) || ragged ? 0 : turn.row_stride * p.q_tokens;  // 0: rows for all sequences
  std::vector<float> rows[2];
  for (auto& row : rows)
    for (int64_t i = 0; i < turn.row_stride * p.q_total; ++i) row.push_back(float(random.between(-1000, 1000)) / 999);
  turn.cos = rows[0].data(), turn.sin = rows[1].data();

  std::vector<uint16_t> want;
  const auto all = [&](auto each) {
    for (Tensor* t : {&x.dq, &x.dk, &x.dv})
      t->for_each([&](int64_t s, int64_t token, int32_t h, int32_t i) { each(t, s, token, h, i); });
  };
  all([&](Tensor* t, int64_t s, int64_t token, int32_t h, int32_t i) {
    const bool halves = turn.layout == Layout::kNeox;
    const int32_t at = i - turn.rotary_offset, pair = halves ? at % half : at / 2;
    if (t == &x.dv || at < 0 || at >= turn.rotary_dim) return want.push_back(t->at(s, token, h, i));
    const int32_t first = turn.rotary_offset + (halves ? pair : 2 * pair), second = first + (halves ? half : 1);
    const int64_t row = s * turn.sequence_stride + token * turn.row_stride + pair;
    const Pair y = rotate_pair({D::widen(t->at(s, token, h, first)), D::widen(t->at(s, token, h, second))},
                               CosSin{turn.cos[row], -turn.sin[row]});
    want.push_back(D::narrow(i == first ? y.first : y.second));
  });
  x.b.turn = turn, x.b.turns_q = x.b.turns_k = true;
  CHECK(attention_backward<D>(x.b, PairData(), Execution()).error == 0);
  size_t n = 0;
  all([&](Tensor* t, int64_t s, int64_t token, int32_t h, int32_t i) { CHECK(t->at(s, token, h, i) == want[n++]); });
  for (Tensor* t : {&x.dq, &x.dk, &x.dv}) t->check_around(kAround);
}

// Blocks of queries against what each key of a block is seen by.
void check_seeing_blocks(Random& random) {
  constexpr int kRows = kBackwardRows, kKeys = 128;
  ++shape;
  BackwardSequence s = {};
  s.q_tokens = int32_t(random.between(0, 600)), s.k_tokens = int32_t(random.between(1, 600));
  const int32_t first = int32_t(random.between(0, (s.k_tokens - 1) / kKeys)) * kKeys;
  const int32_t left = random.chance(0.5) ? kNoWindow : int32_t(random.between(0, 400));
  const int32_t right = random.chance(0.4) ? kNoWindow : random.chance(0.5) ? 0 : int32_t(random.between(0, 400));
  const SeenBlocks seeing = seeing_blocks<kKeys>(s, first, left, right);
  CHECK(seeing.end <= divide_up(s.q_tokens, kRows));
  for (int32_t m = 0; m < divide_up(s.q_tokens, kRows); ++m) {
    bool some = false, all = true;
    for (int32_t row = m * kRows; row < (m + 1) * kRows; ++row)
      for (int32_t key = first; key < first + kKeys; ++key) {
        const int32_t stands = row + s.k_tokens - s.q_tokens;
        const bool sees = key < s.k_tokens && (left == kNoWindow || key >= stands - left) &&
                          (right == kNoWindow || key <= stands + right);
        some |= sees && row < s.q_tokens, all &= sees && row < s.q_tokens;
      }
    CHECK(!some || (m >= seeing.begin && m < seeing.end));
    CHECK(all == (m >= seeing.full_begin && m < seeing.full_end));
  }
}

// Every block of keys of every head is one block of threads' work, whatever the sections.
void check_work(Random& random) {
  ++shape;
  using Shape = BackwardShape<64>;
  KeysArgs args = {};
  std::vector<int32_t> starts = {0};
  args.k_heads = int32_t(random.between(1, 6)), args.layout.sequences = int32_t(random.between(1, 4));
  for (int32_t s = 0; s < args.layout.sequences; ++s) starts.push_back(starts.back() + int32_t(random.between(0, 500)));
  args.layout.q_tokens = args.layout.k_tokens = int32_t(random.between(1, 500));
  const bool ragged = random.chance(0.5);
  if (ragged) args.layout.q_indptr = args.layout.k_indptr = starts.data(), args.layout.k_tokens = 500;
  args.key_blocks = divide_up(args.layout.k_tokens, Shape::kKeys);
  args.section = int32_t(random.between(1, args.k_heads * args.layout.sequences));
  args.in_order = random.chance(0.3);
  const int32_t heads = args.k_heads * args.layout.sequences;
  std::vector<int> count(size_t(heads * args.key_blocks));
  for (int32_t i = 0; i < heads * (args.in_order ? 1 : args.key_blocks); ++i) {
    blockIdx = {unsigned(i), 0, 0};
    const BackwardWork<Shape> work(args);
    int32_t s = work.s.sequence;
    if (ragged)
      for (s = 0; starts[size_t(s)] != work.s.q_begin || starts[size_t(s) + 1] - work.s.q_begin != work.s.q_tokens;)
        ++s;
    for (int32_t n = work.begin; n < work.end; ++n)
      ++count[size_t((s * args.k_heads + work.head) * args.key_blocks + n)];
  }
  for (int32_t s = 0; s < args.layout.sequences; ++s)
    for (int32_t h = 0; h < args.k_heads; ++h)
      for (int32_t n = 0; n < args.key_blocks; ++n) {
        const int32_t tokens = ragged ? starts[size_t(s) + 1] - starts[size_t(s)] : args.layout.k_tokens;
        CHECK(count[size_t((s * args.k_heads + h) * args.key_blocks + n)] == (n * Shape::kKeys < tokens));
      }
}

void check_refusals() {
  const Lengths lengths = {{10, 10}, {10, 10}, false};
  Random random(1);
  const auto starts = [&](const char* prefix, auto change) {
    ++shape;
    BackwardProblem<BF16> x(random, params(lengths, 4, 2, 64), lengths.q, lengths.k, false);
    int multiprocessors = 1;
    change(x.b, multiprocessors);
    const char* text = plan_attention_backward(x.b, multiprocessors).unsupported;
    CHECK(*prefix ? std::string(text ? text : "").rfind(prefix, 0) == 0 : !text);
  };
  starts("", [](AttentionBackwardParams&, int&) {});
  starts("device:", [](AttentionBackwardParams&, int& multiprocessors) { multiprocessors = 0; });
  starts("head_dim, v_head_dim:", [](AttentionBackwardParams& b, int&) { b.forward.head_dim = 96; });
  starts("head_dim, v_head_dim:", [](AttentionBackwardParams& b, int&) { b.forward.v_head_dim = 128; });
  starts("softcap:", [](AttentionBackwardParams& b, int&) { b.forward.softcap = 30; });
  starts("scale:", [](AttentionBackwardParams& b, int&) { b.forward.scale = 0; });
  starts("q:", [](AttentionBackwardParams& b, int&) { b.forward.q.data += 8; });
  starts("k:", [](AttentionBackwardParams& b, int&) { b.forward.k.token_stride += 8; });
  starts("v:", [](AttentionBackwardParams& b, int&) { b.forward.v.head_stride = 0; });
  starts("o:", [](AttentionBackwardParams& b, int&) { b.forward.o.sequence_stride = -16; });
  starts("d_o:", [](AttentionBackwardParams& b, int&) { b.d_o.data += 2; });
  starts("dq:", [](AttentionBackwardParams& b, int&) { b.dq.data += 2; });
  starts("dk:", [](AttentionBackwardParams& b, int&) { b.dk.token_stride += 2; });
  starts("dv:", [](AttentionBackwardParams& b, int&) { b.dv.head_stride += 2; });
}

}  // namespace
}  // namespace rope::cuda::test

int main(int argc, char** argv) {
  using namespace rope::cuda::test;
  const int count = argc > 1 ? std::atoi(argv[1]) : 16;  // random calls
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 11);
  check_refusals();
  for (int i = 0; i < 300; ++i) check_seeing_blocks(random), check_work(random);
  double bf16 = check_tails<rope::BF16>(random, 128), f16 = check_tails<rope::F16>(random, 64);
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
