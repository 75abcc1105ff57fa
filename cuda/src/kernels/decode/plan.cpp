#include "plan.h"

#include <algorithm>

namespace rope::cuda {
namespace {

constexpr int64_t kAccessBytes = 16;  // pieces of rows
// Resident blocks of a multiprocessor, by the registers of a thread (kernel.cuh).
constexpr int kResident[] = {0, 3, 2};
// A split has no more keys and values than these where there are more than enough splits: what a block waits for at its
// start is then short beside them, and so is the last wave of blocks beside all of them.
constexpr int64_t kSplitBytes = 256 << 10;
constexpr int64_t kMaxSplits = 65535;  // of a grid's second dimension

bool by_pieces(const DecodePages& pages) {
  return (reinterpret_cast<uintptr_t>(pages.data) | uintptr_t(pages.page_stride) | uintptr_t(pages.entry_stride) |
          uintptr_t(pages.head_stride)) %
             kAccessBytes ==
         0;
}

int32_t round_up(int64_t x, int64_t step) {
  return int32_t(std::min<int64_t>((x + step - 1) / step * step, kMaxDecodeLength));
}

}  // namespace

DecodePlan plan_decode(const DecodeParams& p, int multiprocessors, bool memory_read) {
  DecodePlan plan = {};
  const int32_t rows = p.q_heads / p.k_heads * p.q_tokens;
  plan.code = {p.type, p.head_dim, rows > 8 ? 2 : 1};
  if (p.type != OutType::kSame && p.type != OutType::kE4M3 && p.type != OutType::kE5M2)
    plan.unsupported = "k_quantize.out_dtype: ROPE_OUT_SAME or fp8 on CUDA";
  if (p.head_dim != 64 && p.head_dim != 128) plan.unsupported = "head_dim: 64 or 128 on CUDA";
  if (memory_read && (!by_pieces(p.k) || !by_pieces(p.v)))
    plan.unsupported = !by_pieces(p.k) ? "cache.k: an address and strides that are multiples of 16 bytes"
                                       : "cache.v: an address and strides that are multiples of 16 bytes";
  if (plan.unsupported) return plan;
  plan.row_blocks = divide_up(rows, 8 * plan.code.row_tiles);
  plan.units = int64_t(p.requests) * p.k_heads * plan.row_blocks;
  const int64_t row_bytes = p.head_dim * (p.type == OutType::kSame ? 2 : 1);
  const int64_t step = kDecodeWarps * (row_bytes == 256 ? 16 : 32);  // a tile for each warp
  const int64_t resident = int64_t(multiprocessors) * kResident[plan.code.row_tiles];
  const int64_t keys = std::max(p.max_length, 1);
  plan.split = p.split;
  if (!plan.split) {
    // All blocks at once, or as many more as splits of that size are.
    const int64_t wave = divide_up(keys, std::max<int64_t>(resident / std::max<int64_t>(plan.units, 1), 1));
    const int64_t size = plan.units < 8 * resident ? std::min(wave, kSplitBytes / (2 * row_bytes)) : keys;
    plan.split = round_up(std::max<int64_t>(size, divide_up(keys, kMaxSplits)), step);
  }
  plan.splits = divide_up(keys, plan.split);
  if (plan.units > INT32_MAX) {
    plan.unsupported = "num_requests: too many heads of requests";
  } else if (plan.splits > kMaxSplits) {
    plan.unsupported = "split: at most 65535 of max_length";
  } else if (plan.splits > 1 && plan.units > kDecodeCounters) {
    plan.unsupported = "split: at most 32768 heads of requests that are split";
  } else if (plan.splits > 1) {
    const int64_t results = plan.units * plan.splits * 8 * plan.code.row_tiles;
    plan.workspace_bytes = 4 * (kDecodeCounters + results * (p.head_dim + 2));
  }
  return plan;
}

}  // namespace rope::cuda
