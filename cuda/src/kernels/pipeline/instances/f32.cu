#include "../launch.cuh"

template rope::Outcome rope::cuda::pipeline<rope::F32>(const PipelineCall&, const PairData&, const Execution&);
