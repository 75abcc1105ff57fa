// A warpgroup that computes the gradients of 64 keys, and its columns' part of those of queries, from one block of
// queries after the other. What is computed is transposed, keys by queries: so weights and the gradients of scores are
// left operands in registers for dv += P^T d_o and dk += dS^T q; dS^T goes through shared memory for dq = dS k alone
// (FlashAttention-3, arXiv:2407.08608).
#pragma once

#include "../attention/consumer.cuh"
#include "producer.cuh"

namespace rope::cuda {

template <class Shape, class D>
class BackwardConsumer {
 public:
  __device__ __forceinline__ BackwardConsumer(const KeysArgs& args, BackwardStorage<Shape>& storage, int warpgroup)
      : args_(args),
        storage_(storage),
        queries_(storage.queries()),
        gradients_(storage.gradients()),
        warpgroup_(warpgroup),
        thread_(int(threadIdx.x) % kWarpgroup),
        first_key_(warpgroup * 64 + thread_ / kWarp * 16 + thread_ % kWarp / 4),
        my_matrix_row_(
            chunk_place<Shape::kKeys>(warpgroup * 64 + thread_ / kWarp * 16 + thread_ % 16, thread_ / 16 % 2)),
        my_keys_(warpgroup * (64 * kPanelRowBytes / 16)),
        key_matrix_(matrix_at(shared_address(storage.k))),
        value_matrix_(matrix_at(shared_address(storage.v))) {}

  __device__ __forceinline__ void run() {
    wait_for_previous();
    const BackwardWork<Shape> work(args_);
    const auto keys = storage_.keys_and_values();
#pragma unroll 1
    for (int32_t n = work.begin; n < work.end; ++n, ++loaded_.count) {
#pragma unroll
      for (int i = 0; i < Shape::kDim / 2; ++i) dk_[i] = dv_[i] = 0.0f;
      keys.wait_full(loaded_);
      const int32_t keys_left = work.s.k_tokens - n * Shape::kKeys;
      if (args_.layout.q_indptr && keys_left < Shape::kKeys) {
        clear_behind<Shape::kKeys>(shared_address(storage_.k), keys_left);
        clear_behind<Shape::kKeys>(shared_address(storage_.v), keys_left);
        end_clearing();
      }
      const SeenBlocks seeing =
          seeing_blocks<Shape::kKeys>(work.s, n * Shape::kKeys, args_.window_left, args_.window_right);
#pragma unroll 1
      for (int32_t head = 0; head < args_.group; ++head) add_queries(work.s, n, seeing);
      store(work, n, keys_left);
      if (leader()) wait_stores_read();
      group_sync(kMyKeys + warpgroup_, kWarpgroup);
      if (leader()) keys.release(loaded_);
    }
  }

 private:
  static constexpr int kBoth = kComputing * kWarpgroup;
  using Scores = float[Shape::kRows / 2];
  struct KeyRows {
    static constexpr int kRows = Shape::kKeys;
  };

  __device__ __forceinline__ bool leader() const { return thread_ == 0; }

  // All queries of a head that see some of the keys.
  __device__ __forceinline__ void add_queries(const BackwardSequence& s, int32_t n, const SeenBlocks& seeing) {
    int32_t m = seeing.begin;
    const int32_t full_end = min(seeing.end, seeing.full_end);
    int32_t masked_end = seeing.full_begin < full_end ? seeing.full_begin : seeing.end;
    do {
#pragma unroll 1
      for (; m < masked_end; ++m) add_block<true>(s, n, m);
#pragma unroll 1
      for (; m < full_end; ++m) add_block<false>(s, n, m);
      masked_end = seeing.end;
    } while (m < seeing.end);
  }

  template <bool kMasked>
  __device__ __forceinline__ void add_block(const BackwardSequence& s, int32_t n, int32_t m) {
    const uint32_t stage = rows_.index();
    const uint32_t q = queries_.buffer(rows_), d_o = gradients_.buffer(rows_);
    const int32_t rows_left = s.q_tokens - m * Shape::kRows;
    if (kMasked && args_.layout.q_indptr && rows_left < Shape::kRows) {
      queries_.wait_full(rows_);
      gradients_.wait_full(rows_);
      clear_behind<Shape::kRows>(q, rows_left);
      clear_behind<Shape::kRows>(d_o, rows_left);
      end_clearing();
    }
    Scores weights, d_scores;
    uint32_t left[Shape::kRows / 4], d_left[Shape::kRows / 4];  // operands
    queries_.wait_full(rows_);
    start_scores(weights, key_matrix_, q);
    float2 sums[Shape::kRows / 8];
    load_sums(sums, storage_.lse[stage]);
    gradients_.wait_full(rows_);
    start_scores(d_scores, value_matrix_, d_o);
    products_wait<1>();
    pin(weights);
    weigh(weights, sums);
    if constexpr (kMasked) mask(weights, s, n, m);
    narrow(left, weights);
    load_sums(sums, storage_.d[stage]);
    products_wait<0>();
    pin(d_scores);
    differentiate(d_scores, weights, sums);
    narrow(d_left, d_scores);
    store_transposed(stage, d_left);

    start_sums(dv_, left, d_o);
    fence_async_proxy();
    group_sync(kComputingMeet, kBoth);
    float dq[Shape::kColumns / 2];
    start_queries(dq, stage);
    products_wait<1>();
    pin(dv_);
    if (leader()) gradients_.release(rows_);
    start_sums(dk_, d_left, q);
    products_wait<1>();
    pin(dq);
    hand_over(dq);
    products_wait<0>();
    pin(dk_);
    if (leader()) queries_.release(rows_);
    ++rows_.count;
  }

  // Keys times queries, or values times gradients of outputs.
  __device__ __forceinline__ void start_scores(Scores& scores, uint32_t of_keys, uint32_t rows) const {
    const uint32_t a = opaque(of_keys + my_keys_), b = matrix_at(rows);
    products_begin();
    pin(scores);
#pragma unroll
    for (int i = 0; i < Shape::kDim / 16; ++i) {
      const int panel = i / 4, bytes = i % 4 * 32;
      Product<Shape::kRows, D>::keys(scores, matrix(a + (panel * Shape::kKeys * kPanelRowBytes + bytes) / 16),
                                     matrix(b + (panel * Shape::kRows * kPanelRowBytes + bytes) / 16), i != 0);
    }
    products_commit();
  }

  // dv or dk.
  __device__ __forceinline__ void start_sums(float (&sums)[Shape::kDim / 2], const uint32_t* left,
                                             uint32_t rows) const {
    const uint32_t b = matrix_at(rows, Shape::kRows * kPanelRowBytes);
    products_begin();
    pin(sums);
#pragma unroll
    for (int i = 0; i < Shape::kRows / 16; ++i)
      Product<Shape::kDim, D>::values(sums, left + 4 * i, matrix(b + i * (16 * kPanelRowBytes / 16)));
    products_commit();
  }

  // dq: this warpgroup's columns, of all keys.
  __device__ __forceinline__ void start_queries(float (&dq)[Shape::kColumns / 2], uint32_t stage) const {
    constexpr uint32_t kPart = Shape::kColumns == kPanelColumns ? Shape::kKeys * kPanelRowBytes : Shape::kColumns * 2;
    const uint32_t a = matrix_at(shared_address(storage_.d_scores[stage]));
    const uint32_t b =
        opaque(matrix_at(shared_address(storage_.k) + warpgroup_ * kPart, Shape::kKeys * kPanelRowBytes));
    products_begin();
    pin(dq);
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 16; ++i)
      TransposedProduct<Shape::kColumns, D>::add(dq, matrix(a + i * (16 * kPanelRowBytes / 16)),
                                                 matrix(b + i * (16 * kPanelRowBytes / 16)), i != 0);
    products_commit();
  }

  // Of the queries of this thread's columns, two neighbours of every eight.
  __device__ __forceinline__ void load_sums(float2 (&sums)[Shape::kRows / 8], const float* from) const {
#pragma unroll
    for (int j = 0; j < Shape::kRows / 8; ++j)
      sums[j] = *reinterpret_cast<const float2*>(from + 8 * j + thread_ % 4 * 2);
  }

  __device__ __forceinline__ void weigh(Scores& scores, const float2 (&lse)[Shape::kRows / 8]) const {
#pragma unroll
    for (int i = 0; i < Shape::kRows / 2; i += 2) {
      scores[i] = exp2_fast(__builtin_fmaf(scores[i], args_.scale_log2, -lse[i / 4].x));
      scores[i + 1] = exp2_fast(__builtin_fmaf(scores[i + 1], args_.scale_log2, -lse[i / 4].y));
    }
  }

  static __device__ __forceinline__ void differentiate(Scores& d_scores, const Scores& weights,
                                                       const float2 (&d)[Shape::kRows / 8]) {
#pragma unroll
    for (int i = 0; i < Shape::kRows / 2; i += 2) {
      d_scores[i] = weights[i] * (d_scores[i] - d[i / 4].x);
      d_scores[i + 1] = weights[i + 1] * (d_scores[i + 1] - d[i / 4].y);
    }
  }

  // Weights of queries that do not see a key, and of keys behind the last one, to 0.
  __device__ __forceinline__ void mask(Scores& weights, const BackwardSequence& s, int32_t n, int32_t m) const {
    const int32_t first = n * Shape::kKeys - s.k_tokens;
    const int32_t stands = first + s.q_tokens - m * Shape::kRows + first_key_ - thread_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t begin = args_.window_right == kNoWindow ? 0 : stands + 8 * r - args_.window_right;
      int32_t end = args_.window_left == kNoWindow ? Shape::kRows : stands + 8 * r + args_.window_left + 1;
      if (first + first_key_ + 8 * r >= 0) end = 0;
#pragma unroll
      for (int i = 2 * r; i < Shape::kRows / 2; i += 4)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (2 * (i - 2 * r) + c < begin || 2 * (i - 2 * r) + c >= end) weights[i + c] = 0.0f;
    }
  }

  static __device__ __forceinline__ void narrow(uint32_t (&words)[Shape::kRows / 4], const Scores& x) {
#pragma unroll
    for (int i = 0; i < Shape::kRows / 4; ++i) words[i] = D::narrow2(x[2 * i], x[2 * i + 1]);
  }

  // A warpgroup's rows of dS^T. Both had read what was there two blocks ago before they met for the last one.
  __device__ __forceinline__ void store_transposed(uint32_t stage, const uint32_t (&words)[Shape::kRows / 4]) const {
    const uint32_t to = shared_address(storage_.d_scores[stage]), mine = opaque(my_matrix_row_);
#pragma unroll
    for (int j = 0; j < Shape::kRows / 16; ++j)
      store_matrices(to + (mine ^ j * 32), words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3]);
  }

  // To the warp that adds it up, once that has read the last part.
  __device__ __forceinline__ void hand_over(const float (&dq)[Shape::kColumns / 2]) {
    if (handed_over_) group_sync(kPartEmpty + warpgroup_, kPartThreads);
    handed_over_ = true;
    const uint32_t to = shared_address(storage_.dq[warpgroup_]) + thread_ * 16;
#pragma unroll
    for (int j = 0; j < Shape::kColumns / 8; ++j) {
      uint4 x;
      __builtin_memcpy(&x, dq + 4 * j, sizeof x);
      store_shared(to + j * (kWarpgroup * 16), x);
    }
    fence_async_proxy();
    group_arrive(kPartFull + warpgroup_, kPartThreads);
  }

  // Rows behind a sequence's end are other memory of a ragged tensor: a NaN there, times 0, is NaN.
  template <int kRows>
  __device__ __forceinline__ void clear_behind(uint32_t rows, int32_t row) const {
    for (int u = row * 8 + warpgroup_ * kWarpgroup + thread_; u < kRows * 8; u += kBoth)
#pragma unroll
      for (int panel = 0; panel < Shape::kPanels; ++panel)
        store_shared(rows + panel * kRows * kPanelRowBytes + u * 16, {0, 0, 0, 0});
  }
  __device__ __forceinline__ void end_clearing() const {
    fence_async_proxy();
    group_sync(kComputingMeet, kBoth);
  }

  // dk and dv by way of shared memory, where the keys and values were; at the end of a ragged sequence, row by row.
  __device__ __forceinline__ void store(const BackwardWork<Shape>& work, int32_t n, int32_t keys_left) {
#pragma unroll
    for (float& x : dk_) x *= args_.scale;
    group_sync(kComputingMeet, kBoth);  // both have read all keys
    store_panels(shared_address(storage_.k), dk_);
    store_panels(shared_address(storage_.v), dv_);
    if (args_.turn.cos) turn_back(work, n);
    fence_async_proxy();
    group_sync(kMyKeys + warpgroup_, kWarpgroup);
    const int32_t first = warpgroup_ * 64, row = work.s.k_begin + n * Shape::kKeys + first;
    if (args_.layout.q_indptr && keys_left - first < 64) {
      store_rows(storage_.k, args_.dk_rows, work.head, row, keys_left - first);
      store_rows(storage_.v, args_.dv_rows, work.head, row, keys_left - first);
    } else if (leader()) {
#pragma unroll
      for (int c = 0; c < Shape::kPanels; ++c) {
        const uint32_t from = chunk_place<Shape::kKeys>(first, c * 8);
        store_box(&args_.dk, shared_address(storage_.k) + from, c * kPanelColumns, row, work.head, work.s.sequence);
        store_box(&args_.dv, shared_address(storage_.v) + from, c * kPanelColumns, row, work.head, work.s.sequence);
      }
      commit_stores();
    }
    synchronize(true);
  }

  // A warpgroup's rows of dk, by the tokens' rows of cos and sin.
  __device__ __forceinline__ void turn_back(const BackwardWork<Shape>& work, int32_t n) const {
    const BackwardSequence& s = work.s;
    const Tile tile = {n * Shape::kKeys, work.head, s.sequence, s.k_begin, s.k_begin, s.k_tokens, s.k_tokens};
    QueryTurner<KeyRows, D, kWarpgroup, 1, true> turner(args_.turn, tile, warpgroup_ * 64, 64, int(opaque(thread_)));
    group_sync(kMyKeys + warpgroup_, kWarpgroup);
    turner.turn(shared_address(storage_.k));
  }

  __device__ __forceinline__ void store_panels(uint32_t to, const float (&sums)[Shape::kDim / 2]) const {
    const uint32_t mine = opaque(my_matrix_row_);
#pragma unroll
    for (int j = 0; j < Shape::kDim / 16; ++j) {
      const float* x = sums + 8 * j;
      store_matrices(to + j / 4 * Shape::kKeys * kPanelRowBytes + (mine ^ j % 4 * 32), D::narrow2(x[0], x[1]),
                     D::narrow2(x[2], x[3]), D::narrow2(x[4], x[5]), D::narrow2(x[6], x[7]));
    }
  }

  // Ragged: a tensor has no dimension of sequences.
  __device__ __forceinline__ void store_rows(const char* from, const AttentionTensor& to, int32_t head, int32_t row,
                                             int32_t rows) const {
    constexpr int kChunks = Shape::kDim / 8;
    for (int u = thread_; u < rows * kChunks; u += kWarpgroup) {
      const int i = u / kChunks, chunk = u % kChunks;
      *reinterpret_cast<uint4*>(to.data + int64_t(row + i) * to.token_stride + head * to.head_stride + chunk * 16) =
          load_shared(shared_address(from) + chunk_place<Shape::kKeys>(warpgroup_ * 64 + i, chunk));
    }
  }

  const KeysArgs& args_;
  BackwardStorage<Shape>& storage_;
  const typename BackwardStorage<Shape>::RowsRing queries_, gradients_;
  const int warpgroup_, thread_, first_key_;
  // Of the four matrices that store_matrices() stores: where the thread's row lies, of the first 16 columns of a panel.
  // Of the j-th: that, ^ 32 j.
  const uint32_t my_matrix_row_;
  const uint32_t my_keys_, key_matrix_, value_matrix_;
  Stage<1> loaded_;
  BlockStage rows_;
  bool handed_over_ = false;
  float dk_[Shape::kDim / 2], dv_[Shape::kDim / 2];
};

}  // namespace rope::cuda
