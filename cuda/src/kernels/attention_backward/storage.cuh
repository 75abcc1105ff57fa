// The shared memory of a block of the keys' kernel, who waits for whom there, and which work it has.
#pragma once

#include "../attention/storage.cuh"
#include "args.h"
#include "hopper.cuh"

namespace rope::cuda {

template <class Shape>
struct BackwardStorage {
  alignas(1024) char k[Shape::kKeysBytes];
  alignas(1024) char v[Shape::kKeysBytes];
  alignas(1024) char q[2][Shape::kRowsBytes];
  alignas(1024) char d_o[2][Shape::kRowsBytes];
  alignas(1024) char d_scores[2][Shape::kKeys * kPanelRowBytes];  // transposed: rows are keys
  alignas(1024) float dq[kComputing][Shape::kPartFloats];
  alignas(128) float lse[2][Shape::kRows];  // loaded with q
  alignas(128) float d[2][Shape::kRows];    // loaded with d_o
  uint64_t kv_full, kv_empty, q_full[2], q_empty[2], d_o_full[2], d_o_empty[2];

  using KeysRing = Ring<2 * Shape::kKeysBytes, 1>;
  using RowsRing = Ring<Shape::kRowsBytes>;

  __device__ __forceinline__ KeysRing keys_and_values() const {
    return {shared_address(k), shared_address(&kv_full), shared_address(&kv_empty)};
  }
  __device__ __forceinline__ RowsRing queries() const {
    return {shared_address(q), shared_address(q_full), shared_address(q_empty)};
  }
  __device__ __forceinline__ RowsRing gradients() const {
    return {shared_address(d_o), shared_address(d_o_full), shared_address(d_o_empty)};
  }

  // By one thread. A warpgroup that computes releases a buffer by one arrival.
  __device__ __forceinline__ void init() const {
    keys_and_values().init(1, kComputing);
    queries().init(1, kComputing);
    gradients().init(1, kComputing);
    fence_barrier_init();
  }
};

// Named barriers; the last three: + the warpgroup's number.
enum BackwardBarrier : int { kComputingMeet = 1, kPartFull = 2, kPartEmpty = 4, kMyKeys = 6 };
inline constexpr int kPartThreads = kWarpgroup + kWarp;  // that hand over a part of dq: a warpgroup, and who adds it up

// A block of threads has some blocks of keys of a key head. Heads come in sections, whose queries, gradients and sums
// the second-level cache holds together; in a section the first keys first, which the most queries see under a causal
// mask.
template <class Shape>
struct BackwardWork {
  BackwardSequence s;
  int32_t head;        // of k
  int32_t begin, end;  // blocks of keys

  __device__ __forceinline__ explicit BackwardWork(const KeysArgs& a) {
    const int32_t number = int32_t(blockIdx.x);
    int32_t place = number, block = 0;
    if (!a.in_order) {
      const int32_t each = a.section * a.key_blocks, section = number / each, rest = number - section * each;
      const int32_t first = section * a.section, heads = min(a.section, a.k_heads * a.layout.sequences - first);
      block = rest / heads;
      place = first + rest - block * heads;
    }
    const int32_t sequence = place / a.k_heads;
    head = place - sequence * a.k_heads;
    s = sequence_of(a.layout, sequence);
    const int32_t blocks = (s.k_tokens + Shape::kKeys - 1) / Shape::kKeys;
    begin = block;
    end = a.in_order ? blocks : min(block + 1, blocks);
  }
};

}  // namespace rope::cuda
