#include "pipeline_plan.h"

#include <algorithm>
#include <cstdint>

namespace rope::cuda {
namespace {

constexpr int32_t divide_up(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

int64_t address(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

// Chunks of `vec` elements lie on multiples of their size, in what is read and in what is written.
bool aligned(const PipelineParams& p, int element_bytes, int vec) {
  int64_t elements = p.rotary_dim / 2 | p.rotary_offset;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const int64_t out_bytes = o.quantize.type == OutType::kSame ? vec * element_bytes : vec;
    const int64_t in = address(o.in) | o.in_token_stride | o.in_head_stride;
    const int64_t out = address(o.out) | o.out_token_stride | o.out_head_stride | o.out_page_stride;
    if (in % (vec * element_bytes) || out % out_bytes) return false;
    if (o.whole) elements |= o.dim;
  }
  return elements % vec == 0;
}

int32_t slots_of(const PipelineParams& p, const PipelineOperand& o, int vec) {
  const int32_t rotated = o.rotated ? p.rotary_dim : 0;
  return rotated / 2 / vec + (o.whole ? divide_up(o.dim - rotated, 2 * vec) : 0);
}

int32_t most_slots(const PipelineParams& p, int vec) {
  int32_t slots = 1;
  for (int i = 0; i < p.num_operands; ++i) slots = std::max(slots, slots_of(p, p.operands[i], vec));
  return slots;
}

// Bytes of an input that one access moves.
int access_of(const PipelineParams& p, int element_bytes, bool narrow) {
  for (const int access : {16, 8})
    if (!(narrow && access == 16) && aligned(p, element_bytes, access / element_bytes)) return access;
  return element_bytes;
}

// Up to so many bytes a launch is latency: narrow accesses, and the next launch is let in early (KERNELS.md).
constexpr int64_t kNarrowBytes = 6'000'000, kEarlyBytes = 500'000;

// What the code for most calls serves (pipeline.cuh).
bool is_general(const PipelineParams& p, bool vectors) {
  return !vectors || p.angle != Angle::kExact || p.positions_from || p.sections.streams || p.sets.tables ||
         p.rotary_dim > kFewPairs * 2 || p.positions.kind == PositionKind::kRagged32 ||
         p.positions.kind == PositionKind::kRagged64 || p.cache.num_pages > UINT32_MAX / std::max(p.cache.page_size, 1);
}

}  // namespace

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes) {
  PipelinePlan plan = {};
  int64_t bytes = 0;
  int32_t most_heads = 1, fewest_heads = INT32_MAX;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    bytes += p.num_tokens * o.heads * o.dim * element_bytes;
    plan.quantised |= o.quantize.type != OutType::kSame;
    most_heads = std::max(most_heads, o.heads);
    fewest_heads = std::min(fewest_heads, o.heads);
  }
  plan.reduce = p.norm.on || p.dynamic;
  plan.prefetch = true;
  plan.release_early = bytes <= kEarlyBytes;
  plan.access_bytes = access_of(p, element_bytes, bytes <= kNarrowBytes && !plan.reduce);
  plan.general = is_general(p, plan.access_bytes > element_bytes);
  const int unroll = pipeline_unroll(plan.reduce);
  const int32_t slots = most_slots(p, plan.access_bytes / element_bytes);
  plan.grid_z = unsigned(divide_up(slots, kPipelineBlock));
  plan.block_x = unsigned(divide_up(slots, plan.grid_z));
  const int32_t columns = kPipelineBlock / int32_t(plan.block_x);
  // Small: a block for few heads. Large: threads as many as the operand of fewest heads can use, and turns over the
  // rest.
  const bool small = bytes <= kNarrowBytes;
  const int32_t y = std::clamp(divide_up(fewest_heads, unroll), 1, small ? std::max(1, columns / 2) : columns);
  plan.turns = small ? 1 : divide_up(most_heads, y * unroll);
  plan.block_y = unsigned(y);
  plan.block_z = unsigned(std::min<int64_t>({std::max(1, columns / y), 64, p.num_tokens}));
  plan.grid_x = unsigned(divide_up(p.num_tokens, plan.block_z));
  for (int i = 0; i < p.num_operands; ++i) {
    plan.blocks[i] = divide_up(p.operands[i].heads, y * unroll * plan.turns);
    plan.grid_y += unsigned(plan.blocks[i]);
  }
  return plan;
}

bool pipeline_fits(const PipelineParams& p, int element_bytes) {
  return !(p.norm.on || p.dynamic) ||
         most_slots(p, access_of(p, element_bytes, false) / element_bytes) <= kPipelineBlock;
}

}  // namespace rope::cuda
