// How a call for attention's gradients is laid out on the device, and whether the kernels serve it: pure arithmetic.
#pragma once

#include "../attention/plan.h"
#include "shape.h"

namespace rope::cuda {

struct BackwardPlan {
  const char* unsupported;  // null, or the argument that the kernels do not serve, and what they do
  int32_t code;             // of kBackwardCodes
  unsigned rows_blocks, keys_blocks, sinks_blocks;  // of threads; 0: there is nothing to launch
  int32_t key_blocks;                               // of a sequence, at most
  int32_t section;                                  // key heads
  int32_t window_left, window_right;                // as given, or none where every key is inside
};

// multiprocessors: of the device; 0: it is none for these kernels.
BackwardPlan plan_attention_backward(const AttentionBackwardParams& b, int multiprocessors);

}  // namespace rope::cuda
