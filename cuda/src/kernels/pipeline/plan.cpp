#include "plan.h"

#include <algorithm>
#include <cstdint>

#include "../../math/norm.h"
#include "../parts/compiled.h"
#include "../parts/slot.h"

namespace rope::cuda {
namespace {

// Of what is read and of what is written.
Alignment alignment(const PipelineParams& p, int element_bytes) {
  Alignment a(element_bytes);
  a.add_elements(p.rotary_dim / 2);
  a.add_elements(p.rotary_offset);
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const int64_t stored_bytes = rope::stored_bytes(o.quantize.type, element_bytes, 1);
    if (o.whole) a.add_elements(o.dim);
    a.add_address(o.in);
    a.add_bytes(o.in_token_stride | o.in_head_stride);
    a.add_bytes(reinterpret_cast<intptr_t>(o.out) | o.out_token_stride | o.out_head_stride | o.out_page_stride,
                stored_bytes);
  }
  return a;
}

int32_t rotated_of(const PipelineParams& p, const PipelineOperand& o) { return o.rotated ? p.rotary_dim : 0; }

int32_t stored_slots(const PipelineParams& p, const PipelineOperand& o, int vec) {
  return o.whole ? stored_slots_of(o.dim - rotated_of(p, o), vec) : 0;
}

int32_t slots_of(const PipelineParams& p, const PipelineOperand& o, int vec) {
  return std::max(rotated_of(p, o) / 2 / vec + stored_slots(p, o, vec), 1);
}

int32_t most_slots(const PipelineParams& p, int vec) {
  int32_t slots = 1;
  for (int i = 0; i < p.num_operands; ++i) slots = std::max(slots, slots_of(p, p.operands[i], vec));
  return slots;
}

bool reduces(const PipelineOperand& o) { return o.weight || o.quantize.kind == ScaleKind::kDynamic; }

// A head's reduction can be done by WarpRows (parts/rows.cuh).
bool in_warp(const PipelineParams& p, const PipelineOperand& o, int vec) {
  const int32_t rotated = rotated_of(p, o);
  const bool halves = (rotated == 0 || rotated == o.dim) && o.dim % std::max(2 * vec, 2 * kNormGroup) == 0;
  return (!o.weight || (halves && o.dim >= 4 * kNormGroup)) && slots_of(p, o, vec) <= 32;
}

// What the code for most calls does not serve.
bool is_general(const PipelineParams& p, int vec) {
  if (vec == 1 || p.angle != Angle::kExact || p.positions_from || p.sets.words || p.rotary_dim > kFewPairs * 2 ||
      p.positions.kind == PositionKind::kRagged32 || p.positions.kind == PositionKind::kRagged64 ||
      (p.norm.on && (p.norm.across_heads || !p.norm.wide_weights)) ||
      (p.cache.indices && p.cache.page_shift < 0 && p.cache.num_pages > UINT32_MAX / p.cache.page_size))
    return true;
  for (int i = 0; i < p.num_operands; ++i)
    if (p.operands[i].xpos_sign || (reduces(p.operands[i]) && !in_warp(p, p.operands[i], vec))) return true;
  return false;
}

// How work is spread, by the bytes of all inputs.
struct Regime {
  int64_t max_bytes;
  int access_bytes;  // at most
  int unroll;        // heads in flight in a thread
  int turns;         // over them, at most
  int threads;       // of a block
  bool release_early;
};

// Measured on an H100 (KERNELS.md). A conversion or a reduction is work that hides no other, unless a thread has
// several heads of it, which few bytes do not have; many share angles and weights.
constexpr Regime kPlain[] = {
    {60'000, 8, 2, 1, 128, true},
    {1'500'000, 16, 2, 1, 64, true},
    {INT64_MAX, 16, 2, 1, 64, false},
};
constexpr Regime kQuantised[] = {
    {60'000, 8, 1, 1, 128, true},
    {1'500'000, 16, 1, 1, 64, true},
    {16'000'000, 16, 2, 2, 64, false},
    {INT64_MAX, 16, 4, 1, 64, false},
};
constexpr Regime kReduced[] = {
    {500'000, 8, 1, 1, 128, false},
    {2'000'000, 16, 2, 1, 64, false},
    {6'000'000, 16, 2, 2, 64, false},
    {INT64_MAX, 16, 4, 2, 64, false},
};
// The same where positions and cache indices may be read early, and are where the next launch is let in early.
constexpr Regime kPlainEarly[] = {
    {60'000, 8, 2, 1, 128, true},
    {INT64_MAX, 16, 2, 1, 64, true},
};
constexpr Regime kQuantisedEarly[] = {
    {7'000'000, 16, 2, 1, 64, true},
    {16'000'000, 16, 2, 2, 64, false},
    {INT64_MAX, 16, 4, 1, 64, false},
};
constexpr Regime kReducedEarly[] = {
    {700'000, 8, 1, 1, 128, true},
    {5'500'000, 16, 2, 1, 64, true},
    {30'000'000, 16, 2, 2, 64, true},
    {INT64_MAX, 16, 4, 2, 64, false},
};
// What the general code takes, for every size.
constexpr Regime kGeneral = {INT64_MAX, 16, 1, 2, 128, false};

constexpr int64_t kEnoughBlocks = 512;

// The threads of a block, `threads`, dealt out to the slots of operand i, then to its heads and to tokens.
OperandPlan plan_operand(const PipelineParams& p, const PipelineOperand& o, const PipelineCode& code, int vec,
                         const Regime& regime, unsigned grid_z) {
  OperandPlan x = {};
  x.slots = slots_of(p, o, vec);
  x.stored_slots = stored_slots(p, o, vec);
  x.lanes = divide_up(x.slots, grid_z);
  if (code.reduce && !code.general) x.lanes = power_of_two(x.lanes);
  x.rows_in_warps = 32 % x.lanes == 0;
  const int32_t rows = regime.threads / x.lanes, head_threads = divide_up(o.heads, code.unroll);
  // A second turn, even where one would do, where that leaves blocks enough.
  const int32_t half = divide_up(head_threads, 2);
  const bool halves = code.reduce && code.unroll == 4 && p.num_tokens * half >= kEnoughBlocks * rows;
  const bool whole_token = o.weight && p.norm.across_heads;  // is a block's
  x.columns = std::min(halves ? half : head_threads, rows);
  x.turns = divide_up(head_threads, x.columns);
  if (!whole_token) x.turns = std::min(x.turns, regime.turns);
  x.tokens = whole_token ? 1 : int32_t(std::min<int64_t>(rows / x.columns, p.num_tokens));
  x.heads = x.columns * x.turns * code.unroll;
  x.blocks = divide_up(o.heads, x.heads);
  x.in_flight = std::min(code.unroll, divide_up(o.heads, x.columns * x.turns * x.blocks));
  x.lane_share = (1u << 16) / uint32_t(x.lanes) + 1;
  x.column_share = (1u << 16) / uint32_t(x.columns) + 1;
  return x;
}

// Why a block cannot hold a head, which a norm or computed scales need; null if it can.
const char* check_heads(const PipelineParams& p, const Alignment& aligned, int element_bytes) {
  static_assert(2 * 16 * kMaxBlock == 4096 && 2 * kMaxBlock == 256);
  if (!(p.norm.on || p.dynamic) || most_slots(p, aligned.widest(16) / element_bytes) <= kMaxBlock) return nullptr;
  return p.norm.on ? "norm: heads of up to 4096 bytes where pointers, strides and head_dim are multiples of 16 bytes, "
                     "else of up to 256 elements"
                   : "dynamic scales: heads of up to 4096 bytes where pointers, strides and head_dim are multiples of "
                     "16 bytes, else of up to 256 elements";
}

}  // namespace

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes, bool early) {
  PipelinePlan plan = {};
  PipelineCode& code = plan.code;
  const Alignment aligned = alignment(p, element_bytes);
  plan.unsupported = check_heads(p, aligned, element_bytes);
  if (plan.unsupported) return plan;
  int64_t bytes = 0;
  for (int i = 0; i < p.num_operands; ++i) {
    bytes += p.num_tokens * p.operands[i].heads * p.operands[i].dim * element_bytes;
    code.quantised |= p.operands[i].quantize.type != OutType::kSame;
  }
  code.reduce = p.norm.on || p.dynamic;
  early = early && !p.cache.num_skipped;  // nothing is counted before the wait
  const Regime* const late = code.reduce ? kReduced : code.quantised ? kQuantised : kPlain;
  const Regime* regime = !early ? late : code.reduce ? kReducedEarly : code.quantised ? kQuantisedEarly : kPlainEarly;
  const auto access = [&] { return aligned.widest(regime->access_bytes); };
  // The special code may do a head with wide accesses that it cannot do with narrow ones.
  const auto general = [&] { return is_general(p, access() / element_bytes); };
  while (bytes > regime->max_bytes || (regime->access_bytes < 16 && general())) ++regime;
  code.general = general();
  if (code.general) {
    regime = &kGeneral;
    code.quantised = true;
  } else if (access() < regime->access_bytes) {
    regime = late;  // its first, which has narrow accesses
  }
  code.access_bytes = access();
  code.unroll = code.quantised && code.reduce ? std::min(regime->unroll, 2) : regime->unroll;
  code.early = early && regime->release_early && regime != late;
  plan.release_early = regime->release_early;
  plan.threads = unsigned(regime->threads);
  const int vec = code.access_bytes / element_bytes;
  plan.grid_z = unsigned(divide_up(most_slots(p, vec), regime->threads));
  bool reported = false;
  for (int i = 0; i < kMaxOperands; ++i) {
    plan.first_block[i] = i == 0 || i < p.num_operands ? plan.grid_x : UINT32_MAX;
    if (i >= p.num_operands) continue;
    const PipelineOperand& o = p.operands[i];
    OperandPlan& x = plan.operands[i] = plan_operand(p, o, code, vec, *regime, plan.grid_z);
    x.reports = p.cache.indices ? o.cached && !reported : i == 0;
    reported |= x.reports;
    plan.grid_x += unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
  }
  return plan;
}

}  // namespace rope::cuda
