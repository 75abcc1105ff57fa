// What an operation works on, already validated: the common language of api/, kernels/ and cpu/.
#pragma once

#include <cstdint>

#include "math/angle.h"
#include "math/dtype.h"
#include "math/position.h"
#include "math/rotate.h"

namespace rope {

inline constexpr int kMaxRotaryDim = 2048;
inline constexpr int kFewPairs = 64;  // rotary_dim / 2 of most heads, which have code of their own

constexpr int32_t divide_up(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

// Rows of head_dim elements, [num_tokens, num_heads]. Strides are in bytes. in == out: in place, with equal strides;
// elements outside the rotated part are then left alone, otherwise they are copied.
struct Heads {
  const char* in;
  char* out;
  int64_t in_token_stride, in_head_stride;
  int64_t out_token_stride, out_head_stride;
};

// Of a call with sections, how a slot's pairs (math/rotate.h) share a token's positions: all by one, or any.
enum class SectionForm { kNone, kWhole, kAny };

struct RotateParams {
  Heads q, k;
  int32_t num_q_heads, num_k_heads;  // 0: absent
  int64_t num_tokens;
  int32_t head_dim, rotary_dim, rotary_offset;
  float cos_scale, sin_scale;  // magnitude; the sine's is negated for the inverse
  Positions positions;
};

// Where and how to run.
struct Execution {
  void* stream;          // CUDA
  bool dependent;        // CUDA: programmatic dependent launch
  bool positions_ready;  // CUDA: nothing that is still pending on the stream writes positions or cache indices
  int32_t num_threads;   // CPU; 0: all of the process's
};

// A backend's compiled rotation. `table` is host memory, [rotary_dim / 2]. Returns a cudaError_t, 0 on the CPU.
using RotateFn = int (*)(const RotateParams& params, const uint64_t* table, const Execution& execution);

// What selects one compiled rotation.
struct RotateKey {
  Dtype dtype;
  Layout layout;
  Angle angle;
};

}  // namespace rope
