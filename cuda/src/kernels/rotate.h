// The rotations compiled for CUDA. Defined per dtype in instances/.
#pragma once

#include "../instances.h"

namespace rope::cuda {

#define ROPE_DECLARE(dtype) extern const RotateTable kRotate##dtype;
ROPE_FOR_EACH_DTYPE(ROPE_DECLARE)
#undef ROPE_DECLARE

}  // namespace rope::cuda
