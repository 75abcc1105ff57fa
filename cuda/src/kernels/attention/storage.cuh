// The shared memory of a block, and who waits for whom there.
#pragma once

#include "args.h"

namespace rope::cuda {

// Where 16 bytes of a row lie in swizzled panels of kRows rows.
template <int kRows>
__device__ __forceinline__ uint32_t chunk_place(int row, int chunk) {
  return uint32_t((chunk / 8 * kRows + row) * kPanelRowBytes + (chunk % 8 ^ row % 8) * 16);
}

// Which of two buffers comes next, and how often it has come around.
struct Turn {
  uint32_t count = 0;

  __device__ __forceinline__ uint32_t stage() const { return count & 1; }
  __device__ __forceinline__ uint32_t parity() const { return count >> 1 & 1; }
};

// Two buffers that one side fills and the other releases in turns. `full` and `empty` are barriers of each.
template <int kBytes>
struct Ring {
  uint32_t data, full, empty;  // addresses

  __device__ __forceinline__ void init(int fillers, int readers) const {
    for (uint32_t stage = 0; stage < 2; ++stage) {
      barrier_init(full + 8 * stage, fillers);
      barrier_init(empty + 8 * stage, readers);
    }
  }
  __device__ __forceinline__ uint32_t buffer(Turn t) const { return data + t.stage() * kBytes; }
  __device__ __forceinline__ uint32_t filled(Turn t) const { return full + 8 * t.stage(); }

  __device__ __forceinline__ void wait_empty(Turn t) const { barrier_wait(empty + 8 * t.stage(), t.parity() ^ 1); }
  __device__ __forceinline__ void wait_full(Turn t) const { barrier_wait(filled(t), t.parity()); }
  __device__ __forceinline__ void release(Turn t) const { barrier_arrive(empty + 8 * t.stage()); }

  // Has the buffer filled: box by box, a panel of columns each, behind one another.
  template <int kPanels>
  __device__ __forceinline__ void load(Turn t, const TensorMap* map, int row, int head, int sequence) const {
    barrier_expect(filled(t), kBytes);
#pragma unroll
    for (int c = 0; c < kPanels; ++c)
      load_box(buffer(t) + c * (kBytes / kPanels), map, filled(t), c * kPanelColumns, row, head, sequence);
  }
};

template <class Shape>
struct AttentionStorage {
  alignas(1024) char q[2][Shape::kQueryBytes];
  alignas(1024) char k[2][Shape::kKeyBytes];
  alignas(1024) char v[2][Shape::kValueBytes];
  alignas(1024) char o[Shape::kOutBytes];
  uint64_t q_loaded[2], q_full[2], q_empty[2], k_full[2], k_empty[2], v_full[2], v_empty[2];
  Tile tile[2];  // whose queries q[] holds; filled and released with them

  __device__ __forceinline__ Ring<Shape::kQueryBytes> queries() const {
    return {shared_address(q), shared_address(q_full), shared_address(q_empty)};
  }
  // As loaded: before they turn, if they do.
  __device__ __forceinline__ Ring<Shape::kQueryBytes> loaded_queries(bool turn) const {
    return {shared_address(q), shared_address(turn ? q_loaded : q_full), shared_address(q_empty)};
  }
  __device__ __forceinline__ Ring<Shape::kKeyBytes> keys() const {
    return {shared_address(k), shared_address(k_full), shared_address(k_empty)};
  }
  __device__ __forceinline__ Ring<Shape::kValueBytes> values() const {
    return {shared_address(v), shared_address(v_full), shared_address(v_empty)};
  }

  // By one thread. A warpgroup that computes releases a buffer by one arrival; of queries, or rather of their tile, the
  // thread that loads keys is a reader too. Each warp that turns queries fills by one arrival.
  __device__ __forceinline__ void init(bool turn) const {
    for (uint32_t stage = 0; stage < 2; ++stage) barrier_init(shared_address(q_loaded + stage), 1);
    queries().init(turn ? kTurningWarps : 1, kComputing + 1);
    keys().init(1, kComputing);
    values().init(1, kComputing);
    fence_barrier_init();
  }
};

}  // namespace rope::cuda
