#include "plan.h"

#include <algorithm>
#include <cstdint>

#include "../../math/norm.h"
#include "../parts/operand.h"

namespace rope::cuda {
namespace {

// A head's reduction can be done by WarpRows (parts/rows.cuh).
bool in_warp(const PipelineParams& p, const PipelineOperand& o, int vec) {
  const int32_t rotated = rotated_of(p, o);
  const bool halves = (rotated == 0 || rotated == o.dim) && o.dim % std::max(2 * vec, 2 * kNormGroup) == 0;
  return (!o.weight || (halves && o.dim >= 4 * kNormGroup)) && slots_of(p, o, o.dim, vec) <= 32;
}

// Heads of this operand may be counted as narrower ones of `dim` elements.
bool splits(const PipelineOperand& o, int32_t dim, int element_bytes) {
  const bool one_scale = o.quantize.kind != ScaleKind::kHead && o.quantize.kind != ScaleKind::kDynamic;
  const int64_t in_row = int64_t(o.dim) * element_bytes, out_row = stored_bytes(o.quantize.type, element_bytes, o.dim);
  return !o.rotated && one_scale && o.dim > dim && o.dim % dim == 0 &&
         (o.heads == 1 || (o.in_head_stride == in_row && o.out_head_stride == out_row));
}

void plan_operands(const PipelineParams& p, int element_bytes, int vec, bool reduce, PipelinePlan* plan) {
  // The widest head of those that must be taken as they are.
  int32_t slots = 0;
  for (int i = 0; i < p.num_operands; ++i)
    if (p.operands[i].rotated) slots = std::max(slots, slots_of(p, p.operands[i], p.operands[i].dim, vec));
  const int32_t dim = 2 * vec * slots;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    OperandPlan& x = plan->operands[i];
    x = {0, o.heads, o.dim, o.in_head_stride, o.out_head_stride, 0, 0};
    if (slots && splits(o, dim, element_bytes)) {
      x.heads *= o.dim / dim;
      x.dim = dim;
      x.in_head_stride = int64_t(dim) * element_bytes;
      x.out_head_stride = stored_bytes(o.quantize.type, element_bytes, dim);
    }
    x.stored_slots = stored_slots(p, o, x.dim, vec);
    x.slots = slots_of(p, o, x.dim, vec);
    plan->block_x = std::max(plan->block_x, unsigned(x.slots));
  }
  if (reduce) plan->block_x = unsigned(power_of_two(int32_t(plan->block_x)));
}

// All slots of all heads have their chunks rotary_dim / 2 elements apart, and begin at the same one, *start.
bool are_alike(const PipelineParams& p, const PipelinePlan& plan, int32_t* start) {
  bool alike = true;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const OperandPlan& x = plan.operands[i];
    const int32_t own = o.rotated ? p.rotary_offset : 0;
    alike &= i == 0 || own == *start;
    alike &= unsigned(x.slots) == plan.block_x && (o.rotated ? !x.stored_slots : x.dim == p.rotary_dim);
    *start = own;
  }
  return alike;
}

Form form_of(const PipelineParams& p, const PipelinePlan& plan, bool alike) {
  const PositionKind kind = p.positions.kind;
  const bool simple = (kind == PositionKind::kOffset || kind == PositionKind::kIds32 || kind == PositionKind::kIds64) &&
                      !p.positions.period && !p.copies;
  const bool table = p.angle == Angle::kCosSin && !p.positions.sections.streams;
  if (!alike || !simple || !(p.angle == Angle::kExact || table) || p.positions_from || p.sets.words) return Form::kAny;
  return table || (p.cache.indices && !plan.direct) ? Form::kTables : Form::kUsual;
}

// The cache's entries are equally far apart.
bool is_linear(const PipelineParams& p) {
  bool linear = true;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    linear &= !o.cached || p.cache.num_pages == 1 || o.out_page_stride == o.out_token_stride * p.cache.page_size;
  }
  return linear;
}

bool fits_32_bits(const PipelineParams& p) {
  const auto fits = [](int64_t x) { return x >= INT32_MIN && x <= INT32_MAX; };
  bool all = !p.cache.indices || p.cache.num_pages <= INT32_MAX / p.cache.page_size;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    for (const int64_t stride :
         {o.in_token_stride, o.in_head_stride, o.out_token_stride, o.out_head_stride, o.out_page_stride})
      all &= fits(stride);
  }
  return all;
}

// What this kernel does not do.
bool is_general(const PipelineParams& p, const PipelineCode& code, int vec) {
  if (p.rare || !fits_32_bits(p) || is_grouped(p) || (p.norm.on && (p.norm.across_heads || !p.norm.wide_weights)))
    return true;
  if ((vec == 1 || code.many) && (code.reduce || code.quantised)) return true;
  if (p.copies && (code.reduce || code.quantised || p.cache.indices)) return true;
  for (int i = 0; i < p.num_operands; ++i)
    if (p.operands[i].xpos_sign || (reduces(p.operands[i]) && !in_warp(p, p.operands[i], vec))) return true;
  return false;
}

// How work is spread, by the bytes of all inputs.
struct Regime {
  int64_t max_bytes;
  int access_bytes;  // at most
  int unroll;        // heads in flight in a thread
  int32_t threads;   // of a block
  int32_t turns;     // of a thread, at most
};

// Measured on an H100 (KERNELS.md). Where a launch is all latency, work is spread thin; then angles, and what else a
// thread does before its first head, are worth sharing among several. Few heads would leave a block of several to a
// thread half empty.
constexpr int32_t kFewHeads = 12;
constexpr Regime kPlain[] = {
    {1'500'000, 8, 1, 128, 1},   {4'500'000, 8, 2, 128, 1},   {8'000'000, 16, 2, 128, 1},
    {20'000'000, 16, 4, 128, 1}, {64'000'000, 16, 2, 128, 1}, {INT64_MAX, 16, 4, 128, 8},
};
constexpr Regime kPlainFew[] = {
    {500'000, 8, 1, 128, 1},
    {64'000'000, 8, 2, 128, 1},
    {INT64_MAX, 16, 4, 128, 8},
};
constexpr Regime kQuantised[] = {
    {2'000'000, 8, 1, 128, 1},
    {8'000'000, 16, 2, 64, 1},
    {INT64_MAX, 16, 2, 128, 2},
};
constexpr Regime kReduced[] = {
    {1'500'000, 8, 1, 128, 1},
    {9'000'000, 8, 2, 128, 1},
    {INT64_MAX, 16, 2, 64, 8},
};
constexpr Regime kReducedFew[] = {
    {1'500'000, 8, 1, 128, 1},
    {INT64_MAX, 8, 2, 128, 1},
};

// Heads may be done with wide accesses that cannot be with narrow ones.
constexpr Regime kWide = {INT64_MAX, 16, 2, 128, 1};

const Regime* regimes_of(const PipelineCode& code, int64_t heads) {
  const bool few = heads <= kFewHeads;
  if (code.reduce) return few ? kReducedFew : kReduced;
  if (code.quantised) return kQuantised;
  return few ? kPlainFew : kPlain;
}

// A prefetch pays where there is little to ask for, or heads are not in the second-level cache.
constexpr int64_t kPrefetchAtMost = 6'000'000, kPrefetchFrom = 64'000'000;
// A row, whose address waits for a position, would queue behind all heads of a launch that is one wave of blocks. Of
// several, heads that wait for the position cost more.
constexpr int64_t kRowsFirstAtMost = 20'000'000;
// Where a launch has fewer blocks than the device has multiprocessors, the next one's would crowd it.
constexpr int64_t kCrowd = 132;

// What is compiled of a kind, by the regime's wish.
void find_code(const Regime& regime, int element_bytes, PipelineCode* code) {
  const bool wide = code->access_bytes == 16, one_element = code->access_bytes == element_bytes;
  if (one_element || (code->many && (!wide || code->form == Form::kTables))) code->form = Form::kAny;
  if (code->form != Form::kUsual) code->quantised |= code->reduce;  // codes or none
  code->unroll = regime.unroll;
  if (code->form == Form::kAny) {
    code->unroll = one_element ? 2 : !wide ? 1 : code->quantised ? 2 : 4;
  } else if (wide) {
    code->unroll = code->many ? 4 : std::max(code->unroll, 2);
  } else if (code->quantised && (!code->reduce || code->form == Form::kTables)) {
    code->unroll = 1;
  } else {
    code->unroll = std::min(code->unroll, 2);
  }
}

// Threads along the groups of a token, of at most `most`: an equal share for every block, exact where that leaves at
// least half of them in use.
int32_t share(int32_t groups, int32_t most) {
  for (int32_t y = std::min(most, groups); 2 * y >= most; --y)
    if (groups % y == 0) return y;
  return divide_up(groups, divide_up(groups, most));
}

void plan_grid(const PipelineParams& p, const Regime& regime, PipelinePlan* plan) {
  const int32_t unroll = plan->code.unroll;
  for (int i = 0; i < p.num_operands; ++i) {
    plan->operands[i].first_group = plan->groups;
    plan->groups += divide_up(plan->operands[i].heads, unroll);
    if (p.operands[i].rotated) plan->rotated_groups = plan->groups;
  }
  const int32_t rows = std::max<int32_t>(1, regime.threads / int32_t(plan->block_x));
  const int32_t y = share(plan->groups, rows), blocks = divide_up(plan->groups, y);
  plan->turns = std::min(regime.turns, blocks);
  plan->turns = std::max(plan->turns, divide_up(blocks, kMaxGridY));
  const int32_t tokens = std::min({rows / y, kMaxBlockZ, kMaxAngles[plan->code.many] / (p.rotary_dim / 2)});
  plan->block_y = unsigned(y);
  plan->block_z = unsigned(std::clamp<int64_t>(tokens, 1, p.num_tokens));
  plan->grid_x = unsigned(divide_up(p.num_tokens, plan->block_z));
  plan->grid_y = unsigned(divide_up(blocks, plan->turns));
}

}  // namespace

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes) {
  PipelinePlan plan = {};
  PipelineCode& code = plan.code;
  const Alignment aligned = alignment(p, element_bytes);
  int64_t bytes = 0, heads = 0;
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    bytes += p.num_tokens * o.heads * (o.whole ? o.dim : p.rotary_dim) * element_bytes;
    heads += o.heads;
    code.quantised |= o.quantize.type != OutType::kSame;
  }
  code.reduce = reduces(p);
  code.many = p.rotary_dim > 2 * kFewPairs;
  const Regime* regime = regimes_of(code, heads);
  while (bytes > regime->max_bytes) ++regime;
  const auto vec_of = [&](const Regime& r) { return aligned.widest(r.access_bytes) / element_bytes; };
  int vec = vec_of(*regime);
  plan.general = is_general(p, code, vec);
  if (plan.general) {
    regime = &kWide;
    vec = vec_of(*regime);
    plan.general = is_general(p, code, vec);
  }
  code.access_bytes = vec * element_bytes;
  plan_operands(p, element_bytes, vec, code.reduce, &plan);
  plan.general |= plan.block_x > kMaxBlock;
  if (plan.general) return plan;
  const bool looked_up = p.cache.page_table || p.cache.request_ids;
  plan.linear = !looked_up && is_linear(p);
  plan.direct = !looked_up && (plan.linear || p.cache.page_shift >= 0);
  code.form = form_of(p, plan, are_alike(p, plan, &plan.start));
  find_code(*regime, element_bytes, &code);
  if (code.form == Form::kAny) plan.start = 0;
  plan_grid(p, *regime, &plan);
  plan.prefetch = bytes <= kPrefetchAtMost || bytes >= kPrefetchFrom || heads <= kFewHeads;
  plan.rows_first = bytes <= kRowsFirstAtMost;
  plan.release_early = int64_t(plan.grid_x) * plan.grid_y >= kCrowd;
  return plan;
}

}  // namespace rope::cuda
