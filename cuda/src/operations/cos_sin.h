// Rows of cos and sin, those that Angle::kCosSin reads (pipeline.h): the parameters of what fills them, validated.
#pragma once

#include "call.h"

namespace rope {

struct CosSinParams {
  char *cos, *sin;               // [num_rows, pairs]
  int64_t num_rows, row_stride;  // row_stride: bytes
  int32_t pairs;
  float scale;  // magnitude
  Positions positions;
  Angle angle;     // not kCosSin
  bool of_tokens;  // a row whose token is left alone has cosines of 1 and sines of 0; else every position has its own
};

}  // namespace rope
