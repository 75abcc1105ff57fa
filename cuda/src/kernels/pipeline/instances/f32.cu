#include "../launch.cuh"

template rope::Outcome rope::cuda::rotate<rope::F32>(const RotateParams&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::pipeline<rope::F32>(const PipelineCall&, const PairData&, const Execution&);
