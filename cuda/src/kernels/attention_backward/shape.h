// What the kernels of attention's gradients are compiled for, and how they divide their work.
#pragma once

#include "../attention/shape.h"

namespace rope::cuda {

// A block has the keys and values of kKeys keys, 64 for each warpgroup that computes, and takes in queries, and the
// gradients of their outputs, kBackwardRows at a time.
template <int kDim_>
struct BackwardShape {
  static constexpr int kDim = kDim_;  // of heads of q, k and v
  static constexpr int kRows = kBackwardRows, kKeys = 64 * kComputing;
  static constexpr int kPanels = kDim / kPanelColumns;
  static constexpr int kRowsBytes = kPanels * kRows * kPanelRowBytes;  // of q, or of d_o
  static constexpr int kKeysBytes = kPanels * kKeys * kPanelRowBytes;  // of k, or of v
  static constexpr int kSumBytes = kRows * 4;                          // a float for each row
  // dq is divided among the warpgroups by columns.
  static constexpr int kColumns = kDim / kComputing;
  static constexpr int kPartFloats = kRows * kColumns;
  static_assert(kDim == 64 || kDim == 128, "columns of a warpgroup are a panel, or half of one");
  static_assert(kRows == kPanelColumns, "rows of the gradients of scores, transposed, are a panel wide");
};

inline constexpr int32_t kBackwardCodes[] = {64, 128};  // head_dim

// Of a sequence; where a tensor has a dimension of sequences, `sequence` is its place there.
struct BackwardSequence {
  int32_t sequence, q_begin, k_begin, q_tokens, k_tokens;
  int64_t first_row;  // in the workspace, of a head
};

// Blocks of kBackwardRows queries that see some of a block's keys, [begin, end), and those in which all queries see all
// of them, [full_begin, full_end); either may be empty, the second in any way. A block that is not whole is none of
// these.
template <int kKeys>
ROPE_INLINE SeenBlocks seeing_blocks(const BackwardSequence& s, int32_t first_key, int32_t window_left,
                                     int32_t window_right) {
  constexpr int kRows = kBackwardRows;
  const auto positive = [](int32_t x) { return x > 0 ? x : 0; };
  const int32_t first = first_key - s.k_tokens + s.q_tokens, last = first + kKeys - 1;  // queries that stand there
  const int32_t end = (s.q_tokens + kRows - 1) / kRows;
  SeenBlocks seeing = {0, end, 0, s.q_tokens / kRows};
  if (window_right != kNoWindow) {
    seeing.begin = positive(first - window_right) / kRows;
    seeing.full_begin = (positive(last - window_right) + kRows - 1) / kRows;
  }
  if (window_left != kNoWindow) {
    const int32_t some = (positive(last + window_left + 1) + kRows - 1) / kRows;
    if (some < end) seeing.end = some;
    const int32_t all = positive(first + window_left + 1) / kRows;
    if (all < seeing.full_end) seeing.full_end = all;
  }
  if (first_key + kKeys > s.k_tokens) seeing.full_end = 0;
  return seeing;
}

}  // namespace rope::cuda
