// From a plan to the instance that carries it out.
#pragma once

#include <algorithm>
#include <cstring>

#include "pipeline.cuh"

namespace rope::cuda {

template <class D, Layout kLayout>
struct PipelineInstance {
  static constexpr int kElementBytes = sizeof(typename D::Storage);

  template <int kAccess, int kUnroll, bool kReduce, bool kQuantised, bool kGeneral, bool kEarly>
  static int launch_one(const PipelineParams& p, const PairTable& table, const Execution& e, const PipelinePlan& plan) {
    PipelineArgs<kGeneral> args;
    args.params = p;
    std::copy_n(plan.operands, kMaxOperands, args.plans);
    std::copy_n(plan.first_block, kMaxOperands, args.first_block);
    args.dependent = e.dependent;
    args.release_early = plan.release_early;
    if constexpr (kGeneral) {
      if (table.xpos) args.own = *table.xpos;
    } else {
      fill_streams(p.positions.sections, p.rotary_dim / 2, args.own.streams);
    }
    if (table.words) std::memcpy(args.words, table.words, sizeof(uint64_t) * size_t(p.rotary_dim / 2));
    return launch<kReduce>(pipeline_kernel<D, kLayout, kAccess / kElementBytes, kUnroll, kReduce, kQuantised, kGeneral,
                                           kEarly>,
                           dim3{plan.grid_x, 1, plan.grid_z}, dim3{plan.threads, 1, 1}, args, e.stream, e.dependent);
  }

  // Every plan that plan_pipeline() makes; a new kind of plan needs its line here.
  template <bool kReduce, bool kQuantised>
  static int choose_unroll(const PipelineParams& p, const PairTable& table, const Execution& e,
                           const PipelinePlan& plan) {
    constexpr int kNarrow = kReduce || kQuantised ? 1 : 2;
    if constexpr (kReduce || !kQuantised)
      if (plan.early && plan.access_bytes == 8)
        return launch_one<8, kNarrow, kReduce, kQuantised, false, true>(p, table, e, plan);
    if (plan.access_bytes == 8) return launch_one<8, kNarrow, kReduce, kQuantised, false, false>(p, table, e, plan);
    if constexpr (kQuantised && !kReduce)
      if (plan.unroll == 1) return launch_one<16, 1, kReduce, kQuantised, false, false>(p, table, e, plan);
    if constexpr (kQuantised != kReduce)
      if (plan.unroll == 4) return launch_one<16, 4, kReduce, kQuantised, false, false>(p, table, e, plan);
    return plan.early ? launch_one<16, 2, kReduce, kQuantised, false, true>(p, table, e, plan)
                      : launch_one<16, 2, kReduce, kQuantised, false, false>(p, table, e, plan);
  }

  template <bool kReduce>
  static int choose_code(const PipelineParams& p, const PairTable& table, const Execution& e,
                         const PipelinePlan& plan) {
    if (!plan.general)
      return plan.quantised ? choose_unroll<kReduce, true>(p, table, e, plan)
                            : choose_unroll<kReduce, false>(p, table, e, plan);
    if (plan.access_bytes == 16) return launch_one<16, 1, kReduce, true, true, false>(p, table, e, plan);
    if (plan.access_bytes == 8) return launch_one<8, 1, kReduce, true, true, false>(p, table, e, plan);
    return launch_one<kElementBytes, 1, kReduce, true, true, false>(p, table, e, plan);
  }

  static int run(const PipelineParams& p, const PairTable& table, const Execution& e) {
    const PipelinePlan plan = plan_pipeline(p, kElementBytes, e.dependent && e.positions_ready);
    return plan.reduce ? choose_code<true>(p, table, e, plan) : choose_code<false>(p, table, e, plan);
  }
};

}  // namespace rope::cuda
