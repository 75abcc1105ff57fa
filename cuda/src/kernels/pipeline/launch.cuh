// From a plan to the kernel that carries it out.
#pragma once

#include <algorithm>

#include "../../operations/operations.h"
#include "../parts/compiled.h"
#include "kernel.cuh"

namespace rope::cuda {

template <class D, Layout kLayout, size_t kIndex>
int launch_pipeline(const PipelineParams& p, const PairData& pairs, const Execution& e, const PipelinePlan& plan) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  constexpr PipelineCode kCode = kPipelineCodes<kElementBytes>[kIndex];
  PipelineArgs<kCode.general> args;
  args.params = p;
  std::copy_n(plan.operands, kMaxOperands, args.plans);
  std::copy_n(plan.first_block, kMaxOperands, args.first_block);
  args.dependent = e.dependent;
  args.release_early = plan.release_early;
  if constexpr (kCode.general) {
    if (pairs.xpos) args.own = *pairs.xpos;
  } else {
    fill_streams(p.positions.sections, p.rotary_dim / 2, args.own.streams);
  }
  copy_words(pairs, p.rotary_dim / 2, args.words);
  return launch<kCode.reduce>(pipeline_kernel<D, kLayout, kCode.access_bytes / kElementBytes, kCode.unroll,
                                              kCode.reduce, kCode.quantised, kCode.general, kCode.early>,
                              dim3{plan.grid_x, 1, plan.grid_z}, dim3{plan.threads, 1, 1}, args, e.stream, e.dependent);
}

template <class D>
Outcome pipeline(const PipelineParams& p, const PairData& pairs, const Execution& e) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  const PipelinePlan plan = plan_pipeline(p, kElementBytes, e.dependent && e.positions_ready);
  if (plan.unsupported) return {0, plan.unsupported};
  return for_layout(p.layout, [&](auto layout) {
    const auto launch_code = [&](auto index) {
      return launch_pipeline<D, layout.value, index.value>(p, pairs, e, plan);
    };
    return Outcome{for_compiled<kPipelineCodes<kElementBytes>>(plan.code, launch_code), nullptr};
  });
}

}  // namespace rope::cuda
