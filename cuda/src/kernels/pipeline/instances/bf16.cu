#include "../launch.cuh"

template rope::Outcome rope::cuda::rotate<rope::BF16>(const RotateParams&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::pipeline<rope::BF16>(const PipelineCall&, const PairData&, const Execution&);
