// What a rope_apply_desc says of a pipeline beside its tensors.
#pragma once

#include "checks.h"

namespace rope::api {

// What is read is zero before; what the call does not have stays so.
rope_status read_positions(const rope_apply_desc& d, PipelineCall* p);
rope_status read_layouts(const rope_apply_desc& d, PipelineCall* p);
rope_status read_blocks(const rope_apply_desc& d, PipelineCall* p);
rope_status read_norm(const rope_apply_desc& d, Norm* n);
rope_status read_norm_sums(const rope_apply_desc& d, PipelineCall* p);  // behind the operands
rope_status read_cache(const rope_apply_desc& d, CacheMap* c);
rope_status read_angles(const rope_apply_desc& d, PipelineCall* p);
rope_status read_xpos(const rope_apply_desc& d, XPos* x);  // filled where d.xpos.scale_base is set

// The stream of each pair, into `streams`, where there are several; else null.
const uint8_t* streams_of(const rope_apply_desc& d, const PipelineParams& p, uint8_t* streams);

}  // namespace rope::api
