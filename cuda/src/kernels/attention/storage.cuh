// The shared memory of a block, and who waits for whom there.
#pragma once

#include "args.h"

namespace rope::cuda {

// Where 16 bytes of a row lie in swizzled panels of kRows rows.
template <int kRows>
__device__ __forceinline__ uint32_t chunk_place(int row, int chunk) {
  return uint32_t((chunk / 8 * kRows + row) * kPanelRowBytes + (chunk % 8 ^ row % 8) * 16);
}

// Which of kCount buffers comes next, and how often it has come around.
template <uint32_t kCount>
struct Stage {
  uint32_t count = 0;

  __device__ __forceinline__ uint32_t index() const { return count % kCount; }
  __device__ __forceinline__ uint32_t parity() const { return count / kCount % 2; }
};

// One or two buffers that one side fills and the other releases, one after the other. `full` and `empty` are barriers
// of each.
template <int kBytes, uint32_t kCount = 2>
struct Ring {
  using Stage = cuda::Stage<kCount>;

  uint32_t data, full, empty;  // addresses

  __device__ __forceinline__ void init(int fillers, int readers) const {
    for (uint32_t stage = 0; stage < kCount; ++stage) {
      barrier_init(full + 8 * stage, fillers);
      barrier_init(empty + 8 * stage, readers);
    }
  }
  __device__ __forceinline__ uint32_t buffer(Stage s) const { return data + s.index() * kBytes; }
  __device__ __forceinline__ uint32_t filled(Stage s) const { return full + 8 * s.index(); }

  __device__ __forceinline__ void wait_empty(Stage s) const { barrier_wait(empty + 8 * s.index(), s.parity() ^ 1); }
  __device__ __forceinline__ void wait_full(Stage s) const { barrier_wait(filled(s), s.parity()); }
  __device__ __forceinline__ void release(Stage s) const { barrier_arrive(empty + 8 * s.index()); }

  // Has the buffer filled: box by box, a panel of columns each, behind one another.
  template <int kPanels>
  __device__ __forceinline__ void load(Stage s, const TensorMap* map, int row, int head, int sequence) const {
    barrier_expect(filled(s), kBytes);
#pragma unroll
    for (int c = 0; c < kPanels; ++c)
      load_box(buffer(s) + c * (kBytes / kPanels), map, filled(s), c * kPanelColumns, row, head, sequence);
  }
};

using BlockStage = Stage<2>;
template <class Shape>
using QueryStage = Stage<Shape::kQueryStages>;
template <class Shape>
using QueryRing = Ring<Shape::kQueryBytes, Shape::kQueryStages>;

template <class Shape>
struct AttentionStorage {
  alignas(1024) char q[Shape::kQueryStages][Shape::kQueryBytes];
  alignas(1024) char k[2][Shape::kKeyBytes];
  alignas(1024) char v[2][Shape::kValueBytes];
  alignas(1024) char o[Shape::kQueryStages > 1 ? Shape::kOutBytes : 16];
  uint64_t q_loaded[2], q_full[2], q_empty[2], k_full[2], k_empty[2], v_full[2], v_empty[2];
  Tile tile[2];  // whose queries q[] holds; filled and released with them

  __device__ __forceinline__ QueryRing<Shape> queries() const {
    return {shared_address(q), shared_address(q_full), shared_address(q_empty)};
  }
  // As loaded: before they turn, if they do.
  __device__ __forceinline__ QueryRing<Shape> loaded_queries(bool turn) const {
    return {shared_address(q), shared_address(turn ? q_loaded : q_full), shared_address(q_empty)};
  }
  __device__ __forceinline__ Ring<Shape::kKeyBytes> keys() const {
    return {shared_address(k), shared_address(k_full), shared_address(k_empty)};
  }
  __device__ __forceinline__ Ring<Shape::kValueBytes> values() const {
    return {shared_address(v), shared_address(v_full), shared_address(v_empty)};
  }

  // Results, on their way to memory; with one stage, where the tile's queries were.
  __device__ __forceinline__ uint32_t out() const { return shared_address(Shape::kQueryStages > 1 ? o : q[0]); }

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
