// Numbers of about 106 bits as an unevaluated sum of two doubles. 53 bits of a frequency are not enough: times a
// position of 2^27 and more their rounding alone would exceed the error that the library promises.
// T. J. Dekker, A floating-point technique for extending the available precision, 1971; Knuth's two-sum.
#pragma once

#include <cmath>

namespace rope {

struct DoubleDouble {
  double high = 0, low = 0;

  constexpr DoubleDouble() = default;
  constexpr DoubleDouble(double x) : high(x) {}
  constexpr DoubleDouble(double h, double l) : high(h), low(l) {}
};

namespace detail {

// a + b without error; |a| >= |b| or a == 0.
inline DoubleDouble fast_two_sum(double a, double b) {
  const double s = a + b;
  return {s, b - (s - a)};
}

inline DoubleDouble two_sum(double a, double b) {
  const double s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

}  // namespace detail

inline DoubleDouble operator-(DoubleDouble a) { return {-a.high, -a.low}; }

inline DoubleDouble operator+(DoubleDouble a, DoubleDouble b) {
  DoubleDouble s = detail::two_sum(a.high, b.high);
  const DoubleDouble t = detail::two_sum(a.low, b.low);
  s = detail::fast_two_sum(s.high, s.low + t.high);
  return detail::fast_two_sum(s.high, s.low + t.low);
}

inline DoubleDouble operator-(DoubleDouble a, DoubleDouble b) { return a + -b; }

inline DoubleDouble operator*(DoubleDouble a, DoubleDouble b) {
  const double p = a.high * b.high;
  return detail::fast_two_sum(p, std::fma(a.high, b.high, -p) + (a.high * b.low + a.low * b.high));
}

inline DoubleDouble operator/(DoubleDouble a, DoubleDouble b) {
  const double q1 = a.high / b.high;
  DoubleDouble r = a - b * q1;
  const double q2 = r.high / b.high;
  r = r - b * q2;
  return DoubleDouble(q1) + q2 + r.high / b.high;
}

inline bool operator<(DoubleDouble a, DoubleDouble b) { return a.high < b.high || (a.high == b.high && a.low < b.low); }

// x^n, n >= 0.
inline DoubleDouble power(DoubleDouble x, int n) {
  DoubleDouble y = 1.0;
  for (; n; n >>= 1, x = x * x)
    if (n & 1) y = y * x;
  return y;
}

// x^(1/n), x > 0, n >= 1: one step of Newton's method doubles the bits of pow().
inline DoubleDouble root(DoubleDouble x, int n) {
  const DoubleDouble y = std::pow(x.high, 1.0 / n);
  const DoubleDouble below = power(y, n - 1);
  return y - (below * y - x) / (below * n);
}

// e^x for |x| < 700: e^(x / 2^16) by its series, then squared 16 times, which loses 16 of the 106 bits.
inline DoubleDouble exp(DoubleDouble x) {
  const DoubleDouble small = x / 0x1p16;
  DoubleDouble sum = 1.0, term = 1.0;
  for (int n = 1; n < 20; ++n) sum = sum + (term = term * small / double(n));
  for (int i = 0; i < 16; ++i) sum = sum * sum;
  return sum;
}

// The natural logarithm, x > 0: as for root().
inline DoubleDouble log(DoubleDouble x) {
  const DoubleDouble y = std::log(x.high);
  return y + (x * exp(-y) - 1.0);
}

inline constexpr DoubleDouble kTwoPi = {0x1.921fb54442d18p+2, 0x1.1a62633145c07p-52};

}  // namespace rope
