#include "rotate_plan.h"

#include <algorithm>
#include <utility>

namespace rope::cuda {
namespace {

constexpr int32_t divide_up(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

// Every address that the kernel forms with chunks of `bytes` is a multiple of `bytes`.
bool aligned(const RotateParams& p, int element_bytes, int bytes) {
  const int64_t half = int64_t(p.rotary_dim) / 2 * element_bytes;
  const int64_t offset = int64_t(p.rotary_offset) * element_bytes, row = int64_t(p.head_dim) * element_bytes;
  int64_t bits = half | offset;
  bool copies = false;
  for (const auto& [x, heads] : {std::pair(p.q, p.num_q_heads), std::pair(p.k, p.num_k_heads)}) {
    if (heads == 0) continue;
    bits |= reinterpret_cast<int64_t>(x.in) | reinterpret_cast<int64_t>(x.out);
    bits |= x.in_token_stride | x.in_head_stride | x.out_token_stride | x.out_head_stride;
    copies |= x.in != x.out;
  }
  if (copies) bits |= row;
  return (bits & (bytes - 1)) == 0;
}

}  // namespace

RotatePlan plan_rotate(const RotateParams& p, int element_bytes) {
  RotatePlan plan = {};
  const int32_t heads = p.num_q_heads + p.num_k_heads;
  const bool few = p.num_tokens <= 16;

  plan.access_bytes = element_bytes;
  for (int bytes : {16, 8}) {
    if (bytes == 16 && few) continue;  // more, smaller threads
    if (bytes > element_bytes && aligned(p, element_bytes, bytes)) {
      plan.access_bytes = bytes;
      break;
    }
  }
  const int32_t vec = plan.access_bytes / element_bytes;
  const bool copies = (p.num_q_heads && p.q.in != p.q.out) || (p.num_k_heads && p.k.in != p.k.out);
  plan.copy_slots = copies ? (p.head_dim - p.rotary_dim) / vec : 0;

  const int32_t slots = p.rotary_dim / 2 / vec + plan.copy_slots;
  plan.block_x = unsigned(divide_up(slots, divide_up(slots, 128)));
  plan.unroll = few ? 1 : p.num_tokens <= 256 ? 2 : 4;
  const int32_t head_threads = divide_up(heads, plan.unroll);
  const int32_t block_threads = few ? 32 : 128;
  plan.block_y = unsigned(std::clamp<int32_t>(block_threads / int32_t(plan.block_x), 1, head_threads));
  plan.block_z = unsigned(
      few ? 1 : std::clamp<int32_t>(block_threads / int32_t(plan.block_x * plan.block_y), 1, 64));
  plan.grid_x = unsigned(divide_up(p.num_tokens, plan.block_z));
  plan.grid_y = p.num_tokens > 256 ? 1 : unsigned(std::min(divide_up(head_threads, plan.block_y), 65535));
  return plan;
}

}  // namespace rope::cuda
