// The rotations in a cache compiled for the CPU, once per instruction set as in rotate.h.
#pragma once

#include "../pipeline.h"

namespace rope::cpu {

extern const CacheRotationTable kCacheRotationBaseline, kCacheRotationV3, kCacheRotationV4;

const CacheRotationTable& cache_rotations();  // the best that this processor runs

}  // namespace rope::cpu
