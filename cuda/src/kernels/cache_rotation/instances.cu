#include "launch.cuh"

template rope::Outcome rope::cuda::rotate_cache<rope::F32>(const PipelineParams&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::rotate_cache<rope::F16>(const PipelineParams&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::rotate_cache<rope::BF16>(const PipelineParams&, const PairData&, const Execution&);
