// From a plan to the kernel that carries it out.
#pragma once

#include <algorithm>

#include "../../operations/operations.h"
#include "../parts/compiled.h"
#include "kernel.cuh"

namespace rope::cuda {

// Stored: a dtype, or Codes. kCodes: all that are compiled for it.
template <class Stored, const auto& kCodes>
Outcome rotate_stored(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  constexpr int kElementBytes = sizeof(typename Stored::Storage);
  const CachePlan plan = plan_rotate_cache(p, kElementBytes);
  if (plan.unsupported) return {0, plan.unsupported};
  CacheRotationArgs args;
  args.params = p;
  args.slots = plan.slots;
  args.stored_slots = plan.stored_slots;
  args.turns = plan.turns;
  if (pairs.xpos) args.xpos = *pairs.xpos;
  if (pairs.streams) std::copy_n(pairs.streams, p.rotary_dim / 2, args.streams);
  copy_words(pairs, word_rows(p.positions.kind, p.angle) * p.rotary_dim / 2, args.words);
  return for_layout(p.layout, [&](auto layout) {
    const auto launch_code = [&](auto index) {
      constexpr CacheCode kCode = kCodes[index.value];
      return launch<kCode.dynamic>(cache_rotation_kernel<Stored, layout.value, kCode.vec(kElementBytes), kCode.unroll(),
                                                         kCode.dynamic, kCode.grouped>,
                                   dim3{plan.grid_x, plan.grid_y, plan.grid_z},
                                   dim3{plan.block_x, plan.block_y, plan.block_z}, args, e.stream, e.dependent);
    };
    return Outcome{for_compiled<kCodes>(plan.code, launch_code), nullptr};
  });
}

template <class D>
Outcome rotate_cache(const PipelineCall& p, const PairData& pairs, const Execution& e) {
  return p.operands[0].quantize.type == OutType::kSame ? rotate_stored<D, kDtypeCacheCodes>(p, pairs, e)
                                                       : rotate_stored<Codes, kCodesCacheCodes>(p, pairs, e);
}

}  // namespace rope::cuda
