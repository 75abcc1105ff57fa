// Stands in for kernels/attention/hopper.cuh when kernels are compiled by g++: the same names, carried out by the
// fibers of cuda_on_cpu.h. What is asynchronous on a GPU happens here as late as it may (products, stores) or at a
// random time (loads). What a GPU would not tell is an error of the launch: arrivals or bytes that no barrier expects,
// a phase that is missed, shared memory handed to TMA or wgmma without a fence, and threads that all wait.
#pragma once

#include <cmath>
#include <cstdio>
#include <utility>

#include "../src/math/dtype.h"
#include "hopper/block.h"
#include "hopper/products.h"

struct uint4 {
  uint32_t x, y, z, w;
};

struct float2 {
  float x, y;
};

struct float4 {
  float x, y, z, w;
};

namespace rope::cuda {

using std::max;
using std::min;

inline int uniform(int x) { return x; }
inline uint32_t opaque(uint32_t x) { return x; }
template <int kRegisters>
void shrink_registers() {}
template <int kRegisters>
void grow_registers() {}
inline int32_t atomicAdd(int32_t* at, int32_t x) { return std::exchange(*at, *at + x); }

// ---- shared memory

inline char* shared_memory() { return hopper.memory(); }
inline uint32_t shared_address(const void* pointer) { return hopper.address(pointer); }

inline uint4 load_shared(uint32_t from) {
  uint4 x;
  std::memcpy(&x, hopper.at(from, sizeof x), sizeof x);
  return x;
}
inline void store_shared(uint32_t to, uint4 x) { hopper.write(to, &x); }

inline float4 load_global(const float* at) { return *reinterpret_cast<const float4*>(at); }

inline void store_matrices(uint32_t to, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  struct Lane {
    uint32_t address, word[4];
  };
  static thread_local Lane lanes[1024];
  const unsigned self = thread_index(), warp = self / kWarp * kWarp;
  lanes[self] = {to, {m0, m1, m2, m3}};
  synchronize(true);
  uint32_t row[4];  // this lane's: row % 8 of matrix lane / 8
  for (unsigned i = 0; i < 4; ++i) row[i] = lanes[warp + self % 8 * 4 + i].word[self % kWarp / 8];
  hopper.write(to, row);
  synchronize(true);
}

inline void fence_async_proxy() { hopper.fence(); }

// ---- barriers

inline void barrier_init(uint32_t barrier, int arrivals) { hopper.init(barrier, arrivals); }
inline void fence_barrier_init() {}
inline void barrier_arrive(uint32_t barrier) { hopper.arrive(barrier, 0); }
inline void barrier_expect(uint32_t barrier, int bytes) { hopper.arrive(barrier, bytes); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { hopper.wait(barrier, parity); }
inline void group_sync(int id, int threads) { hopper.group(id, threads, true); }
inline void group_arrive(int id, int threads) { hopper.group(id, threads, false); }

// ---- tensor copies

inline void load_box(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row, int head, int sequence) {
  hopper.load(map, to, barrier, {column, row, head, sequence});
}
inline void store_box(const TensorMap* map, uint32_t from, int column, int row, int head, int sequence) {
  hopper.store(map, from, {column, row, head, sequence});
}
inline void commit_stores() { hopper.commit_stores(); }
inline void wait_stores_read() { hopper.wait_stores_read(); }
inline void wait_stores() { hopper.wait_stores_read(); }
inline void load_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  hopper.load_bytes(to, from, bytes, barrier);
}
inline void add_floats(float* to, uint32_t from, int bytes) { hopper.add_floats(to, from, bytes); }

// ---- products

inline void products_begin() { products.begin(); }
inline void products_commit() { products.commit(); }
template <int kPending>
void products_wait() {
  products.wait(kPending);
}
template <int kCount>
void pin(float (&)[kCount]) {}

template <int N, class D>
struct Product {
  static float widen(uint16_t x) { return D::widen(x); }
  static void keys(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    products.add({N, d, nullptr, a, b, accumulate, false, widen});
  }
  static void values(float (&d)[N / 2], const uint32_t* a, uint64_t b) {
    products.add({N, d, a, 0, b, true, false, widen});
  }
};

template <int N, class D>
struct TransposedProduct {
  static void add(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    products.add({N, d, nullptr, a, b, accumulate, true, [](uint16_t x) { return D::widen(x); }});
  }
};

// ---- arithmetic

inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }

// ---- the host's part

inline int emulated_multiprocessors = 3;

inline int hopper_multiprocessors() { return emulated_multiprocessors; }

inline int make_tensor_map(const BoxedTensor& t, TensorMap* map) {
  *map = t;
  return 0;
}

// One block after the other.
template <auto kKernel, class Args>
int launch_resident(unsigned blocks, unsigned threads, int shared_bytes, const Args& args, void*, bool) {
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  for (unsigned i = 0; i < blocks; ++i) {
    hopper.begin(threads, shared_bytes);
    products.begin_block(threads);
    const auto run = [&] {
      blockIdx = {i, 0, 0};
      kKernel(args);
    };
    if (fibers.run(blockDim, run, [] { return hopper.deliver(); })) {
      hopper.end();
    } else {
      hopper.note("all wait: " + fibers.waits());
    }
    if (!hopper.failure().empty()) {
      std::fprintf(stderr, "block %u: %s\n", i, hopper.failure().c_str());
      return 719;  // cudaErrorLaunchFailure
    }
  }
  return 0;
}

}  // namespace rope::cuda
