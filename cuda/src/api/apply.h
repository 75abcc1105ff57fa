// What rope_apply reads of its descriptor beside tensors, and rope_attention of its rotation.
#pragma once

#include "options.h"

namespace rope::api {

struct ApplyCall {
  rope_apply_desc d;  // defaults filled in
  const Operations* operations;
  Execution execution;
  PipelineCall pipeline;
  XPos xpos;
};

// rope_apply; `asks`: nothing is done but to say whether the call is right.
rope_status apply(const rope_apply_desc* desc, bool asks);

// Without tokens nothing but the shape and positions are read.
rope_status read_call(const rope_apply_desc* desc, ApplyCall* call);

}  // namespace rope::api
