#include "plan.h"

#include <algorithm>

#include "../parts/operand.h"

namespace rope::cuda {
namespace {

Alignment cache_alignment(const PipelineParams& p, int element_bytes) {
  const PipelineOperand& keys = p.operands[0];
  Alignment a(element_bytes);
  a.add_elements(p.rotary_dim / 2);
  a.add_elements(p.rotary_offset);
  if (keys.whole) a.add_elements(keys.dim);
  if (is_grouped(keys)) return a;  // stored byte by byte
  a.add_address(keys.out);
  for (const int64_t stride : {keys.out_page_stride, keys.out_token_stride, keys.out_head_stride}) a.add_bytes(stride);
  return a;
}

}  // namespace

CachePlan plan_rotate_cache(const PipelineParams& p, int element_bytes) {
  const PipelineOperand& keys = p.operands[0];
  CachePlan plan = {};
  plan.code = {true, p.dynamic || is_grouped(p), is_grouped(p)};
  plan.code.wide = cache_alignment(p, element_bytes).allows(plan.code.vec(element_bytes) * element_bytes);
  const int32_t vec = plan.code.vec(element_bytes);
  plan.stored_slots = keys.whole ? stored_slots_of(keys.dim - p.rotary_dim, vec) : 0;
  plan.slots = p.rotary_dim / 2 / vec + plan.stored_slots;
  plan.grid_z = unsigned(divide_up(plan.slots, kMaxBlock));
  static_assert(2 * CacheCode{true, true, false}.vec(1) * kMaxBlock == 2048 && 2 * kMaxBlock == 256);
  if (plan.code.dynamic && plan.grid_z > 1)
    plan.unsupported =
        plan.code.grouped ? "groups and blocks: in a cache heads of up to 2048 elements where dimensions are multiples "
                            "of 8, else of up to 256"
                          : "dynamic scales: in a cache heads of up to 2048 elements where pointers, strides and "
                            "dimensions are multiples of 8, else of up to 256";
  plan.block_x = unsigned(divide_up(plan.slots, plan.grid_z));
  // Heads of a token lie side by side in a block, then tokens.
  const int32_t head_threads = divide_up(keys.heads, plan.code.unroll());
  const int32_t rows = kMaxBlock / int32_t(plan.block_x), y = std::min(rows, head_threads);
  plan.block_y = unsigned(y);
  plan.block_z = unsigned(std::min<int64_t>({rows / y, kMaxBlockZ, p.num_tokens}));
  plan.grid_x = unsigned(divide_up(p.num_tokens, plan.block_z));
  plan.grid_y = unsigned(std::min(divide_up(head_threads, y), kMaxGridY));
  plan.turns = divide_up(head_threads, int64_t(plan.grid_y) * y);
  return plan;
}

}  // namespace rope::cuda
