// How a rotation is laid out on the device: pure arithmetic on its shape, the same for every dtype.
#pragma once

#include "../params.h"

namespace rope::cuda {

inline constexpr int kMaxBlock = 128;  // threads

struct RotatePlan {
  int access_bytes;  // 16 or 8 where everything is a multiple of it, else one element
  int unroll;        // heads whose loads a thread has in flight: 1, 2 or 4
  SectionForm sections;
  bool prefetch, release_early;  // for a dependent launch, see RotateArgs
  bool early;                    // positions are read, and angles formed, before the wait
  int32_t copy_slots;            // see RotateArgs
  unsigned block_x, block_y, block_z, grid_x, grid_y, grid_z;
};

// Whether there is code that reads positions before the wait.
constexpr bool has_early(int access_bytes, int unroll, bool copies, SectionForm sections) {
  return !copies && (access_bytes == 8 || (access_bytes == 16 && unroll == 4 && sections == SectionForm::kNone));
}

// early: positions may be read before the wait.
RotatePlan plan_rotate(const RotateParams& p, Layout layout, int element_bytes, bool early);

// Heads in flight of a call with sections: four of float32 would not leave it registers.
constexpr int sections_unroll(int element_bytes) { return element_bytes == 4 ? 2 : 4; }

}  // namespace rope::cuda
