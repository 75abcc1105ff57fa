// From a plan to the instance that carries it out.
#pragma once

#include <cstring>

#include "pipeline.cuh"

namespace rope::cuda {

template <class D, Layout kLayout>
struct PipelineInstance {
  static constexpr int kElementBytes = sizeof(typename D::Storage);

  template <int kAccess, bool kReduce>
  static int launch_one(const PipelineParams& p, const uint64_t* table, const Execution& e, const PipelinePlan& plan) {
    constexpr int kUnroll = pipeline_unroll(kAccess, kReduce);
    const auto go = [&](auto& args) {
      constexpr int kMaxPairs = sizeof(args.table) / sizeof(args.table[0]);
      args.params = p;
      args.prefetch = e.dependent && plan.prefetch;
      args.release_early = plan.release_early;
      if (table) std::memcpy(args.table, table, sizeof(uint64_t) * size_t(p.rotary_dim / 2));
      return launch<kReduce>(pipeline_kernel<D, kLayout, kAccess / kElementBytes, kUnroll, kReduce, kMaxPairs>,
                             dim3{plan.grid_x, plan.grid_y, plan.grid_z},
                             dim3{plan.block_x, plan.block_y, plan.block_z}, args, e.stream, e.dependent);
    };
    if (p.rotary_dim <= 128) {
      PipelineArgs<64> args;
      return go(args);
    }
    PipelineArgs<kMaxRotaryDim / 2> args;
    return go(args);
  }

  template <bool kReduce>
  static int launch_access(const PipelineParams& p, const uint64_t* table, const Execution& e,
                           const PipelinePlan& plan) {
    if (plan.access_bytes == 16) return launch_one<16, kReduce>(p, table, e, plan);
    if constexpr (kElementBytes < 8)
      if (plan.access_bytes == 8) return launch_one<8, kReduce>(p, table, e, plan);
    return launch_one<kElementBytes, kReduce>(p, table, e, plan);
  }

  static int run(const PipelineParams& p, const uint64_t* table, const Execution& e) {
    const PipelinePlan plan = plan_pipeline(p, kElementBytes);
    return plan.reduce ? launch_access<true>(p, table, e, plan) : launch_access<false>(p, table, e, plan);
  }
};

}  // namespace rope::cuda
