#include "../launch.cuh"

template rope::Outcome rope::cuda::pipeline<rope::F32>(const PipelineParams&, const PairData&, const Execution&);
