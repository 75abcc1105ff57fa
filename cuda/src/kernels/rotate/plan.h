// How a rotation is laid out on the device: pure arithmetic on its shape, the same for every dtype.
#pragma once

#include "../../operations/rotate.h"
#include "../parts/plan.h"

namespace rope::cuda {

// What tells the kernels of one dtype, layout and angle apart.
struct RotateCode {
  int access_bytes;  // 16 or 8 where everything is a multiple of it, else one element
  int unroll;        // heads whose loads a thread has in flight
  bool copies;       // out of place, with elements that are not rotated
  SectionForm sections;

  constexpr bool operator==(const RotateCode& x) const {
    return access_bytes == x.access_bytes && unroll == x.unroll && copies == x.copies && sections == x.sections;
  }
  // Whether there is also a kernel that reads positions, and forms angles, before the wait.
  constexpr bool has_early() const {
    return !copies && (access_bytes == 8 || (access_bytes == 16 && unroll == 4 && sections == SectionForm::kNone));
  }
};

// Heads in flight of a call with sections: four of float32 would not leave it registers.
constexpr int sections_unroll(int element_bytes) { return element_bytes == 4 ? 2 : 4; }

// All that are compiled, each for few pairs and for many.
template <int kElementBytes>
inline constexpr RotateCode kRotateCodes[] = {
    {kElementBytes, 2, true, SectionForm::kNone},
    {kElementBytes, 2, true, SectionForm::kAny},
    {8, 2, false, SectionForm::kNone},
    {8, 2, false, SectionForm::kWhole},
    {8, 2, false, SectionForm::kAny},
    {16, 4, true, SectionForm::kNone},
    {16, 4, true, SectionForm::kAny},
    {16, sections_unroll(kElementBytes), false, SectionForm::kWhole},
    {16, 1, false, SectionForm::kNone},
    {16, 2, false, SectionForm::kNone},
    {16, 4, false, SectionForm::kNone},
};

struct RotatePlan {
  RotateCode code;
  bool early;                    // positions are read, and angles formed, before the wait; few pairs
  bool prefetch, release_early;  // for a dependent launch, see RotateArgs
  int32_t copy_slots;            // see RotateArgs
  unsigned block_x, block_y, block_z, grid_x, grid_y, grid_z;
};

// early: positions may be read before the wait.
RotatePlan plan_rotate(const RotateParams& p, int element_bytes, bool early);

}  // namespace rope::cuda
