#include "../launch.cuh"

template rope::Outcome rope::cuda::decode<rope::BF16>(const DecodeParams&, const PairData&, const Execution&);
