// The rotation of q and k alone: its parameters, validated.
#pragma once

#include "call.h"

namespace rope {

// Rows of head_dim elements, [num_tokens, num_heads]. Strides are in bytes. in == out: in place, with equal strides;
// elements outside the rotated part are then left alone, otherwise they are copied.
struct Heads {
  const char* in;
  char* out;
  int64_t in_token_stride, in_head_stride;
  int64_t out_token_stride, out_head_stride;
};

struct RotateParams {
  Heads q, k;
  int32_t num_q_heads, num_k_heads;  // 0: absent
  int64_t num_tokens;
  int32_t head_dim, rotary_dim, rotary_offset;
  float cos_scale, sin_scale;  // magnitude; the sine's is negated for the inverse
  Positions positions;
  Layout layout;
  Angle angle;  // not kCosSin
};

}  // namespace rope
