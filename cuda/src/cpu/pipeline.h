// The pipelines compiled for the CPU, one set per instruction set as in rotate.h.
#pragma once

#include "../pipeline.h"

namespace rope::cpu {

struct PipelineSet {
  PipelineTable tables[kNumDtypes];
};

extern const PipelineSet kPipelineBaseline, kPipelineV3, kPipelineV4;

const PipelineSet& pipeline_set();  // the best that this processor runs

}  // namespace rope::cpu
