#include "../launch.cuh"

rope::Outcome rope::cuda::decode_codes(const DecodeParams& p, const PairData& pairs, const Execution& e, Dtype dtype) {
  return launch_decode<F16, kCodesDecodeCodes>(p, pairs, e, dtype);
}
