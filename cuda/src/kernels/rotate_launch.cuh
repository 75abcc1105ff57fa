// From validated parameters to one launch: access width, block and grid, then the instance.
#pragma once

#include <cstring>

#include "rotate.cuh"
#include "rotate_plan.h"

namespace rope::cuda {

template <class D, Layout kLayout, Angle kAngle>
struct RotateInstance {
  template <int kVec, int kUnroll, int kMaxPairs>
  static int launch_one(const RotateParams& p, const uint64_t* table, const Execution& e, const RotatePlan& plan) {
    RotateArgs<kMaxPairs> args;
    args.params = p;
    args.copy_slots = plan.copy_slots;
    std::memcpy(args.table, table, sizeof(uint64_t) * size_t(p.rotary_dim / 2));
    return launch(rotate_kernel<D, kLayout, kAngle, kVec, kUnroll, kMaxPairs>,
                  dim3{plan.grid_x, plan.grid_y, 1}, dim3{plan.block_x, plan.block_y, plan.block_z}, args, e.stream,
                  e.dependent);
  }

  template <int kVec, int kUnroll>
  static int choose_table(const RotateParams& p, const uint64_t* table, const Execution& e, const RotatePlan& plan) {
    return p.rotary_dim <= 128 ? launch_one<kVec, kUnroll, 64>(p, table, e, plan)
                               : launch_one<kVec, kUnroll, kMaxRotaryDim / 2>(p, table, e, plan);
  }

  static int run(const RotateParams& p, const uint64_t* table, const Execution& e) {
    constexpr int kElementBytes = sizeof(typename D::Storage);
    const RotatePlan plan = plan_rotate(p, kElementBytes);
    if (plan.access_bytes == 16) {
      constexpr int kVec = 16 / kElementBytes;
      switch (plan.unroll) {
        case 1: return choose_table<kVec, 1>(p, table, e, plan);
        case 2: return choose_table<kVec, 2>(p, table, e, plan);
        default: return choose_table<kVec, 4>(p, table, e, plan);
      }
    }
    if (plan.access_bytes == 8) return choose_table<8 / kElementBytes, 1>(p, table, e, plan);
    return choose_table<1, 2>(p, table, e, plan);
  }
};

}  // namespace rope::cuda
