#include "../launch.cuh"

template rope::Outcome rope::cuda::decode<rope::F16>(const DecodeParams&, const PairData&, const Execution&);
