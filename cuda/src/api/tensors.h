// The tensors of a rope_apply_desc and what becomes of each.
#pragma once

#include "checks.h"

namespace rope::api {

// Reads q, k, v and the nope part of q, with their outputs, into p's operands; the options are there already. Fails
// where memory that is written overlaps what else the call has.
rope_status read_tensors(const rope_apply_desc& d, PipelineCall* p);

}  // namespace rope::api
