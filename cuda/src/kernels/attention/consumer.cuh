// A warpgroup that computes 64 rows of each tile: S = Q K^T, P = powers of S, O += P V, block of keys by block. The
// product of the next scores is issued before that of the last powers, and softmax runs under both. The two warpgroups
// take turns in issuing, so that one's softmax runs under the other's products (FlashAttention-3, arXiv:2407.08608).
#pragma once

#include "producer.cuh"
#include "softmax.cuh"

namespace rope::cuda {

// Named barriers. kIssue, which lets a warpgroup issue products, and kMyRows: + the warpgroup's number.
enum GroupBarrier : int { kClearing = 1, kIssue = 2, kMyRows = 4 };

// The low word of a matrix descriptor: its address; `panel_bytes`, of matrices whose rows are panels wide, between
// these.
__device__ __forceinline__ uint32_t matrix_at(uint32_t address, uint32_t panel_bytes = 0) {
  return (address & 0x3ffff) >> 4 | panel_bytes >> 4 << 16;
}

// The high word: swizzled by 128 bytes, groups of 8 rows of 128 bytes behind one another.
__device__ __forceinline__ uint64_t matrix(uint32_t low) {
  constexpr uint32_t kHigh = 1u << 30 | 8 * kPanelRowBytes >> 4;
  return uint64_t(kHigh) << 32 | low;
}

template <class Shape, class D, bool kSoftcap>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const AttentionArgs& args, const AttentionStorage<Shape>& storage, int warpgroup)
      : args_(args),
        storage_(storage),
        queries_(storage.queries()),
        keys_(storage.keys()),
        values_(storage.values()),
        warpgroup_(warpgroup),
        thread_(int(threadIdx.x) % kWarpgroup),
        first_row_(warpgroup * 64 + thread_ / kWarp * 16 + thread_ % kWarp / 4),
        query_matrix_(matrix_at(queries_.data) + warpgroup * (64 * kPanelRowBytes / 16)),
        key_matrix_(matrix_at(keys_.data)),
        value_matrix_(matrix_at(values_.data, Shape::kKeys * kPanelRowBytes)) {}

  __device__ __forceinline__ void run() {
    if (warpgroup_ == 0) group_arrive(kIssue, kBoth);  // it issues first
    if (args_.turn.cos) turn_first_queries();
#pragma unroll 1
    for (;; ++stage_.count) {
      queries_.wait_full(stage_);
      tile_ = storage_.tile[stage_.index()];
      if (tile_.head < 0) break;
      softmax_.clear();
#pragma unroll
      for (float& x : out_) x = 0.0f;
      const SeenBlocks seen = seen_blocks<Shape::kRows, Shape::kKeys>(tile_, args_.window_left, args_.window_right);
      float inverse[2];
      if (seen.begin < seen.end) {
        attend(seen, inverse);
      } else {
        end_rows(inverse);
        group_sync(kMyRows + warpgroup_, kWarpgroup);  // all have read the tile
        release_queries();
      }
      scale_out(inverse);
      store_out();
    }
    if (leader()) wait_stores_read();
    synchronize(true);
    if (warpgroup_ != 0) group_sync(kIssue, kBoth);  // nobody leaves an arrival behind
  }

 private:
  static constexpr int kBoth = kComputing * kWarpgroup;
  using Scores = float[Shape::kKeys / 2];

  __device__ __forceinline__ bool leader() const { return thread_ == 0; }

  // While there is no other work, those that compute turn their rows of the first tile themselves; nobody else does.
  __device__ __forceinline__ void turn_first_queries() const {
    wait_for_previous();
    const Tile t = TileList<Shape>(args_).find(int32_t(blockIdx.x));
    if (t.head < 0) return;
    QueryTurner<Shape, D, kWarpgroup, 4> turner(args_.turn, t, warpgroup_ * 64, 64, thread_);
    queries_.wait_full(stage_);
    turner.turn(queries_.buffer(stage_));
    fence_async_proxy();
    group_sync(kMyRows + warpgroup_, kWarpgroup);
  }

  // All blocks of a tile, the last one first.
  __device__ __forceinline__ void attend(const SeenBlocks& seen, float (&inverse)[2]) {
    first_block(seen.end - 1);
    int32_t n = seen.end - 2, masked_end = max(seen.begin, seen.full_end);
    const int32_t full_end = max(seen.begin, seen.full_begin);
    do {
#pragma unroll 1
      for (; n >= masked_end; --n) next_block<true>(n);
#pragma unroll 1
      for (; n >= full_end; --n) next_block<false>(n);
      masked_end = seen.begin;
    } while (n >= seen.begin);
    release_queries();
    values_.wait_full(block_);
    start_values(block_);
    end_rows(inverse);
    products_wait<0>();
    pin(out_);
    if (leader()) values_.release(block_);
    ++block_.count;
  }

  __device__ __forceinline__ void first_block(int32_t n) {
    Scores scores;
    keys_.wait_full(block_);
    start_scores(scores);
    products_wait<0>();
    pin(scores);
    if (leader()) keys_.release(block_);
    add_scores<true>(scores, n);
    narrow(scores);
    if (args_.k_indptr) clear_values_behind(tile_.k_tokens - n * Shape::kKeys);
  }

  // Scores of block n under way with the values of the one before.
  template <bool kMasked>
  __device__ __forceinline__ void next_block(int32_t n) {
    const BlockStage last = block_;
    ++block_.count;
    Scores scores;
    keys_.wait_full(block_);
    group_sync(kIssue + warpgroup_, kBoth);
    start_scores(scores);
    values_.wait_full(last);
    start_values(last);
    group_arrive(kIssue + 1 - warpgroup_, kBoth);
    products_wait<1>();
    pin(scores);
    if (leader()) keys_.release(block_);
    add_scores<kMasked>(scores, n);
    products_wait<0>();
    pin(out_);
    if (leader()) values_.release(last);
    narrow(scores);
    scale_out(softmax_.factor);
  }

  __device__ __forceinline__ void start_scores(Scores& scores) {
    const uint32_t q = query_matrix_ + stage_.index() * (Shape::kQueryBytes / 16);
    const uint32_t k = key_matrix_ + block_.index() * (Shape::kKeyBytes / 16);
    products_begin();
    pin(scores);
#pragma unroll
    for (int i = 0; i < Shape::kHeadDim / 16; ++i) {
      const int panel = i / 4, bytes = i % 4 * 32;
      Product<Shape::kKeys, D>::keys(scores, matrix(q + (panel * Shape::kRows * kPanelRowBytes + bytes) / 16),
                                     matrix(k + (panel * Shape::kKeys * kPanelRowBytes + bytes) / 16), i != 0);
    }
    products_commit();
  }

  __device__ __forceinline__ void start_values(BlockStage block) {
    const uint32_t v = value_matrix_ + block.index() * (Shape::kValueBytes / 16);
    products_begin();
    pin(out_);
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 16; ++i)
      Product<Shape::kValueDim, D>::values(out_, powers_ + 4 * i, matrix(v + i * (16 * kPanelRowBytes / 16)));
    products_commit();
  }

  template <bool kMasked>
  __device__ __forceinline__ void add_scores(Scores& scores, int32_t n) {
    if constexpr (kSoftcap) {
#pragma unroll
      for (float& x : scores)  // tanh(y) = 1 - 2 / (e^2y + 1)
        x = __builtin_fmaf(-2.0f, reciprocal_fast(exp2_fast(x * args_.softcap_scale) + 1.0f), 1.0f);
    }
    if constexpr (kMasked) mask(scores, n);
    softmax_.template add<kMasked>(scores, args_.scale_log2);
  }

  __device__ __forceinline__ void mask(Scores& scores, int32_t n) {
    const int32_t first_key = n * Shape::kKeys + thread_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t stands = tile_.row + first_row_ + 8 * r + tile_.k_tokens - tile_.q_tokens;
      int32_t end = tile_.k_tokens;
      if (args_.window_right != kNoWindow) end = min(end, stands + args_.window_right + 1);
      end -= first_key;
#pragma unroll
      for (int i = 2 * r; i < Shape::kKeys / 2; i += 4)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (2 * (i - 2 * r) + c >= end) scores[i + c] = kMinusInfinity;
      if (args_.window_left == kNoWindow) continue;
      const int32_t begin = stands - args_.window_left - first_key;
#pragma unroll
      for (int i = 2 * r; i < Shape::kKeys / 2; i += 4)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (2 * (i - 2 * r) + c < begin) scores[i + c] = kMinusInfinity;
    }
  }

  __device__ __forceinline__ void narrow(const Scores& scores) {
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 4; ++i) powers_[i] = D::narrow2(scores[2 * i], scores[2 * i + 1]);
  }

  // Rows behind a sequence's values are other memory of a ragged tensor: a NaN there, times a power of 0, is NaN.
  __device__ __forceinline__ void clear_values_behind(int32_t row) {
    if (row >= Shape::kKeys) return;
    values_.wait_full(block_);
    for (int u = row * 8 + warpgroup_ * kWarpgroup + thread_; u < Shape::kKeys * 8; u += kBoth)
#pragma unroll
      for (int panel = 0; panel < Shape::kValuePanels; ++panel)
        store_shared(values_.buffer(block_) + panel * Shape::kKeys * kPanelRowBytes + u * 16, {0, 0, 0, 0});
    fence_async_proxy();
    group_sync(kClearing, kBoth);
  }

  __device__ __forceinline__ void scale_out(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < Shape::kValueDim / 2; ++i) out_[i] *= factor[i / 2 % 2];
  }

  // What the sums added up so far are to be multiplied with, and lse to memory.
  __device__ __forceinline__ void end_rows(float (&inverse)[2]) const {
    const float sink = args_.sinks ? args_.sinks[tile_.head] : kMinusInfinity;
    const int64_t first =
        tile_.sequence * args_.lse_sequence_stride + tile_.head * args_.lse_head_stride + tile_.q_begin;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto end = args_.sinks ? softmax_.end(r, args_.scale_log2, sink) : softmax_.end(r, args_.scale_log2);
      inverse[r] = end.inverse;
      const int32_t row = tile_.row + first_row_ + 8 * r;
      if (args_.lse && thread_ % 4 == 0 && row < tile_.q_tokens) args_.lse[first + row] = end.lse;
    }
  }

  // To shared memory, once the tile before has been read there, and from there by TMA, which clips at the tensor's end;
  // at the end of a ragged sequence, row by row.
  __device__ __forceinline__ void store_out() {
    if (leader()) wait_stores_read();
    synchronize(true);
    group_sync(kMyRows + warpgroup_, kWarpgroup);
    const uint32_t out = storage_.out();
    const int row = warpgroup_ * 64 + thread_ / kWarp * 16 + thread_ % 16;
#pragma unroll
    for (int j = 0; j < Shape::kValueDim / 16; ++j) {
      const float* x = out_ + 8 * j;
      store_matrices(out + chunk_place<Shape::kRows>(row, 2 * j + thread_ / 16 % 2), D::narrow2(x[0], x[1]),
                     D::narrow2(x[2], x[3]), D::narrow2(x[4], x[5]), D::narrow2(x[6], x[7]));
    }
    fence_async_proxy();
    group_sync(kMyRows + warpgroup_, kWarpgroup);
    const int32_t first = tile_.row + warpgroup_ * 64, rows = tile_.q_tokens - first;
    if (args_.q_indptr && rows < 64) {
      store_rows(out, first, rows);
    } else if (leader()) {
#pragma unroll
      for (int c = 0; c < Shape::kValuePanels; ++c)
        store_box(&args_.o, out + chunk_place<Shape::kRows>(warpgroup_ * 64, c * 8), c * kPanelColumns,
                  tile_.q_begin + first, tile_.head, tile_.sequence);
      commit_stores();
    }
    synchronize(true);
    if (Shape::kQueryStages == 1) release_out();
  }

  // With one stage, results go where queries were: release_out().
  __device__ __forceinline__ void release_queries() const {
    if (Shape::kQueryStages > 1 && leader()) queries_.release(stage_);
  }

  __device__ __forceinline__ void release_out() {
    group_sync(kMyRows + warpgroup_, kWarpgroup);  // rows are read
    if (leader()) {
      wait_stores_read();
      queries_.release(stage_);
    }
    synchronize(true);
  }

  __device__ __forceinline__ void store_rows(uint32_t out, int32_t first, int32_t rows) const {
    constexpr int kChunks = Shape::kValueDim / 8;
    char* to = args_.o_rows + int64_t(tile_.q_begin + first) * args_.o_token_stride + tile_.head * args_.o_head_stride;
    for (int u = thread_; u < rows * kChunks; u += kWarpgroup) {
      const int row = u / kChunks, chunk = u % kChunks;
      *reinterpret_cast<uint4*>(to + row * args_.o_token_stride + chunk * 16) =
          load_shared(out + chunk_place<Shape::kRows>(warpgroup_ * 64 + row, chunk));
    }
  }

  const AttentionArgs& args_;
  const AttentionStorage<Shape>& storage_;
  const QueryRing<Shape> queries_;
  const Ring<Shape::kKeyBytes> keys_;
  const Ring<Shape::kValueBytes> values_;
  const int warpgroup_, thread_, first_row_;
  const uint32_t query_matrix_, key_matrix_, value_matrix_;
  QueryStage<Shape> stage_;
  BlockStage block_;  // of the tile's queries, and of the last block whose scores were started
  Tile tile_;
  OnlineSoftmax softmax_;
  uint32_t powers_[Shape::kKeys / 4];
  float out_[Shape::kValueDim / 2];
};

}  // namespace rope::cuda
