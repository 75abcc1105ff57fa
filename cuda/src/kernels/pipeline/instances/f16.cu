#include "../launch.cuh"

template rope::Outcome rope::cuda::pipeline<rope::F16>(const PipelineCall&, const PairData&, const Execution&);
