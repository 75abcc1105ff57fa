// Weights of a norm, as a thread reads them.
#pragma once

#include "../../operations/token.h"
#include "chunk.h"
#include "launch.h"

namespace rope::cuda {

// Of kVec elements from `element` on; kWide: they lie on a multiple of 16 bytes.
template <class D, int kVec, bool kWide>
__device__ __forceinline__ void load_weights(const Norm& n, const void* weights, int32_t element, float* w) {
  if constexpr (!kWide) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) w[j] = norm_weight<D>(n, weights, element + j);
  } else {
    if (n.weight_is_f32) {
      struct alignas(4 * (kVec < 4 ? kVec : 4)) Floats {
        float x[kVec < 4 ? kVec : 4];
      } floats;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if (j % 4 == 0) floats = *reinterpret_cast<const Floats*>(static_cast<const float*>(weights) + element + j);
        w[j] = floats.x[j % 4];
      }
    } else {
      (reinterpret_cast<const Chunk<D, kVec>*>(static_cast<const typename D::Storage*>(weights) + element))->widen(w);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) w[j] = biased_weight(n, w[j]);
  }
}

}  // namespace rope::cuda
