// The pipelines compiled for CUDA. Defined per dtype in instances/.
#pragma once

#include "../pipeline.h"

namespace rope::cuda {

#define ROPE_DECLARE(dtype) extern const PipelineTable kPipeline##dtype;
ROPE_FOR_EACH_DTYPE(ROPE_DECLARE)
#undef ROPE_DECLARE

}  // namespace rope::cuda
