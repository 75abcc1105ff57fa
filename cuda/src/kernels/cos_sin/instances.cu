#include "launch.cuh"

template rope::Outcome rope::cuda::build_cos_sin<rope::F32>(const CosSinParams&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::build_cos_sin<rope::F16>(const CosSinParams&, const PairData&, const Execution&);
template rope::Outcome rope::cuda::build_cos_sin<rope::BF16>(const CosSinParams&, const PairData&, const Execution&);
