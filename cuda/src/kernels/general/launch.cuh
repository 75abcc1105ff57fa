// From a plan to the kernel that carries it out.
#pragma once

#include <algorithm>

#include "../../operations/operations.h"
#include "../parts/compiled.h"
#include "kernel.cuh"

namespace rope::cuda {

template <class D>
Outcome general(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  const GeneralPlan plan = plan_general(p, kElementBytes);
  if (plan.unsupported) return {0, plan.unsupported};
  GeneralArgs args;
  args.params = p;
  std::copy_n(plan.operands, kMaxOperands, args.plans);
  std::copy_n(plan.first_block, kMaxOperands, args.first_block);
  if (pairs.xpos) args.xpos = *pairs.xpos;
  if (pairs.streams) std::copy_n(pairs.streams, p.rotary_dim / 2, args.streams);
  copy_words(pairs, word_rows(p.positions.kind, p.angle) * p.rotary_dim / 2, args.words);
  const auto launch_code = [&](auto index) {
    constexpr GeneralCode kCode = kGeneralCodes<kElementBytes>[index.value];
    return launch<kCode.reduce>(general_kernel<D, kCode.access_bytes / kElementBytes, kCode.reduce, kCode.grouped>,
                                dim3{plan.grid_x, 1, plan.grid_z}, dim3{kMaxBlock, 1, 1}, args, e.stream, e.dependent);
  };
  return {for_compiled<kGeneralCodes<kElementBytes>>(plan.code, launch_code), nullptr};
}

}  // namespace rope::cuda
