// What the tests of plans share. A plan is plain arithmetic: it is made for random shapes, and what its kernel would
// touch is counted thread by thread.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <type_traits>
#include <vector>

#include "../../src/kernels/parts/compiled.h"
#include "../../src/kernels/parts/plan.h"
#include "../../src/kernels/parts/slot.h"

namespace rope::cuda::test {

#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      std::printf("%s:%d: not true: %s (shape %d)\n", __FILE__, __LINE__, #condition, shape); \
      std::exit(1);                                                                           \
    }                                                                                         \
  } while (0)

inline int shape = 0;  // the number of the shape under test

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  template <class Distribution>
  auto draw(Distribution& distribution) {
    return distribution(engine_);
  }
  template <class T>
  T of(std::initializer_list<T> values) {
    return values.begin()[between(0, int64_t(values.size()) - 1)];
  }
  // Strides and addresses: mostly multiples of 16 bytes, else of 8, or of an element.
  int64_t step(int64_t element_bytes) { return chance(0.7) ? 16 : chance(0.5) ? 8 : element_bytes; }

 private:
  std::mt19937_64 engine_;
};

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

struct Dim {
  unsigned x, y, z;
};

// How often each element of a head is touched, by the slots that a grid's x and z coordinates reach.
template <int kVec>
std::vector<int> touched(Layout layout, int32_t rotary_dim, int32_t rotary_offset, int32_t dim, int32_t slots,
                         int32_t stored_slots) {
  std::vector<int> count(size_t(dim), 0);
  for (int32_t i = 0; i < slots; ++i) {
    const Slot s = slot_of<kVec, true>(layout, rotary_dim, rotary_offset, dim, stored_slots, i);
    for (int32_t j = 0; j < kVec; ++j) {
      CHECK(s.first >= 0 && s.first + kVec <= dim && s.second >= 0 && s.second + kVec <= dim);
      CHECK(s.first % kVec == 0);
      ++count[size_t(s.first + j)];
      if (s.first != s.second) ++count[size_t(s.second + j)];
    }
  }
  return count;
}

// f(constant) for the elements of an access.
template <class F>
auto for_vec(int32_t vec, F f) {
  switch (vec) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: CHECK(vec == 8); return f(std::integral_constant<int, 8>());
  }
}

// The rotated elements, with `whole` all, are touched once, and no others.
inline void check_elements(Layout layout, int32_t vec, int32_t rotary_dim, int32_t rotary_offset, int32_t dim,
                           int32_t slots, int32_t stored_slots, bool whole) {
  const auto count = for_vec(vec, [&](auto v) {
    return touched<v.value>(layout, rotary_dim, rotary_offset, dim, slots, stored_slots);
  });
  for (int32_t i = 0; i < dim; ++i) {
    const bool rotated = i >= rotary_offset && i < rotary_offset + rotary_dim;
    CHECK(count[size_t(i)] == int(rotated || whole));
  }
}

// Of a grid that grid_place() is laid over: tokens, slots and, in `turns` turns of `unroll`, heads are each reached
// once.
inline void check_grid(Dim grid, Dim block, int64_t tokens, int32_t slots, int32_t heads, int32_t unroll,
                       int32_t turns) {
  CHECK(block.x * block.y * block.z <= unsigned(kMaxBlock) && block.z <= unsigned(kMaxBlockZ));
  CHECK(grid.x <= unsigned(INT32_MAX) && grid.y <= unsigned(kMaxGridY) && grid.z <= unsigned(kMaxGridY));
  std::vector<uint8_t> token_count(size_t(tokens), 0), slot_count(size_t(slots), 0), head_count(size_t(heads), 0);
  for (unsigned b = 0; b < grid.x; ++b)
    for (unsigned t = 0; t < block.z; ++t) {
      const int64_t token = grid_place(Dim{b, 0, 0}, Dim{0, 0, t}, block, grid).token;
      if (token < tokens) ++token_count[size_t(token)];
    }
  for (unsigned b = 0; b < grid.z; ++b)
    for (unsigned t = 0; t < block.x; ++t) {
      const int32_t slot = grid_place(Dim{0, 0, b}, Dim{t, 0, 0}, block, grid).slot;
      if (slot < slots) ++slot_count[size_t(slot)];
    }
  for (unsigned b = 0; b < grid.y; ++b)
    for (unsigned t = 0; t < block.y; ++t) {
      const GridPlace at = grid_place(Dim{0, b, 0}, Dim{0, t, 0}, block, grid);
      int32_t head = at.head;
      for (int32_t turn = 0; turn < turns; ++turn, head += at.step * unroll)
        for (int32_t u = 0; u < unroll; ++u)
          if (head + u * at.step < heads) ++head_count[size_t(head + u * at.step)];
    }
  for (const auto* counts : {&token_count, &slot_count, &head_count})
    for (const uint8_t count : *counts) CHECK(count == 1);
}

void test_pipeline();
void test_general();
void test_rotate_cache();
void test_cos_sin();
void test_decode();

}  // namespace rope::cuda::test
