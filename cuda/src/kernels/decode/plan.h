// How a decode call is laid out on the device, and whether the kernels serve it: pure arithmetic.
#pragma once

#include "shape.h"

namespace rope::cuda {

struct DecodePlan {
  const char* unsupported;  // null, or the argument that the kernels do not serve, and what they do
  DecodeCode code;
  int32_t row_blocks;  // blocks that the queries of a key head take
  int64_t units;       // row blocks of key heads of requests
  int32_t split, splits;
  int64_t workspace_bytes;
};

// The workspace begins with a counter for each unit of a call that splits, zero between calls; then come the splits'
// results. Calls of different shapes have the counters in the same place.
inline constexpr int32_t kDecodeCounters = 32768;

// memory_read: else only the shape is asked about.
DecodePlan plan_decode(const DecodeParams& p, int multiprocessors, bool memory_read);

}  // namespace rope::cuda
