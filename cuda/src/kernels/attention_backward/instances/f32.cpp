// float32, which the matrix units do not multiply.
#include "../../../operations/attention.h"

namespace rope::cuda {

template <class D>
Outcome attention_backward(const AttentionBackwardParams&, const PairData&, const Execution&) {
  return {0, "dtype: float16 or bfloat16 on CUDA"};
}

template Outcome attention_backward<F32>(const AttentionBackwardParams&, const PairData&, const Execution&);

}  // namespace rope::cuda
