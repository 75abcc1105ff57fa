#include "../launch.cuh"

template rope::Outcome rope::cuda::pipeline<rope::BF16>(const PipelineCall&, const PairData&, const Execution&);
