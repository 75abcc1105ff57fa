// From a plan to the kernel that carries it out.
#pragma once

#include "../../operations/operations.h"
#include "../general/launch.cuh"
#include "../parts/compiled.h"
#include "kernel.cuh"

namespace rope::cuda {

inline OperandArgs operand_args(const PipelinePlan& plan, const PipelineOperand& o, const OperandPlan& x,
                                int element_bytes) {
  OperandArgs a = {};
  const int64_t first_head = int64_t(x.first_group) * plan.code.unroll;
  a.in = o.in + plan.start * element_bytes - first_head * x.in_head_stride;
  a.out = o.out + plan.start * stored_bytes(o.quantize.type, element_bytes, 1) - first_head * x.out_head_stride;
  a.in_token_stride = int32_t(o.in_token_stride);
  a.in_head_stride = int32_t(x.in_head_stride);
  a.out_head_stride = int32_t(x.out_head_stride);
  if (o.cached) {
    a.out_page_stride = int32_t(plan.linear ? o.out_token_stride : o.out_page_stride);
    a.out_entry_stride = int32_t(o.out_token_stride);
  } else {
    a.out_token_stride = int32_t(o.out_token_stride);
  }
  a.end_head = int32_t(first_head) + x.heads;
  a.cached = o.cached;
  return a;
}

inline uint32_t flags_of(const PipelineParams& p, const Execution& e, const PipelinePlan& plan) {
  // Nothing is counted before the wait.
  const bool early = e.positions_ready && plan.code.form == Form::kUsual && !p.cache.num_skipped;
  uint32_t flags = 0;
  const auto set = [&](PipelineFlag flag, bool on) { flags |= on ? flag : 0u; };
  set(kPositions64, !positions_are_int32(p.positions));
  set(kIndices64, !p.cache.index_is_int32);
  set(kCounted, p.positions.kind == PositionKind::kOffset);
  set(kCached, p.cache.indices);
  set(kGptj, p.layout == Layout::kGptj);
  set(kEarly, early);
  set(kTable, p.angle == Angle::kCosSin);
  set(kPaged, p.cache.indices && !plan.direct);
  set(kPrefetch, e.dependent && plan.prefetch);
  set(kReleaseEarly, plan.release_early);
  set(kRowsFirst, plan.rows_first);
  set(kCounts, p.cache.num_skipped);
  set(kStreams, p.positions.sections.streams);
  set(kCopies, p.copies);
  return flags;
}

template <int kMaxPairs>
void fill_args(const PipelineParams& p, const PairData& pairs, const Execution& e, const PipelinePlan& plan,
               int32_t vec, PipelineArgs<kMaxPairs>* args) {
  const CacheMap& cache = p.cache;
  args->flags = flags_of(p, e, plan);
  args->num_tokens = int32_t(p.num_tokens);
  args->positions = static_cast<const char*>(p.positions.ids);
  args->indices = static_cast<const char*>(cache.indices);
  args->groups = plan.groups;
  args->block_groups = int32_t(plan.block_y) * plan.turns;
  args->pairs = p.rotary_dim / 2;
  args->apart = p.rotary_dim / 2;
  args->cos_scale = p.cos_scale;
  args->sin_scale = p.sin_scale;
  args->rotated_groups = plan.rotated_groups;
  args->turns = plan.turns;
  const bool halves = p.layout == Layout::kNeox || vec == 1;
  args->angle_step = halves ? vec : vec / 2;
  args->angle_apart = halves ? vec / 2 : args->pairs / 2;
  args->entries = uint32_t(cache.num_pages * cache.page_size);
  args->entry_mask = plan.linear ? 0 : uint32_t(cache.page_size - 1);
  args->page_shift = plan.linear ? 0 : cache.page_shift;
  for (int i = 0; i < kMaxOperands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const OperandPlan& x = plan.operands[i];
    if (i > 0) args->later_groups[i - 1] = i < p.num_operands ? x.first_group : INT32_MAX;
    if (i >= p.num_operands) continue;
    args->operands[i] = operand_args(plan, o, x, plan.code.access_bytes / vec);
    args->stages[i] = {o.weight, o.quantize, x.first_group * plan.code.unroll, x.dim, x.slots, x.stored_slots};
  }
  args->offset = p.positions.offset;
  args->stream_stride = p.positions.sections.stride * (positions_are_int32(p.positions) ? 4 : 8);
  args->params = p;
  fill_streams(p.positions.sections, p.rotary_dim / 2, args->stream_of);
  copy_words(pairs, p.rotary_dim / 2, args->words);
}

template <class D, size_t kIndex, bool kDependent>
int launch_pipeline(const PipelineParams& p, const PairData& pairs, const Execution& e, const PipelinePlan& plan) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  constexpr PipelineCode kCode = kPipelineCodes<kElementBytes>[kIndex];
  constexpr int kMaxPairs = kCode.many ? kMaxRotaryDim / 2 : kFewPairs;
  PipelineArgs<kMaxPairs> args;
  fill_args(p, pairs, e, plan, kCode.access_bytes / kElementBytes, &args);
  return launch<true>(pipeline_kernel<D, kCode.access_bytes / kElementBytes, kCode.unroll, kCode.reduce,
                                      kCode.quantised, kCode.form, kDependent, kMaxPairs>,
                      dim3{plan.grid_x, plan.grid_y, 1}, dim3{plan.block_x, plan.block_y, plan.block_z}, args, e.stream,
                      e.dependent);
}

template <class D>
Outcome pipeline(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  const PipelinePlan plan = plan_pipeline(p, kElementBytes);
  if (plan.general) return general<D>(p, pairs, e);
  const auto launch_code = [&](auto index) {
    // Rare code is not compiled twice: a wait is nothing to a kernel that is launched plainly.
    constexpr bool kRare = kPipelineCodes<kElementBytes>[index.value].form == Form::kAny;
    return e.dependent ? launch_pipeline<D, index.value, true>(p, pairs, e, plan)
                       : launch_pipeline<D, index.value, kRare>(p, pairs, e, plan);
  };
  return {for_compiled<kPipelineCodes<kElementBytes>>(plan.code, launch_code), nullptr};
}

}  // namespace rope::cuda
