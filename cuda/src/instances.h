// The list of what is compiled. A dtype needs its traits (math/dtype.h) and one line here; both backends, the support
// query and the tests follow.
#pragma once

#include "params.h"

#define ROPE_FOR_EACH_DTYPE(X) X(F32) X(F16) X(BF16)

namespace rope {

inline constexpr int kNumDtypes = 3, kNumLayouts = 2, kNumAngles = 2;

// The rotations of one dtype, by layout and angle. A null entry is not compiled.
struct RotateTable {
  RotateFn entries[kNumLayouts][kNumAngles];
};

// Instance<Layout, Angle>::run for every combination.
template <template <Layout, Angle> class Instance>
constexpr RotateTable rotate_table() {
  return {{{Instance<Layout::kNeox, Angle::kExact>::run, Instance<Layout::kNeox, Angle::kFp32>::run},
           {Instance<Layout::kGptj, Angle::kExact>::run, Instance<Layout::kGptj, Angle::kFp32>::run}}};
}

}  // namespace rope
