// A call of attention with its memory, and what the call must give, in float64 from the formula.
#pragma once

#include <cmath>
#include <limits>

#include "../../src/operations/attention.h"
#include "../plans/check.h"

namespace rope::cuda::test {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// [sequences, tokens, heads, dim] of 16-bit elements somewhere in memory that is otherwise full of one word.
class Tensor {
 public:
  Tensor(Random& random, int64_t sequences, int64_t tokens, int32_t heads, int32_t dim, uint16_t around)
      : extent_{sequences, tokens, heads, dim} {
    const auto padding = [&] { return random.chance(0.5) ? 0 : 8 * random.between(1, 3); };
    const bool heads_first = random.chance(0.3);
    int64_t head = dim + padding(), token = head * heads + padding();
    if (heads_first) {
      token = dim + padding();
      head = token * tokens + padding();
    }
    const int64_t sequence = (heads_first ? head * heads : token * tokens) + padding();
    words_.assign(size_t(sequence * sequences + 8), around);
    stride_[0] = sequence, stride_[1] = token, stride_[2] = head;
    base_ = words_.data() + (16 - reinterpret_cast<uintptr_t>(words_.data()) % 16) % 16 / 2;
    view = {reinterpret_cast<char*>(base_), sequence * 2, token * 2, head * 2};
  }

  uint16_t& at(int64_t sequence, int64_t token, int32_t head, int32_t i) {
    return base_[sequence * stride_[0] + token * stride_[1] + head * stride_[2] + i];
  }

  // f(sequence, token, head, i) for every element.
  template <class F>
  void for_each(F f) {
    for (int64_t s = 0; s < extent_[0]; ++s)
      for (int64_t t = 0; t < extent_[1]; ++t)
        for (int32_t h = 0; h < extent_[2]; ++h)
          for (int32_t i = 0; i < extent_[3]; ++i) f(s, t, h, i);
  }

  // Nothing but the elements was written.
  void check_around(uint16_t around) {
    std::vector<uint16_t> rest = words_;
    for_each(
        [&](int64_t s, int64_t t, int32_t h, int32_t i) { rest[size_t(&at(s, t, h, i) - words_.data())] = around; });
    for (const uint16_t word : rest) CHECK(word == around);
  }

  AttentionTensor view;

 private:
  int64_t extent_[4], stride_[3];
  std::vector<uint16_t> words_;
  uint16_t* base_;
};

// One query of one head: its result and logarithm, and what bounds the error of 16-bit arithmetic.
struct Row {
  std::vector<double> o, magnitude;  // [v_head_dim]: sum of p v, of p |v|
  double lse = -kInfinity;
  int keys = 0;
  double largest_v = 0;
};

inline constexpr uint16_t kAround = 0xffff;  // NaN, of both types

template <class D>
struct Problem {
  Problem(Random& random, AttentionParams params, std::vector<int32_t> q_lengths, std::vector<int32_t> k_lengths)
      : p(params),
        q_starts(starts(q_lengths)),
        k_starts(starts(k_lengths)),
        ragged(p.q_indptr),
        q(random, outer(), p.q_total / outer(), p.q_heads, p.head_dim, kAround),
        k(random, outer(), p.k_total / outer(), p.k_heads, p.head_dim, kAround),
        v(random, outer(), p.k_total / outer(), p.k_heads, p.v_head_dim, kAround),
        o(random, outer(), p.q_total / outer(), p.q_heads, p.v_head_dim, kAround),
        lse(size_t(p.q_total * p.q_heads), std::nanf("")) {
    fill(random, q), fill(random, k), fill(random, v);
    p.q = q.view, p.k = k.view, p.v = v.view, p.o = o.view;
    if (p.lse) p.lse = lse.data();
    if (ragged) p.q_indptr = q_starts.data(), p.k_indptr = k_starts.data();
  }

  int64_t outer() const { return ragged ? 1 : p.sequences; }

  void fill(Random& random, Tensor& t) {
    std::normal_distribution<float> normal;
    t.for_each(
        [&](int64_t s, int64_t token, int32_t h, int32_t i) { t.at(s, token, h, i) = D::narrow(random.draw(normal)); });
  }

  static std::vector<int32_t> starts(const std::vector<int32_t>& lengths) {
    std::vector<int32_t> sums = {0};
    for (const int32_t n : lengths) sums.push_back(sums.back() + n);
    return sums;
  }

  int32_t q_tokens(int32_t s) const { return q_starts[size_t(s) + 1] - q_starts[size_t(s)]; }
  int32_t k_tokens(int32_t s) const { return k_starts[size_t(s) + 1] - k_starts[size_t(s)]; }

  const uint16_t* row_at(Tensor& t, const std::vector<int32_t>& first, int32_t s, int32_t token, int32_t head) {
    return ragged ? &t.at(0, first[size_t(s)] + token, head, 0) : &t.at(s, token, head, 0);
  }

  double get_lse(int32_t s, int32_t head, int32_t token) const {
    return double(ragged ? lse[size_t(head * p.q_total + q_starts[size_t(s)] + token)]
                         : lse[size_t((int64_t(s) * p.q_heads + head) * p.q_tokens + token)]);
  }

  bool sees(int32_t s, int32_t query, int32_t key) const {
    const int32_t stands = query + k_tokens(s) - q_tokens(s);
    return (p.window_left == kNoWindow || key >= stands - p.window_left) &&
           (p.window_right == kNoWindow || key <= stands + p.window_right);
  }

  Row reference(int32_t s, int32_t head, int32_t query) {
    const int32_t k_head = head / (p.q_heads / p.k_heads);
    std::vector<double> logits(size_t(k_tokens(s)), -kInfinity);
    double top = p.sinks ? double(p.sinks[head]) : -kInfinity;
    for (int32_t j = 0; j < k_tokens(s); ++j) {
      if (!sees(s, query, j)) continue;
      const uint16_t *x = row_at(q, q_starts, s, query, head), *y = row_at(k, k_starts, s, j, k_head);
      double score = 0;
      for (int32_t i = 0; i < p.head_dim; ++i) score += double(D::widen(x[i])) * double(D::widen(y[i]));
      score *= double(p.scale);
      if (p.softcap) score = double(p.softcap) * std::tanh(score / double(p.softcap));
      logits[size_t(j)] = score;
      top = std::max(top, score);
    }
    Row row = {std::vector<double>(size_t(p.v_head_dim)), std::vector<double>(size_t(p.v_head_dim))};
    if (top == -kInfinity) return row;
    double sum = p.sinks ? std::exp(double(p.sinks[head]) - top) : 0;
    for (const double x : logits) sum += std::exp(x - top);
    row.lse = top + std::log(sum);
    for (int32_t j = 0; j < k_tokens(s); ++j) {
      const double weight = std::exp(logits[size_t(j)] - top) / sum;
      if (logits[size_t(j)] == -kInfinity) continue;
      ++row.keys;
      const uint16_t* values = row_at(v, k_starts, s, j, k_head);
      for (int32_t i = 0; i < p.v_head_dim; ++i) {
        const double x = double(D::widen(values[i]));
        row.o[size_t(i)] += weight * x;
        row.magnitude[size_t(i)] += weight * std::fabs(x);
        row.largest_v = std::max(row.largest_v, std::fabs(x));
      }
    }
    return row;
  }

  // Error of o. Each power p is rounded to 16 bits, to a relative error u, or, where it is subnormal in float16, to an
  // absolute one of 2^-25 of the largest, whose power is 1: together u sum(p |v|) / sum(p) + 2^-25 keys max|v|. The
  // result is rounded once more: u |o|. What is done in float32 (scores of up to 128 products, powers, sums) adds 3e-5
  // sum(p |v|).
  void check(int32_t s, int32_t head, int32_t query) {
    const double u = D::kDtype == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
    const Row row = reference(s, head, query);
    const uint16_t* result = row_at(o, q_starts, s, query, head);
    for (int32_t i = 0; i < p.v_head_dim; ++i) {
      const double x = double(D::widen(result[i])), error = std::fabs(x - row.o[size_t(i)]);
      const double powers = (u + 3e-5) * row.magnitude[size_t(i)] + 0x1p-25 * row.keys * row.largest_v;
      const double bound = powers + u * (std::fabs(row.o[size_t(i)]) + powers);
      if (!(error <= bound)) {
        std::printf("sequence %d head %d query %d element %d: %g, not %g (%g allowed)\n", s, head, query, i, x,
                    row.o[size_t(i)], bound);
        std::exit(1);
      }
      worst = std::max(worst, error / std::max(bound, 1e-30));
    }
    if (!p.lse) return;
    const double x = get_lse(s, head, query);
    if (!(x == row.lse || std::fabs(x - row.lse) <= 1e-5 * std::max(1.0, std::fabs(row.lse)))) {
      std::printf("sequence %d head %d query %d: lse %g, not %g\n", s, head, query, x, row.lse);
      std::exit(1);
    }
  }

  AttentionParams p;
  std::vector<int32_t> q_starts, k_starts;
  bool ragged;
  Tensor q, k, v, o;
  std::vector<float> lse;
  double worst = 0;  // error of o, as a part of its bound
};

}  // namespace rope::cuda::test
