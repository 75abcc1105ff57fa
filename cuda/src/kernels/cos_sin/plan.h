// How rows of cos and sin are laid out on the device: pure arithmetic on their shape.
#pragma once

#include "../../operations/cos_sin.h"
#include "../parts/plan.h"

namespace rope::cuda {

inline constexpr int kCosSinBlock = 256;  // threads, at most

// threadIdx.x runs over the chunks of a row, y over rows; blockIdx.x over rows, y over chunks that do not fit one
// block.
struct CosSinPlan {
  bool wide;  // an access moves 16 bytes, else one element, as with float32 positions
  unsigned block_x, block_y, grid_x, grid_y;
};

CosSinPlan plan_cos_sin(const CosSinParams& p, int element_bytes);

}  // namespace rope::cuda
