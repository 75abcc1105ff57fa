#include "../cache_rotation.h"
#include "../cache_rotation_launch.cuh"

namespace rope::cuda {

extern const CacheRotationTable kCacheRotation = cache_rotation_table<CacheRotationOf>();

}  // namespace rope::cuda
