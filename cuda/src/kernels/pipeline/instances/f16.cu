#include "../launch.cuh"

template rope::Outcome rope::cuda::pipeline<rope::F16>(const PipelineParams&, const PairData&, const Execution&);
