#include "../launch.cuh"

template rope::Outcome rope::cuda::attention_backward<rope::BF16>(const AttentionBackwardParams&, const PairData&,
                                                                  const Execution&);
