// What a descriptor says of a pipeline beside its tensors.
#pragma once

#include "apply.h"

namespace rope::api {

// Memory of the call's backend, aligned to `bytes`; null is allowed, or required `when`.
rope_status check_pointer(const rope_apply_desc& d, const char* name, const void* pointer, int64_t bytes);
rope_status require_pointer(const rope_apply_desc& d, const char* name, const void* pointer, int64_t bytes,
                            const char* when);

rope_status read_norm(const rope_apply_desc& d, Norm* n);
rope_status read_cache(const rope_apply_desc& d, CacheMap* c);
rope_status read_angles(const rope_apply_desc& d, PipelineParams* p);
rope_status read_xpos(const rope_apply_desc& d, XPos* x);  // filled where d.xpos.scale_base is set

}  // namespace rope::api
