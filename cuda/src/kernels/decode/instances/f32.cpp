// float32, which the matrix units do not multiply.
#include "../../../operations/operations.h"

namespace rope::cuda {

template <class D>
Outcome decode(const DecodeParams&, const PairData&, const Execution&) {
  return {0, "dtype: float16 or bfloat16 on CUDA"};
}

template Outcome decode<F32>(const DecodeParams&, const PairData&, const Execution&);

}  // namespace rope::cuda
