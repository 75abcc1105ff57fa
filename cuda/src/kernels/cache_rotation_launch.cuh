// From a plan to the instance that carries it out.
#pragma once

#include <cstring>

#include "cache_rotation.cuh"

namespace rope::cuda {

template <class Stored>
struct CacheRotationOf {
  static constexpr int kElementBytes = sizeof(typename Stored::Storage);

  template <Layout kLayout>
  struct Instance {
    template <bool kWide, bool kDynamic>
    static int launch_one(const PipelineParams& p, const PairTable& table, const Execution& e,
                          const CacheRotationPlan& plan) {
      constexpr int kVec = kWide ? wide_vec(kElementBytes) : 1, kUnroll = cache_rotation_unroll(kWide, kDynamic);
      CacheRotationArgs args;
      args.params = p;
      args.slots = plan.slots;
      args.stored_slots = plan.stored_slots;
      args.turns = plan.turns;
      if (table.xpos) args.xpos = *table.xpos;
      if (table.words) std::memcpy(args.words, table.words, sizeof(uint64_t) * size_t(p.rotary_dim / 2));
      return launch<kDynamic>(cache_rotation_kernel<Stored, kLayout, kVec, kUnroll, kDynamic>,
                              dim3{plan.grid_x, plan.grid_y, plan.grid_z},
                              dim3{plan.block_x, plan.block_y, plan.block_z}, args, e.stream, e.dependent);
    }

    static int run(const PipelineParams& p, const PairTable& table, const Execution& e) {
      const CacheRotationPlan plan = plan_cache_rotation(p, kElementBytes);
      if constexpr (kElementBytes == 1)
        if (p.dynamic)
          return plan.wide ? launch_one<true, true>(p, table, e, plan) : launch_one<false, true>(p, table, e, plan);
      return plan.wide ? launch_one<true, false>(p, table, e, plan) : launch_one<false, false>(p, table, e, plan);
    }
  };
};

}  // namespace rope::cuda
