// How an attention call is laid out on the device, and whether the kernels serve it: pure arithmetic.
#pragma once

#include "shape.h"

namespace rope::cuda {

struct AttentionPlan {
  const char* unsupported;  // null, or the argument that the kernels do not serve, and what they do
  bool empty;               // there is nothing to compute
  AttentionCode code;
  unsigned blocks;
  int32_t section;                    // heads
  int32_t window_left, window_right;  // as given, or none where every key is inside
};

// Whether TMA can copy boxes of a tensor; ragged: of one sequence, of all tokens.
bool has_boxes(const AttentionTensor& t, int64_t sequences, int64_t tokens, int32_t heads);

// The last query stands at the last key, and so the first one q_tokens before the end: further than any key is no
// limit. reach: k_tokens on the left, q_tokens on the right.
int32_t window_limit(int32_t window, int32_t reach);

// multiprocessors: of the device; 0: it is none for these kernels.
AttentionPlan plan_attention(const AttentionParams& p, int multiprocessors);

}  // namespace rope::cuda
