// How a rotation in a cache is laid out on the device: pure arithmetic on its shape.
#pragma once

#include "../../operations/pipeline.h"
#include "../parts/plan.h"

namespace rope::cuda {

// What tells the kernels of one stored type and layout apart.
struct CacheCode {
  bool wide;  // an access moves 16 bytes of a dtype, 8 of codes, of which a thread works on as many numbers; else one
              // element
  bool dynamic;  // scales are computed anew; of codes
  bool grouped;  // those of groups, or of blocks

  constexpr bool operator==(const CacheCode& x) const {
    return wide == x.wide && dynamic == x.dynamic && grouped == x.grouped;
  }
  constexpr int vec(int element_bytes) const { return !wide ? 1 : element_bytes == 1 ? 8 : 16 / element_bytes; }
  // Heads whose loads a thread has in flight; a row that is reduced is taken by itself.
  constexpr int unroll() const { return wide && !dynamic ? 4 : 1; }
};

// All that are compiled for a dtype, and for codes.
inline constexpr CacheCode kDtypeCacheCodes[] = {{true, false, false}, {false, false, false}};
inline constexpr CacheCode kCodesCacheCodes[] = {{true, false, false}, {false, false, false}, {true, true, false},
                                                 {false, true, false}, {true, true, true},    {false, true, true}};

struct CachePlan {
  const char* unsupported;  // why there is no plan, or null
  CacheCode code;
  int32_t slots, stored_slots;  // of a head; of what is not rotated
  int32_t turns;                // of a thread over its heads
  unsigned block_x, block_y, block_z, grid_x, grid_y, grid_z;
};

// element_bytes: of what the cache holds.
CachePlan plan_rotate_cache(const PipelineParams& p, int element_bytes);

}  // namespace rope::cuda
