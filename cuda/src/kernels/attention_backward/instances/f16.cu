#include "../launch.cuh"

template rope::Outcome rope::cuda::attention_backward<rope::F16>(const AttentionBackwardParams&, const PairData&,
                                                                 const Execution&);
