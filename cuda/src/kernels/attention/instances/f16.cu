#include "../launch.cuh"

template rope::Outcome rope::cuda::attention<rope::F16>(const AttentionParams&, const PairData&, const Execution&);
