// From a plan to the kernel that carries it out.
#pragma once

#include "../../operations/operations.h"
#include "../general/launch.cuh"
#include "../parts/compiled.h"
#include "kernel.cuh"

namespace rope::cuda {

inline OperandArgs operand_args(const PipelineOperand& o, const OperandPlan& x, bool linear) {
  OperandArgs a = {};
  a.in = o.in;
  a.out = o.out;
  a.in_token_stride = int32_t(o.in_token_stride);
  a.in_head_stride = int32_t(x.in_head_stride);
  a.out_head_stride = int32_t(x.out_head_stride);
  if (o.cached) {
    a.out_page_stride = int32_t(linear ? o.out_token_stride : o.out_page_stride);
    a.out_entry_stride = int32_t(o.out_token_stride);
  } else {
    a.out_token_stride = int32_t(o.out_token_stride);
  }
  a.first_group = x.first_group;
  a.heads = x.heads;
  a.weight = o.weight;
  a.quantize = o.quantize;
  a.dim = x.dim;
  a.slots = x.slots;
  a.stored_slots = x.stored_slots;
  a.rotated = o.rotated;
  a.cached = o.cached;
  return a;
}

inline uint32_t flags_of(const PipelineParams& p, const Execution& e, const PipelinePlan& plan) {
  const CacheMap& cache = p.cache;
  const bool direct = !cache.page_table && !cache.request_ids && (plan.linear || cache.page_shift >= 0);
  // Nothing is counted before the wait.
  const bool early = e.positions_ready && plan.simple && (direct || !cache.indices) && !cache.num_skipped;
  uint32_t flags = 0;
  const auto set = [&](PipelineFlag flag, bool on) { flags |= on ? flag : 0; };
  set(kUniform, plan.uniform);
  set(kSimple, plan.simple);
  set(kCounted, p.positions.kind == PositionKind::kOffset);
  set(kCached, cache.indices);
  set(kDirect, direct);
  set(kGptj, p.layout == Layout::kGptj);
  set(kDependent, e.dependent);
  set(kEarly, e.dependent && early);
  set(kReleaseEarly, plan.release_early);
  set(kPrefetch, plan.prefetch);
  return flags;
}

inline IndexArgs index_args(const void* data, bool is_int32) {
  return {static_cast<const char*>(data), is_int32 ? 4 : 8};
}

template <int kMaxPairs>
void fill_args(const PipelineParams& p, const PairData& pairs, const Execution& e, const PipelinePlan& plan,
               PipelineArgs<kMaxPairs>* args) {
  const CacheMap& cache = p.cache;
  args->flags = flags_of(p, e, plan);
  args->num_tokens = int32_t(p.num_tokens);
  args->positions = index_args(p.positions.ids, positions_are_int32(p.positions));
  args->pairs = p.rotary_dim / 2;
  args->groups = plan.groups;
  args->rotated_groups = plan.rotated_groups;
  args->turns = plan.turns;
  args->start = plan.start;
  args->span = plan.span;
  args->cos_scale = p.cos_scale;
  args->sin_scale = p.sin_scale;
  args->streams = p.positions.sections.streams;
  args->indices = index_args(cache.indices, cache.index_is_int32);
  args->entries = uint32_t(cache.num_pages * cache.page_size);
  args->entry_mask = plan.linear ? 0 : uint32_t(cache.page_size - 1);
  args->page_shift = plan.linear ? 0 : cache.page_shift;
  for (int i = 0; i < kMaxOperands; ++i) {
    if (i < p.num_operands) args->operands[i] = operand_args(p.operands[i], plan.operands[i], plan.linear);
    if (i > 0) args->later_groups[i - 1] = i < p.num_operands ? plan.operands[i].first_group : INT32_MAX;
  }
  args->offset = p.positions.offset;
  args->stream_stride = p.positions.sections.stride * args->positions.bytes;
  args->params = p;
  fill_streams(p.positions.sections, p.rotary_dim / 2, args->stream_of);
  copy_words(pairs, p.rotary_dim / 2, args->words);
}

template <class D, size_t kIndex>
int launch_pipeline(const PipelineParams& p, const PairData& pairs, const Execution& e, const PipelinePlan& plan) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  constexpr PipelineCode kCode = kPipelineCodes<kElementBytes>[kIndex];
  constexpr int kMaxPairs = kCode.many ? kMaxRotaryDim / 2 : kFewPairs;
  PipelineArgs<kMaxPairs> args;
  fill_args(p, pairs, e, plan, &args);
  return launch<true>(pipeline_kernel<D, kCode.access_bytes / kElementBytes, kCode.unroll, kCode.reduce,
                                      kCode.quantised, kMaxPairs>,
                      dim3{plan.grid_x, plan.grid_y, 1}, dim3{plan.block_x, plan.block_y, plan.block_z}, args, e.stream,
                      e.dependent);
}

template <class D>
Outcome pipeline(const PipelineParams& p, const PairData& pairs, const Execution& e) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  const PipelinePlan plan = plan_pipeline(p, kElementBytes);
  if (plan.general) return general<D>(p, pairs, e);
  const auto launch_code = [&](auto index) { return launch_pipeline<D, index.value>(p, pairs, e, plan); };
  return {for_compiled<kPipelineCodes<kElementBytes>>(plan.code, launch_code), nullptr};
}

// A rotation is a pipeline of nothing else.
template <class D>
Outcome rotate(const RotateParams& r, const PairData& pairs, const Execution& e) {
  PipelineParams p = {};
  for (const auto& [x, heads] : {std::pair(r.q, r.num_q_heads), std::pair(r.k, r.num_k_heads)}) {
    if (heads == 0) continue;
    PipelineOperand& o = p.operands[p.num_operands++];
    o.in = x.in;
    o.out = x.out;
    o.in_token_stride = x.in_token_stride;
    o.in_head_stride = x.in_head_stride;
    o.out_token_stride = x.out_token_stride;
    o.out_head_stride = x.out_head_stride;
    o.heads = heads;
    o.dim = r.head_dim;
    o.rotated = true;
    o.whole = x.in != x.out;
  }
  p.num_tokens = r.num_tokens;
  p.rotary_dim = r.rotary_dim;
  p.rotary_offset = r.rotary_offset;
  p.cos_scale = r.cos_scale;
  p.sin_scale = r.sin_scale;
  p.layout = r.layout;
  p.angle = r.angle;
  p.positions = r.positions;
  return pipeline<D>(p, pairs, e);
}

}  // namespace rope::cuda
