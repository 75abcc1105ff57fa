#include "../launch.cuh"

template rope::Outcome rope::cuda::rotate<rope::F16>(const RotateParams&, const PairData&, const Execution&);
