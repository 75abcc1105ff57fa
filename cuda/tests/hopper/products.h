// Products of a warpgroup: what each of its threads asked for is put together and carried out when it is waited for, as
// late as it may be. Part of hopper_on_cpu.h.
#pragma once

#include "block.h"

namespace rope::cuda {

// One thread's part of a product; kernels/attention/wgmma.cuh says which elements it has.
struct Multiplication {
  int columns;
  float* d;
  const uint32_t* a;  // in registers; null: in shared memory, at a_matrix
  uint64_t a_matrix, b_matrix;
  bool accumulate;
  bool transposed;  // both are MN-major; else A is K-major, and B where A is in shared memory
  float (*widen)(uint16_t);
};

class HopperProducts {
 public:
  void begin_block(unsigned threads) {
    threads_.assign(threads, {});
    warpgroups_.assign(threads / kWarpgroup, {});
    for (Meeting& m : warpgroups_) m.expected = kWarpgroup;
  }

  void begin() { self().begun = true; }

  void add(const Multiplication& m) {
    hopper.check(self().begun, "wgmma without wgmma.fence");
    self().open.push_back(m);
  }

  void commit() {
    self().groups.push_back(self().open);
    self().open.clear();
  }

  void wait(size_t pending) {
    hopper.check(self().open.empty(), "products that were not committed are waited for");
    const unsigned warpgroup = thread_index() / kWarpgroup;
    fibers.meet(warpgroups_[warpgroup], "warpgroup", warpgroup, [&] {
      Thread* threads = &threads_[warpgroup * kWarpgroup];
      while (threads[0].groups.size() > pending) {
        for (size_t i = 0; i < threads[0].groups[0].size(); ++i) multiply(threads, i);
        for (int t = 0; t < kWarpgroup; ++t) threads[t].groups.erase(threads[t].groups.begin());
      }
    });
    if (!pending) self().begun = false;
  }

 private:
  struct Thread {
    bool begun = false;
    std::vector<Multiplication> open;
    std::vector<std::vector<Multiplication>> groups;
  };

  Thread& self() { return threads_[thread_index()]; }

  // Element (i, k) of a matrix in shared memory: i counts rows of A, columns of B. `contiguous_k`: along k.
  static uint16_t element(uint64_t matrix, int i, int k, bool contiguous_k) {
    const auto bytes = [matrix](int bit) { return uint32_t(matrix >> bit & 0x3fff) << 4; };
    hopper.check(matrix >> 62 == 1 && !(matrix >> 46 & 0xffff), "matrix descriptor: not the 128-byte swizzle");
    const uint32_t start = bytes(0), panel = bytes(16), group = bytes(32);
    const uint32_t at = contiguous_k ? start + i / 8 * group + i % 8 * 128 + k * 2
                                     : start + i / 64 * panel + k / 8 * group + k % 8 * 128 + i % 64 * 2;
    const uint32_t place = HopperBlock::swizzled(at);
    uint16_t x;
    std::memcpy(&x, hopper.asynchronous(place, sizeof x), sizeof x);
    return x;
  }

  static int row_of(int thread, int r) { return thread / kWarp * 16 + thread % kWarp / 4 + 8 * r; }

  // The n-th product of the first group that is not done: D (64 x columns) = A (64 x 16) B (16 x columns).
  static void multiply(Thread* threads, size_t n) {
    const Multiplication& first = threads[0].groups[0][n];
    const int columns = first.columns;
    float a[64][16], b[16][256];
    for (int t = 0; t < kWarpgroup; ++t) {
      hopper.check(threads[t].groups.size() && threads[t].groups[0].size() > n,
                   "threads of a warpgroup differ in products");
      const Multiplication& m = threads[t].groups[0][n];
      hopper.check(m.a_matrix == first.a_matrix && m.b_matrix == first.b_matrix && m.columns == columns,
                   "threads of a warpgroup differ in matrices");
      for (int i = 0; m.a && i < 8; ++i)  // word w: row w % 2, columns 2 (t % 4) + 8 (w / 2) + {0, 1}
        a[row_of(t, i / 2 % 2)][t % 4 * 2 + i / 4 * 8 + i % 2] = m.widen(uint16_t(m.a[i / 2] >> i % 2 * 16));
    }
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; !first.a && i < 64; ++i) a[i][k] = first.widen(element(first.a_matrix, i, k, !first.transposed));
      for (int i = 0; i < columns; ++i)
        b[k][i] = first.widen(element(first.b_matrix, i, k, !first.a && !first.transposed));
    }
    float d[64][256];
    each_element(threads, n,
                 [&](int row, int column, bool accumulate, float* x) { d[row][column] = accumulate ? *x : 0.0f; });
    for (int row = 0; row < 64; ++row)
      for (int k = 0; k < 16; ++k) {
        const float x = a[row][k], *y = b[k];
        for (int column = 0; column < columns; ++column) d[row][column] += x * y[column];
      }
    each_element(threads, n, [&](int row, int column, bool, float* x) { *x = d[row][column]; });
  }

  // each(row, column, accumulate, the register) of D.
  template <class Each>
  static void each_element(Thread* threads, size_t n, Each each) {
    for (int t = 0; t < kWarpgroup; ++t) {
      const Multiplication& m = threads[t].groups[0][n];
      for (int i = 0; i < m.columns / 2; ++i)
        each(row_of(t, i / 2 % 2), i / 4 * 8 + t % 4 * 2 + i % 2, m.accumulate, m.d + i);
    }
  }

  std::vector<Thread> threads_;
  std::vector<Meeting> warpgroups_;
};

inline thread_local HopperProducts products;

}  // namespace rope::cuda
