// From a plan to the kernel that carries it out.
#pragma once

#include "../../operations/operations.h"
#include "kernel.cuh"

namespace rope::cuda {

template <class D>
Outcome build_cos_sin(const CosSinParams& p, const PairData& pairs, const Execution& e) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  const CosSinPlan plan = plan_cos_sin(p, kElementBytes);
  CosSinArgs args;
  args.params = p;
  copy_words(pairs, word_rows(p.positions.kind, p.angle) * p.pairs, args.words);
  return for_angle(p.angle, [&](auto angle) {
    const auto kernel =
        plan.wide ? cos_sin_kernel<D, angle.value, 16 / kElementBytes> : cos_sin_kernel<D, angle.value, 1>;
    return Outcome{launch(kernel, dim3{plan.grid_x, plan.grid_y, 1}, dim3{plan.block_x, plan.block_y, 1}, args,
                          e.stream, e.dependent),
                   nullptr};
  });
}

}  // namespace rope::cuda
