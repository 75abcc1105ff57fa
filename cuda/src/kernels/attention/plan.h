// How an attention call is laid out on the device, and whether the kernels serve it: pure arithmetic.
#pragma once

#include "shape.h"

namespace rope::cuda {

struct AttentionPlan {
  const char* unsupported;  // null, or the argument that the kernels do not serve, and what they do
  bool empty;               // there is nothing to compute
  unsigned blocks;
  int32_t section;                    // heads
  int32_t window_left, window_right;  // as given, or none where every key is inside
};

// multiprocessors: of the device; 0: it is none for these kernels.
AttentionPlan plan_attention(const AttentionParams& p, int multiprocessors);

}  // namespace rope::cuda
