// The warpgroup that does not compute: one thread loads; two warps add parts of dq to those in the workspace.
#pragma once

#include "storage.cuh"

namespace rope::cuda {

template <class Shape>
class BackwardLoader {
 public:
  __device__ __forceinline__ BackwardLoader(const KeysArgs& args, const BackwardStorage<Shape>& storage)
      : args_(args), storage_(storage) {}

  __device__ __forceinline__ void run() {
    wait_for_previous();
    const BackwardWork<Shape> work(args_);
#pragma unroll 1
    for (int32_t n = work.begin; n < work.end; ++n, ++keys_.count) {
      load_keys(work, n);
      const SeenBlocks seeing =
          seeing_blocks<Shape::kKeys>(work.s, n * Shape::kKeys, args_.window_left, args_.window_right);
#pragma unroll 1
      for (int32_t head = work.head * args_.group; head < (work.head + 1) * args_.group; ++head)
#pragma unroll 1
        for (int32_t m = seeing.begin; m < seeing.end; ++m, ++rows_.count) load_rows(work.s, head, m * Shape::kRows);
    }
  }

 private:
  __device__ __forceinline__ void load_keys(const BackwardWork<Shape>& work, int32_t n) const {
    const auto ring = storage_.keys_and_values();
    const int row = work.s.k_begin + n * Shape::kKeys;
    ring.wait_empty(keys_);
    barrier_expect(ring.full, 2 * Shape::kKeysBytes);
    load_panels<Shape::kKeys>(ring.data, &args_.k, ring.full, row, work.head, work.s.sequence);
    load_panels<Shape::kKeys>(ring.data + Shape::kKeysBytes, &args_.v, ring.full, row, work.head, work.s.sequence);
  }

  __device__ __forceinline__ void load_rows(const BackwardSequence& s, int32_t head, int32_t row) const {
    const int64_t sums = head * args_.layout.rows + s.first_row + row;
    load(storage_.queries(), &args_.q, s, head, row, storage_.lse[rows_.index()], args_.layout.lse + sums);
    load(storage_.gradients(), &args_.d_o, s, head, row, storage_.d[rows_.index()], args_.layout.d + sums);
  }

  template <class Rows>
  __device__ __forceinline__ void load(const Rows& ring, const TensorMap* map, const BackwardSequence& s, int32_t head,
                                       int32_t row, const float* sums, const float* sums_from) const {
    ring.wait_empty(rows_);
    barrier_expect(ring.filled(rows_), Shape::kRowsBytes + Shape::kSumBytes);
    load_panels<Shape::kRows>(ring.buffer(rows_), map, ring.filled(rows_), s.q_begin + row, head, s.sequence);
    load_bytes(shared_address(sums), sums_from, Shape::kSumBytes, ring.filled(rows_));
  }

  template <int kRows>
  static __device__ __forceinline__ void load_panels(uint32_t to, const TensorMap* map, uint32_t barrier, int row,
                                                     int head, int sequence) {
#pragma unroll
    for (int c = 0; c < Shape::kPanels; ++c)
      load_box(to + c * kRows * kPanelRowBytes, map, barrier, c * kPanelColumns, row, head, sequence);
  }

  const KeysArgs& args_;
  const BackwardStorage<Shape>& storage_;
  Stage<1> keys_;
  BlockStage rows_;
};

// By a warp, of the parts of one warpgroup.
template <class Shape>
__device__ __forceinline__ void add_parts(const KeysArgs& args, const BackwardStorage<Shape>& storage, int warpgroup) {
  constexpr int kBytes = Shape::kPartFloats * 4;
  wait_for_previous();
  const BackwardWork<Shape> work(args);
  const bool leader = threadIdx.x % kWarp == 0;
  bool first = true;
#pragma unroll 1
  for (int32_t n = work.begin; n < work.end; ++n) {
    const SeenBlocks seeing =
        seeing_blocks<Shape::kKeys>(work.s, n * Shape::kKeys, args.window_left, args.window_right);
#pragma unroll 1
    for (int32_t head = work.head * args.group; head < (work.head + 1) * args.group; ++head)
#pragma unroll 1
      for (int32_t m = seeing.begin; m < seeing.end; ++m) {
        if (!first) {
          if (leader) wait_stores_read();
          synchronize(true);
          group_arrive(kPartEmpty + warpgroup, kPartThreads);
        }
        first = false;
        group_sync(kPartFull + warpgroup, kPartThreads);
        if (leader) {
          const int64_t row = head * args.layout.rows + work.s.first_row + m * Shape::kRows;
          add_floats(args.layout.dq + row * Shape::kDim + warpgroup * Shape::kPartFloats,
                     shared_address(storage.dq[warpgroup]), kBytes);
          commit_stores();
        }
      }
    if (leader) wait_stores();  // what the next keys add comes behind
  }
}

}  // namespace rope::cuda
