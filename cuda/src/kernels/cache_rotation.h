// The rotations in a cache compiled for CUDA. Defined in instances/.
#pragma once

#include "../pipeline.h"

namespace rope::cuda {

extern const CacheRotationTable kCacheRotation;

}  // namespace rope::cuda
