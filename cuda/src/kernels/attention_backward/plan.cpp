#include "plan.h"

#include <algorithm>

#include "../parts/compiled.h"

namespace rope::cuda {
namespace {

constexpr int32_t kKeys = 64 * kComputing;
constexpr int32_t kMaxTokens = 1 << 29;  // sums of tokens and rows stay in 32 bits
// What a section has in memory; of the second-level cache of an H100, 50 MB.
constexpr int64_t kSectionBytes = 32 << 20;

const char* unsupported(const AttentionBackwardParams& b, int multiprocessors) {
  const AttentionParams& p = b.forward;
  const int64_t sequences = p.q_indptr ? 1 : p.sequences;
  const int64_t q_rows = p.q_indptr ? p.q_total : p.q_tokens, k_rows = p.k_indptr ? p.k_total : p.k_tokens;
  if (!multiprocessors) return "device: gradients of attention run on compute capability 9.0 (H100, H200)";
  if (p.head_dim != p.v_head_dim || !is_compiled(kBackwardCodes, p.head_dim))
    return "head_dim, v_head_dim: 64 or 128 both, for gradients";
  if (p.softcap) return "softcap: 0, for gradients";
  if (!(p.scale > 0)) return "scale: above 0";
  const auto boxed = [&](const AttentionTensor& q_like) { return has_boxes(q_like, sequences, q_rows, p.q_heads); };
  const auto k_boxed = [&](const AttentionTensor& k_like) { return has_boxes(k_like, sequences, k_rows, p.k_heads); };
  if (!boxed(p.q)) return "q: an address and positive strides that are multiples of 16 bytes";
  if (!k_boxed(p.k)) return "k: an address and positive strides that are multiples of 16 bytes";
  if (!k_boxed(p.v)) return "v: an address and positive strides that are multiples of 16 bytes";
  if (!boxed(p.o)) return "o: an address and positive strides that are multiples of 16 bytes";
  if (!boxed(b.d_o)) return "d_o: an address and positive strides that are multiples of 16 bytes";
  if (!boxed(b.dq)) return "dq: an address and positive strides that are multiples of 16 bytes";
  if (!k_boxed(b.dk)) return "dk: an address and positive strides that are multiples of 16 bytes";
  if (!k_boxed(b.dv)) return "dv: an address and positive strides that are multiples of 16 bytes";
  if (p.q_total > kMaxTokens || p.k_total > kMaxTokens) return "q, k: at most 2^29 tokens";
  return nullptr;
}

// Queries and gradients of outputs of 16 bits, and float32 sums, of sequences of at most this length.
int32_t section_heads(const AttentionParams& p) {
  const int64_t group = p.q_heads / p.k_heads;
  const int64_t bytes = std::max<int64_t>(1, int64_t(p.q_tokens) * group * p.head_dim * (2 + 2 + 4));
  const int64_t heads = int64_t(p.k_heads) * p.sequences;
  return int32_t(std::clamp<int64_t>(kSectionBytes / bytes, 1, std::max<int64_t>(1, heads)));
}

}  // namespace

BackwardPlan plan_attention_backward(const AttentionBackwardParams& b, int multiprocessors) {
  const AttentionParams& p = b.forward;
  BackwardPlan plan = {};
  plan.unsupported = unsupported(b, multiprocessors);
  if (plan.unsupported) return plan;
  plan.code = p.head_dim;
  plan.key_blocks = divide_up(p.k_tokens, kKeys);
  plan.section = section_heads(p);
  const int64_t rows = int64_t(divide_up(p.q_tokens, kBackwardRows)) * p.q_heads * p.sequences;
  const int64_t heads = int64_t(p.k_heads) * p.sequences;
  const int64_t keys = p.k_tokens ? heads * (b.deterministic ? 1 : plan.key_blocks) : 0;
  if (rows > INT32_MAX || keys > INT32_MAX || int64_t(plan.section) * plan.key_blocks > INT32_MAX) {
    plan.unsupported = "q, k: too many heads of sequences";
    return plan;
  }
  plan.rows_blocks = unsigned(rows);
  plan.keys_blocks = unsigned(keys);
  plan.sinks_blocks = b.d_sinks ? unsigned(p.q_heads) : 0;
  plan.window_left = window_limit(p.window_left, p.k_tokens);
  plan.window_right = window_limit(p.window_right, p.q_tokens);
  return plan;
}

}  // namespace rope::cuda
