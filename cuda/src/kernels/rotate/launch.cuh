// From a plan to the kernel that carries it out.
#pragma once

#include "../../operations/operations.h"
#include "../parts/compiled.h"
#include "kernel.cuh"

namespace rope::cuda {

template <class D, Layout kLayout, Angle kAngle>
struct RotateLaunch {
  static constexpr int kElementBytes = sizeof(typename D::Storage);
  static constexpr const auto& kCodes = kRotateCodes<kElementBytes>;

  const RotateParams& p;
  const PairData& pairs;
  const Execution& e;
  const RotatePlan& plan;

  template <size_t kCode, bool kEarly, int kMaxPairs>
  int launch_one() const {
    constexpr RotateCode kThis = kCodes[kCode];
    RotateArgs<kMaxPairs> args;
    args.params = p;
    args.copy_slots = plan.copy_slots;
    args.prefetch = e.dependent && plan.prefetch;
    args.release_early = plan.release_early;
    copy_words(pairs, p.rotary_dim / 2, args.words);
    fill_streams(p.positions.sections, p.rotary_dim / 2, args.streams);
    return launch(rotate_kernel<D, kLayout, kAngle, kThis.access_bytes / kElementBytes, kThis.unroll, kThis.copies,
                                kEarly, kThis.sections, kMaxPairs>,
                  dim3{plan.grid_x, plan.grid_y, plan.grid_z}, dim3{plan.block_x, plan.block_y, plan.block_z}, args,
                  e.stream, e.dependent);
  }

  // Arguments are copied for every launch: the usual heads get one of their size.
  template <size_t kCode>
  int launch_code() const {
    if constexpr (kCodes[kCode].has_early())
      if (plan.early) return launch_one<kCode, true, kFewPairs>();
    return p.rotary_dim <= 2 * kFewPairs ? launch_one<kCode, false, kFewPairs>()
                                         : launch_one<kCode, false, kMaxRotaryDim / 2>();
  }
};

template <class D>
Outcome rotate(const RotateParams& p, const PairData& pairs, const Execution& e) {
  const bool known = e.positions_ready || p.positions.kind == PositionKind::kOffset;
  const RotatePlan plan = plan_rotate(p, sizeof(typename D::Storage), e.dependent && known);
  return for_layout(p.layout, [&](auto layout) {
    return for_angle(p.angle, [&](auto angle) {
      const RotateLaunch<D, layout.value, angle.value> launch{p, pairs, e, plan};
      const auto launch_code = [&](auto code) { return launch.template launch_code<code.value>(); };
      return Outcome{for_compiled<kRotateCodes<sizeof(typename D::Storage)>>(plan.code, launch_code), nullptr};
    });
  });
}

}  // namespace rope::cuda
