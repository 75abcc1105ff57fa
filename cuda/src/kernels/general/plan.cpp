#include "plan.h"

#include <algorithm>

#include "../parts/operand.h"

namespace rope::cuda {
namespace {

// The block's threads dealt out to the slots of an operand, then to its heads and to tokens.
GeneralOperand plan_operand(const PipelineParams& p, const PipelineOperand& o, int vec, unsigned grid_z) {
  constexpr int32_t kTurns = 2;
  GeneralOperand x = {};
  x.slots = std::max(slots_of(p, o, o.dim, vec), 1);
  x.stored_slots = stored_slots(p, o, o.dim, vec);
  x.lanes = divide_up(x.slots, grid_z);
  x.rows_in_warps = 32 % x.lanes == 0;
  const int32_t rows = kMaxBlock / x.lanes;
  const bool whole_token = o.weight && p.norm.across_heads;  // is a block's
  x.columns = std::min(o.heads, rows);
  x.turns = divide_up(o.heads, x.columns);
  if (!whole_token) x.turns = std::min(x.turns, kTurns);
  x.tokens = whole_token ? 1 : int32_t(std::min<int64_t>(rows / x.columns, p.num_tokens));
  x.blocks = divide_up(o.heads, x.columns * x.turns);
  return x;
}

// What the extras ask too. Elements apart, and pairs that are stored elsewhere, are moved one by one.
int widest_access(const PipelineCall& p, int element_bytes) {
  Alignment a = alignment(p, element_bytes);
  if (!p.rare) return a.widest(16);
  a.add_elements(p.rotary_dim / 2 / p.blocks);
  if (p.out_layout != p.layout) return element_bytes;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const OperandExtras& x = p.extras[i];
    if (x.in_gap | x.out_gap | x.kept_gap) return element_bytes;
    a.add_bytes(x.in_sequence_stride);
    if (!is_grouped(o)) a.add_bytes(x.out_sequence_stride, stored_bytes(o.quantize.type, element_bytes, 1));
    a.add_address(x.kept);
    a.add_bytes(x.kept_sequence_stride | x.kept_token_stride | x.kept_head_stride);
  }
  return a.widest(16);
}

// Why a block cannot hold a head, which a norm or computed scales need; null if it can.
const char* check_heads(const PipelineParams& p, int32_t slots) {
  static_assert(2 * 16 * kMaxBlock == 4096 && 2 * kMaxBlock == 256);
  if (!reduces(p) || slots <= kMaxBlock) return nullptr;
  if (is_grouped(p))
    return "groups and blocks: heads of up to 4096 bytes where pointers and strides that are read, and dimensions, are "
           "multiples of 16 bytes, else of up to 256 elements";
  return p.norm.on ? "norm: heads of up to 4096 bytes where pointers, strides and head_dim are multiples of 16 bytes, "
                     "else of up to 256 elements"
                   : "dynamic scales: heads of up to 4096 bytes where pointers, strides and head_dim are multiples of "
                     "16 bytes, else of up to 256 elements";
}

}  // namespace

GeneralPlan plan_general(const PipelineCall& p, int element_bytes) {
  GeneralPlan plan = {};
  const int widest = widest_access(p, element_bytes);
  plan.code = {widest, reduces(p), is_grouped(p)};
  if (widest == 8 && (!reduces(p) || is_grouped(p))) plan.code.access_bytes = element_bytes;
  const int vec = plan.code.access_bytes / element_bytes;
  int32_t slots = 1;
  for (int i = 0; i < p.num_operands; ++i) slots = std::max(slots, slots_of(p, p.operands[i], p.operands[i].dim, vec));
  plan.unsupported = check_heads(p, slots);
  if (plan.unsupported) return plan;
  plan.grid_z = unsigned(divide_up(slots, kMaxBlock));
  bool reported = false;
  for (int i = 0; i < kMaxOperands; ++i) {
    plan.first_block[i] = i == 0 || i < p.num_operands ? plan.grid_x : UINT32_MAX;
    if (i >= p.num_operands) continue;
    const PipelineOperand& o = p.operands[i];
    GeneralOperand& x = plan.operands[i] = plan_operand(p, o, vec, plan.grid_z);
    x.reports = p.cache.indices ? o.cached && !reported : i == 0;
    reported |= x.reports;
    plan.grid_x += unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
  }
  return plan;
}

}  // namespace rope::cuda
