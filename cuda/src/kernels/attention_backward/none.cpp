// In place of kernels, of which there are none yet.
#include "../../operations/operations.h"

namespace rope::cuda {

template <class D>
Outcome attention_backward(const AttentionBackwardParams&, const PairData&, const Execution&) {
  return {0, "backend: rope_attention_backward runs on the CPU"};
}

#define ROPE_INSTANCE(D) \
  template Outcome attention_backward<D>(const AttentionBackwardParams&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cuda
