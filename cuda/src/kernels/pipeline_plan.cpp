#include "pipeline_plan.h"

#include <algorithm>
#include <cstdint>

#include "../math/norm.h"

namespace rope::cuda {
namespace {

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

// Bytes of an input that one access moves, at most `most`.
int access_of(const PipelineParams& p, int element_bytes, int most) {
  for (const int access : {16, 8})
    if (access <= most && aligned(p, element_bytes, access / element_bytes)) return access;
  return element_bytes;
}

int32_t rotated_of(const PipelineParams& p, const PipelineOperand& o) { return o.rotated ? p.rotary_dim : 0; }

int32_t stored_slots_of(const PipelineParams& p, const PipelineOperand& o, int vec) {
  return o.whole ? divide_up((o.dim - rotated_of(p, o)) / vec, 2) : 0;
}

int32_t slots_of(const PipelineParams& p, const PipelineOperand& o, int vec) {
  return std::max(rotated_of(p, o) / 2 / vec + stored_slots_of(p, o, vec), 1);
}

int32_t most_slots(const PipelineParams& p, int vec) {
  int32_t slots = 1;
  for (int i = 0; i < p.num_operands; ++i) slots = std::max(slots, slots_of(p, p.operands[i], vec));
  return slots;
}

bool reduces(const PipelineOperand& o) { return o.weight || o.quantize.kind == ScaleKind::kDynamic; }

// A head's reduction can be done by WarpRows (rows.cuh).
bool in_warp(const PipelineParams& p, const PipelineOperand& o, int vec) {
  const int32_t rotated = rotated_of(p, o);
  const bool halves = (rotated == 0 || rotated == o.dim) && o.dim % std::max(2 * vec, 2 * kNormGroup) == 0;
  return (!o.weight || (halves && o.dim >= 4 * kNormGroup)) && slots_of(p, o, vec) <= 32;
}

// What the code for most calls does not serve (pipeline.cuh).
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

}  // namespace

PipelinePlan plan_pipeline(const PipelineParams& p, int element_bytes, bool early) {
  PipelinePlan plan = {};
  int64_t bytes = 0;
  for (int i = 0; i < p.num_operands; ++i) {
    bytes += p.num_tokens * p.operands[i].heads * p.operands[i].dim * element_bytes;
    plan.quantised |= p.operands[i].quantize.type != OutType::kSame;
  }
  plan.reduce = p.norm.on || p.dynamic;
  early = early && !p.cache.num_skipped;  // nothing is counted before the wait
  const Regime* const late = plan.reduce ? kReduced : plan.quantised ? kQuantised : kPlain;
  const Regime* regime = !early ? late : plan.reduce ? kReducedEarly : plan.quantised ? kQuantisedEarly : kPlainEarly;
  const auto access = [&] { return access_of(p, element_bytes, regime->access_bytes); };
  // The special code may do a head with wide accesses that it cannot do with narrow ones.
  const auto general = [&] { return is_general(p, access() / element_bytes); };
  while (bytes > regime->max_bytes || (regime->access_bytes < 16 && general())) ++regime;
  plan.general = general();
  if (plan.general) {
    regime = &kGeneral;
  } else if (access() < regime->access_bytes) {
    regime = late;  // its first, which has narrow accesses
    early = false;
  }
  plan.access_bytes = access();
  plan.unroll = plan.quantised && plan.reduce ? std::min(regime->unroll, 2) : regime->unroll;
  plan.threads = unsigned(regime->threads);
  plan.release_early = regime->release_early;
  plan.early = early && regime->release_early;
  const int vec = plan.access_bytes / element_bytes;
  plan.grid_z = unsigned(divide_up(most_slots(p, vec), regime->threads));
  bool reported = false;
  for (int i = 0; i < kMaxOperands; ++i) {
    plan.first_block[i] = i == 0 || i < p.num_operands ? plan.grid_x : UINT32_MAX;
    if (i >= p.num_operands) continue;
    const PipelineOperand& o = p.operands[i];
    OperandPlan& x = plan.operands[i];
    x.slots = slots_of(p, o, vec);
    x.stored_slots = stored_slots_of(p, o, vec);
    x.lanes = divide_up(x.slots, plan.grid_z);
    if (plan.reduce && !plan.general) x.lanes = power_of_two(x.lanes);
    x.rows_in_warps = 32 % x.lanes == 0;
    x.reports = p.cache.indices ? o.cached && !reported : i == 0;
    reported |= x.reports;
    const int32_t rows = regime->threads / x.lanes, head_threads = divide_up(o.heads, plan.unroll);
    // A second turn, even where one would do, where that leaves blocks enough.
    const int32_t half = divide_up(head_threads, 2);
    const bool halves = plan.reduce && plan.unroll == 4 && p.num_tokens * half >= kEnoughBlocks * rows;
    const bool whole_token = o.weight && p.norm.across_heads;  // is a block's
    x.columns = std::min(halves ? half : head_threads, rows);
    x.turns = divide_up(head_threads, x.columns);
    if (!whole_token) x.turns = std::min(x.turns, regime->turns);
    x.tokens = whole_token ? 1 : int32_t(std::min<int64_t>(rows / x.columns, p.num_tokens));
    x.heads = x.columns * x.turns * plan.unroll;
    x.blocks = divide_up(o.heads, x.heads);
    x.in_flight = std::min(plan.unroll, divide_up(o.heads, x.columns * x.turns * x.blocks));
    x.lane_share = (1u << 16) / uint32_t(x.lanes) + 1;
    x.column_share = (1u << 16) / uint32_t(x.columns) + 1;
    plan.grid_x += unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
  }
  return plan;
}

bool pipeline_fits(const PipelineParams& p, int element_bytes) {
  return !(p.norm.on || p.dynamic) || most_slots(p, access_of(p, element_bytes, 16) / element_bytes) <= kPipelineBlock;
}

}  // namespace rope::cuda
