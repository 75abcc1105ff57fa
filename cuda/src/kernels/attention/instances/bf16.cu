#include "../launch.cuh"

template rope::Outcome rope::cuda::attention<rope::BF16>(const AttentionParams&, const PairData&, const Execution&);
