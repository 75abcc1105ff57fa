// Whether every token has its place in the cache.
#pragma once

#include "checks.h"

namespace rope::api {

// ROPE_FLAG_CHECK_PLACES: refuses a token whose place is outside. Reads what says where on the host, from CUDA memory
// once the stream has done what is pending.
rope_status check_places(const rope_apply_desc& d, const CacheMap& cache);

}  // namespace rope::api
