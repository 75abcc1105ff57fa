// From a plan to the instance that carries it out.
#pragma once

#include <cstring>

#include "rotate.cuh"
#include "rotate_plan.h"

namespace rope::cuda {

template <class D, Layout kLayout, Angle kAngle>
struct RotateInstance {
  using Form = SectionForm;

  template <int kVec, int kUnroll, bool kCopy, bool kEarly, Form kSections, int kMaxPairs>
  static int launch_one(const RotateParams& p, const uint64_t* table, const Execution& e, const RotatePlan& plan) {
    RotateArgs<kMaxPairs> args;
    args.params = p;
    args.copy_slots = plan.copy_slots;
    args.prefetch = e.dependent && plan.prefetch;
    args.release_early = plan.release_early;
    std::memcpy(args.words, table, sizeof(uint64_t) * size_t(p.rotary_dim / 2));
    fill_streams(p.positions.sections, p.rotary_dim / 2, args.streams);
    return launch(rotate_kernel<D, kLayout, kAngle, kVec, kUnroll, kCopy, kEarly, kSections, kMaxPairs>,
                  dim3{plan.grid_x, plan.grid_y, plan.grid_z}, dim3{plan.block_x, plan.block_y, plan.block_z}, args,
                  e.stream, e.dependent);
  }

  // Arguments are copied for every launch: the usual heads get a table of their size.
  template <int kVec, int kUnroll, bool kCopy, Form kSections>
  static int choose_table(const RotateParams& p, const uint64_t* table, const Execution& e, const RotatePlan& plan) {
    if constexpr (has_early(kVec * int(sizeof(typename D::Storage)), kUnroll, kCopy, kSections))
      if (plan.early) return launch_one<kVec, kUnroll, kCopy, true, kSections, kFewPairs>(p, table, e, plan);
    return p.rotary_dim <= 2 * kFewPairs
               ? launch_one<kVec, kUnroll, kCopy, false, kSections, kFewPairs>(p, table, e, plan)
               : launch_one<kVec, kUnroll, kCopy, false, kSections, kMaxRotaryDim / 2>(p, table, e, plan);
  }

  template <int kVec, int kUnroll, bool kCopy, Form... kSections>
  static int choose_sections(const RotateParams& p, const uint64_t* table, const Execution& e, const RotatePlan& plan) {
    int error = 1;  // cudaErrorInvalidValue: a plan that nothing here carries out
    ((plan.sections == kSections && (error = choose_table<kVec, kUnroll, kCopy, kSections>(p, table, e, plan), true)) ||
     ...);
    return error;
  }

  // Every plan that plan_rotate() makes; a new kind of plan needs its line here.
  static int launch_plan(const RotateParams& p, const uint64_t* table, const Execution& e, const RotatePlan& plan) {
    constexpr int kElementBytes = sizeof(typename D::Storage), kWide = 16 / kElementBytes;
    if (plan.access_bytes == kElementBytes)
      return choose_sections<1, 2, true, Form::kNone, Form::kAny>(p, table, e, plan);
    if (plan.access_bytes == 8)
      return choose_sections<8 / kElementBytes, 2, false, Form::kNone, Form::kWhole, Form::kAny>(p, table, e, plan);
    if (plan.copy_slots) return choose_sections<kWide, 4, true, Form::kNone, Form::kAny>(p, table, e, plan);
    if (plan.sections != Form::kNone)
      return choose_table<kWide, sections_unroll(kElementBytes), false, Form::kWhole>(p, table, e, plan);
    switch (plan.unroll) {
      case 1: return choose_table<kWide, 1, false, Form::kNone>(p, table, e, plan);
      case 2: return choose_table<kWide, 2, false, Form::kNone>(p, table, e, plan);
      default: return choose_table<kWide, 4, false, Form::kNone>(p, table, e, plan);
    }
  }

  static int run(const RotateParams& p, const uint64_t* table, const Execution& e) {
    const bool known = e.positions_ready || p.positions.kind == PositionKind::kOffset;
    return launch_plan(p, table, e, plan_rotate(p, kLayout, sizeof(typename D::Storage), e.dependent && known));
  }
};

}  // namespace rope::cuda
