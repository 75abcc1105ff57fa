#include "launch.cuh"

template rope::Outcome rope::cuda::rotate_cache<rope::F32>(const PipelineCall&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::rotate_cache<rope::F16>(const PipelineCall&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::rotate_cache<rope::BF16>(const PipelineCall&, const PairData&, const Execution&);
