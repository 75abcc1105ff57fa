// What an attention kernel is compiled for, and how it divides its work.
#pragma once

#include "../../operations/attention.h"

namespace rope::cuda {

// A block has a warpgroup that loads and two that compute, 64 rows each. Rows of shared memory are 128 bytes, a panel
// of 64 columns: what the swizzle of TMA and wgmma spans. Heads that do not fill their last panel leave zeros there.
inline constexpr int kPanelColumns = 64, kPanelRowBytes = 128;
inline constexpr int kComputing = 2, kAttentionThreads = 128 * (1 + kComputing);
inline constexpr int kTurningWarps = 3;         // of the warpgroup that loads
inline constexpr int kSharedBytes = 227 << 10;  // that a block may have

template <int kHeadDim_, int kValueDim_>
struct AttentionShape {
  static constexpr int kHeadDim = kHeadDim_, kValueDim = kValueDim_;
  static constexpr int kRows = 64 * kComputing;  // queries of a tile
  static constexpr int kKeys = 128;              // of a block
  static constexpr int kHeadPanels = divide_up(kHeadDim, kPanelColumns);
  static constexpr int kValuePanels = divide_up(kValueDim, kPanelColumns);
  static constexpr int kQueryBytes = kHeadPanels * kRows * kPanelRowBytes;
  static constexpr int kKeyBytes = kHeadPanels * kKeys * kPanelRowBytes;
  static constexpr int kValueBytes = kValuePanels * kKeys * kPanelRowBytes;
  static constexpr int kOutBytes = kValuePanels * kRows * kPanelRowBytes;
  // A second stage, loaded ahead, and a place for results of their own, where they fit beside barriers.
  static constexpr int kStagedBytes = 2 * (kQueryBytes + kKeyBytes + kValueBytes) + kOutBytes;
  static constexpr int kQueryStages = kStagedBytes + 1024 <= kSharedBytes ? 2 : 1;
  static_assert(kHeadDim % 16 == 0 && kValueDim % 16 == 0 && kKeys % 16 == 0, "wgmma goes by 16");
};

// Which kernels are compiled.
struct AttentionCode {
  int32_t head_dim, v_head_dim;
  bool softcap;
};
constexpr bool operator==(const AttentionCode& a, const AttentionCode& b) {
  return a.head_dim == b.head_dim && a.v_head_dim == b.v_head_dim && a.softcap == b.softcap;
}
inline constexpr AttentionCode kAttentionCodes[] = {{64, 64, false},  {64, 64, true},    {96, 96, false},
                                                    {96, 96, true},   {128, 128, false}, {128, 128, true},
                                                    {192, 128, false}};

// Queries of one head of one sequence: `row` is the first, counted in the sequence.
struct Tile {
  int32_t row;
  int32_t head;              // of q; negative: no tile is left
  int32_t sequence;          // where a tensor has a dimension of sequences; ragged: 0
  int32_t q_begin, k_begin;  // ragged: the sequence's first tokens; else 0
  int32_t q_tokens, k_tokens;
};

// Blocks of kKeys keys that some query of a tile sees, [begin, end), and those that all of them see whole, [full_begin,
// full_end); either may be empty, the second in any way.
struct SeenBlocks {
  int32_t begin, end, full_begin, full_end;
};

template <int kRows, int kKeys>
ROPE_INLINE SeenBlocks seen_blocks(const Tile& t, int32_t window_left, int32_t window_right) {
  const auto positive = [](int32_t x) { return x > 0 ? x : 0; };
  const int32_t first = t.row + t.k_tokens - t.q_tokens, last = first + kRows - 1;  // where its queries stand
  int32_t end = t.k_tokens, full_end = t.k_tokens;
  if (window_right != kNoWindow) {
    if (last + window_right + 1 < end) end = positive(last + window_right + 1);
    if (first + window_right + 1 < full_end) full_end = positive(first + window_right + 1);
  }
  SeenBlocks seen = {0, (end + kKeys - 1) / kKeys, 0, full_end / kKeys};
  if (window_left != kNoWindow) {
    seen.begin = positive(first - window_left) / kKeys;
    seen.full_begin = (positive(last - window_left) + kKeys - 1) / kKeys;
  }
  return seen;
}

}  // namespace rope::cuda
