#include "cache_rotation_plan.h"

#include <algorithm>

namespace rope::cuda {
namespace {

// Limits of every CUDA device.
constexpr int32_t kMaxBlockZ = 64, kMaxGridY = 65535;

// Every address that the kernel forms with chunks of `vec` elements is a multiple of their size.
bool aligned(const PipelineParams& p, int element_bytes, int vec) {
  const PipelineOperand& keys = p.operands[0];
  const int64_t elements = p.rotary_dim / 2 | p.rotary_offset | (keys.whole ? keys.dim : 0);
  const int64_t bytes =
      reinterpret_cast<int64_t>(keys.out) | keys.out_page_stride | keys.out_token_stride | keys.out_head_stride;
  return elements % vec == 0 && bytes % (vec * element_bytes) == 0;
}

}  // namespace

CacheRotationPlan plan_cache_rotation(const PipelineParams& p, int element_bytes) {
  const PipelineOperand& keys = p.operands[0];
  CacheRotationPlan plan = {};
  plan.wide = aligned(p, element_bytes, wide_vec(element_bytes));
  const int32_t vec = plan.wide ? wide_vec(element_bytes) : 1;
  plan.stored_slots = keys.whole ? divide_up((keys.dim - p.rotary_dim) / vec, 2) : 0;
  plan.slots = p.rotary_dim / 2 / vec + plan.stored_slots;
  plan.grid_z = unsigned(divide_up(plan.slots, kPipelineBlock));
  plan.block_x = unsigned(divide_up(plan.slots, plan.grid_z));
  // Heads of a token lie side by side in a block, then tokens.
  const int32_t unroll = cache_rotation_unroll(plan.wide, p.dynamic), head_threads = divide_up(keys.heads, unroll);
  const int32_t rows = kPipelineBlock / int32_t(plan.block_x), y = std::min(rows, head_threads);
  plan.block_y = unsigned(y);
  plan.block_z = unsigned(std::min<int64_t>({rows / y, kMaxBlockZ, p.num_tokens}));
  plan.grid_x = unsigned(divide_up(p.num_tokens, plan.block_z));
  plan.grid_y = unsigned(std::min(divide_up(head_threads, y), kMaxGridY));
  plan.turns = divide_up(head_threads, int64_t(plan.grid_y) * y);
  return plan;
}

bool cache_rotation_fits(const PipelineParams& p) { return !p.dynamic || plan_cache_rotation(p, 1).grid_z == 1; }

}  // namespace rope::cuda
