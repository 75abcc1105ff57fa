// From a plan to the instance that carries it out.
#pragma once

#include <algorithm>
#include <cstring>

#include "pipeline.cuh"

namespace rope::cuda {

template <class D, Layout kLayout>
struct PipelineInstance {
  static constexpr int kElementBytes = sizeof(typename D::Storage);

  template <int kAccess, int kUnroll, bool kReduce, bool kQuantised, bool kGeneral>
  static int launch_one(const PipelineParams& p, const uint64_t* table, const Execution& e, const PipelinePlan& plan) {
    constexpr int kPairs = kGeneral ? kMaxRotaryDim / 2 : kFewPairs;
    PipelineArgs<kPairs> args;
    args.params = p;
    std::copy_n(plan.operands, kMaxOperands, args.plans);
    std::copy_n(plan.first_block, kMaxOperands, args.first_block);
    args.prefetch = e.dependent && plan.prefetch;
    args.release_early = plan.release_early;
    if (table) std::memcpy(args.table, table, sizeof(uint64_t) * size_t(p.rotary_dim / 2));
    return launch<kReduce>(
        pipeline_kernel<D, kLayout, kAccess / kElementBytes, kUnroll, kReduce, kQuantised, kGeneral, kPairs>,
        dim3{plan.grid_x, 1, plan.grid_z}, dim3{plan.threads, 1, 1}, args, e.stream, e.dependent);
  }

  // Every plan that plan_pipeline() makes; a new kind of plan needs its line here.
  template <int kAccess, bool kReduce>
  static int choose_code(const PipelineParams& p, const uint64_t* table, const Execution& e, const PipelinePlan& plan) {
    if constexpr (kAccess > kElementBytes) {
      constexpr int kUnroll = kReduce || kAccess == 8 ? 2 : 4;
      if (!plan.general)
        return plan.quantised ? launch_one<kAccess, kUnroll, kReduce, true, false>(p, table, e, plan)
                              : launch_one<kAccess, kUnroll, kReduce, false, false>(p, table, e, plan);
    }
    return launch_one<kAccess, kReduce ? 1 : 2, kReduce, true, true>(p, table, e, plan);
  }

  template <bool kReduce>
  static int choose_access(const PipelineParams& p, const uint64_t* table, const Execution& e,
                           const PipelinePlan& plan) {
    if (plan.access_bytes == 16) return choose_code<16, kReduce>(p, table, e, plan);
    if (plan.access_bytes == 8) return choose_code<8, kReduce>(p, table, e, plan);
    return choose_code<kElementBytes, kReduce>(p, table, e, plan);
  }

  static int run(const PipelineParams& p, const uint64_t* table, const Execution& e) {
    const PipelinePlan plan = plan_pipeline(p, kElementBytes);
    return plan.reduce ? choose_access<true>(p, table, e, plan) : choose_access<false>(p, table, e, plan);
  }
};

}  // namespace rope::cuda
