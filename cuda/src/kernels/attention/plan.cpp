#include "plan.h"

#include <algorithm>

#include "../parts/compiled.h"

namespace rope::cuda {
namespace {

constexpr int kElementBytes = 2, kRows = 64 * kComputing;
constexpr int32_t kMaxTokens = 1 << 29;  // sums of tokens and rows stay in 32 bits
// The keys and values of a section: half of the second-level cache of an H100, or of short sequences, whose tiles are
// over sooner than the next section's keys have come, a quarter (ATTENTION.md).
constexpr int32_t kShort = 1024;  // tokens
constexpr int64_t section_bytes(int32_t k_tokens) { return (k_tokens <= kShort ? 16 : 32) << 20; }

bool has_slots(const AttentionTurn& t, int32_t head_dim) {
  const auto by_four = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  return can_turn_on_the_way(t.rotary_dim, t.rotary_offset) && t.rotary_offset + t.rotary_dim <= head_dim &&
         by_four(t.cos) && by_four(t.sin) && t.row_stride % 4 == 0 && t.sequence_stride % 4 == 0;
}

const char* unsupported(const AttentionParams& p, const AttentionCode& code, int multiprocessors) {
  const int64_t sequences = p.q_indptr ? 1 : p.sequences;
  const int64_t q_rows = p.q_indptr ? p.q_total : p.q_tokens, k_rows = p.k_indptr ? p.k_total : p.k_tokens;
  if (!multiprocessors) return "device: attention runs on compute capability 9.0 (H100, H200)";
  if (!p.q_indptr != !p.k_indptr) return "q_indptr, k_indptr: both or neither";
  if (!is_compiled(kAttentionCodes, code))
    return "head_dim, v_head_dim: 64, 96 or 128 both, or 192 and 128 without softcap";
  if (!(p.scale > 0)) return "scale: above 0";
  if (!has_boxes(p.q, sequences, q_rows, p.q_heads))
    return "q: an address and positive strides that are multiples of 16 bytes";
  if (!has_boxes(p.k, sequences, k_rows, p.k_heads))
    return "k: an address and positive strides that are multiples of 16 bytes";
  if (!has_boxes(p.v, sequences, k_rows, p.k_heads))
    return "v: an address and positive strides that are multiples of 16 bytes";
  if (!has_boxes(p.o, sequences, q_rows, p.q_heads))
    return "o: an address and positive strides that are multiples of 16 bytes";
  if (p.turn.cos && !has_slots(p.turn, p.head_dim))
    return "rotation: rotary_dim a multiple of 16 and rotary_offset of 8, rows of cos and sin by multiples of 16 bytes";
  if (p.q_total > kMaxTokens || p.k_total > kMaxTokens) return "q, k: at most 2^29 tokens";
  return nullptr;
}

// Of sequences of at most this length.
int32_t section_heads(const AttentionParams& p) {
  const int64_t head_bytes = std::max<int64_t>(1, int64_t(p.k_tokens) * (p.head_dim + p.v_head_dim) * kElementBytes);
  const int64_t heads = int64_t(p.q_heads) * (p.q_indptr ? 1 : p.sequences), group = p.q_heads / p.k_heads;
  return int32_t(std::min(heads, std::max<int64_t>(1, section_bytes(p.k_tokens) / head_bytes) * group));
}

}  // namespace

bool has_boxes(const AttentionTensor& t, int64_t sequences, int64_t tokens, int32_t heads) {
  constexpr int64_t kAccessBytes = 16, kMaxStride = int64_t(1) << 40;  // of TMA; the second is exclusive
  const auto good = [](int64_t stride, int64_t extent) {
    return extent <= 1 || (stride > 0 && stride < kMaxStride && stride % kAccessBytes == 0);
  };
  return !tokens || (reinterpret_cast<uintptr_t>(t.data) % kAccessBytes == 0 && good(t.sequence_stride, sequences) &&
                     good(t.token_stride, tokens) && good(t.head_stride, heads));
}

int32_t window_limit(int32_t window, int32_t reach) {
  return window == kNoWindow || window >= reach ? kNoWindow : window;
}

AttentionPlan plan_attention(const AttentionParams& p, int multiprocessors) {
  AttentionPlan plan = {};
  plan.empty = !p.sequences || !p.q_heads || !(p.q_indptr ? p.q_total : p.q_tokens);
  if (plan.empty) return plan;
  plan.code = {p.head_dim, p.v_head_dim, p.softcap != 0};
  plan.unsupported = unsupported(p, plan.code, multiprocessors);
  if (plan.unsupported) return plan;
  // Ragged: at most, since every sequence may end in a tile of its own.
  const int64_t blocks =
      p.q_indptr ? p.q_total / kRows + p.sequences : int64_t(divide_up(p.q_tokens, kRows)) * p.sequences;
  const int64_t tiles = blocks * p.q_heads;
  if (tiles + multiprocessors > INT32_MAX) {
    plan.unsupported = "q: too many heads of sequences";
    return plan;
  }
  plan.blocks = unsigned(std::min<int64_t>(tiles, multiprocessors));
  plan.section = section_heads(p);
  plan.window_left = window_limit(p.window_left, p.k_tokens);
  plan.window_right = window_limit(p.window_right, p.q_tokens);
  return plan;
}

}  // namespace rope::cuda
