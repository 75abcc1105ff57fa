#include "../launch.cuh"

template rope::Outcome rope::cuda::pipeline<rope::BF16>(const PipelineParams&, const PairData&, const Execution&);
