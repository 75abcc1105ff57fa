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

constexpr int32_t kMaxBlocks = 16'000;       // of an operand; a grid has at most 65535 along y
constexpr int32_t kColumns = 4, kTurns = 2;  // at most: the rest of a block goes to more tokens

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
  for (int i = 0; i < p.num_operands; ++i) {
    bytes += p.num_tokens * p.operands[i].heads * p.operands[i].dim * element_bytes;
    plan.quantised |= p.operands[i].quantize.type != OutType::kSame;
  }
  const bool small = bytes <= kNarrowBytes;
  plan.reduce = p.norm.on || p.dynamic;
  plan.prefetch = true;
  plan.release_early = bytes <= kEarlyBytes;
  plan.access_bytes = access_of(p, element_bytes, small && !plan.reduce);
  plan.general = is_general(p, plan.access_bytes > element_bytes);
  const int vec = plan.access_bytes / element_bytes, unroll = pipeline_unroll(plan.reduce);
  plan.grid_z = unsigned(divide_up(most_slots(p, vec), kPipelineBlock));
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    OperandPlan& x = plan.operands[i];
    x.slots = divide_up(std::max(slots_of(p, o, vec), 1), plan.grid_z);
    x.rows_in_warps = 32 % x.slots == 0;
    const int32_t rows = kPipelineBlock / x.slots, head_threads = divide_up(o.heads, unroll);
    x.columns = std::min({head_threads, rows, kColumns});
    x.turns = std::max(small ? 1 : std::min(divide_up(head_threads, x.columns), kTurns),
                       divide_up(head_threads, int64_t(x.columns) * kMaxBlocks));
    x.tokens = int32_t(std::min<int64_t>(rows / x.columns, p.num_tokens));
    x.blocks = divide_up(head_threads, x.columns * x.turns);
    plan.grid_x = std::max(plan.grid_x, unsigned(divide_up(p.num_tokens, x.tokens)));
    plan.grid_y += unsigned(x.blocks);
  }
  return plan;
}

bool pipeline_fits(const PipelineParams& p, int element_bytes) {
  return !(p.norm.on || p.dynamic) ||
         most_slots(p, access_of(p, element_bytes, false) / element_bytes) <= kPipelineBlock;
}

}  // namespace rope::cuda
