// In place of instances/ in a build without attention on CUDA (ROPEROPE_ATTENTION=OFF).
#include "../../operations/operations.h"

namespace rope::cuda {

template <class D>
Outcome attention_backward(const AttentionBackwardParams&, const PairData&, const Execution&) {
  return {0, "backend: this build has no attention on CUDA (ROPEROPE_ATTENTION)"};
}

#define ROPE_INSTANCE(D) \
  template Outcome attention_backward<D>(const AttentionBackwardParams&, const PairData&, const Execution&);
ROPE_FOR_EACH_DTYPE(ROPE_INSTANCE)
#undef ROPE_INSTANCE

}  // namespace rope::cuda
