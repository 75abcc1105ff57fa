// How a rotation in a cache is laid out on the device: pure arithmetic on its shape.
#pragma once

#include "../pipeline.h"
#include "pipeline_plan.h"

namespace rope::cuda {

// Elements of the wide access: 16 bytes of a dtype, 8 of codes, of which a thread works on as many numbers.
constexpr int wide_vec(int element_bytes) { return element_bytes == 1 ? 8 : 16 / element_bytes; }

// Heads whose loads a thread has in flight; a row that is reduced is taken by itself.
constexpr int cache_rotation_unroll(bool wide, bool dynamic) { return wide && !dynamic ? 4 : 1; }

struct CacheRotationPlan {
  bool wide;                    // else an access moves one element
  int32_t slots, stored_slots;  // of a head; of what is not rotated
  int32_t turns;                // of a thread over its heads
  unsigned block_x, block_y, block_z, grid_x, grid_y, grid_z;
};

CacheRotationPlan plan_cache_rotation(const PipelineParams& p, int element_bytes);

// False: a block cannot hold a head, which dynamic scales need.
bool cache_rotation_fits(const PipelineParams& p);

}  // namespace rope::cuda
