// Rows of a quantised type, chunk by chunk.
#pragma once

#include "../math/quantize.h"
#include "chunk.h"
#include "slot.h"

namespace rope::cuda::detail {

template <OutType kType, int kVec>
__device__ __forceinline__ void store_quantised(char* at, float factor, const float* x) {
  if constexpr (kVec == 1) {
    *at = char(quantize2(kType, x[0] * factor, 0.0f));
  } else {
    struct alignas(kVec) Bytes {
      uint16_t two[kVec / 2];
    } bytes;
#pragma unroll
    for (int j = 0; j < kVec / 2; ++j)
      bytes.two[j] = uint16_t(quantize2(kType, x[2 * j] * factor, x[2 * j + 1] * factor));
    *reinterpret_cast<Bytes*>(at) = bytes;
  }
}

template <int kVec>
__device__ __forceinline__ void store_quantised(OutType type, char* row, const Slot& s, float factor, const float* x) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    char* const at = row + (c ? s.second : s.first);
    if (type == OutType::kE4M3) store_quantised<OutType::kE4M3, kVec>(at, factor, x + c * kVec);
    if (type == OutType::kE5M2) store_quantised<OutType::kE5M2, kVec>(at, factor, x + c * kVec);
    if (type == OutType::kInt8) store_quantised<OutType::kInt8, kVec>(at, factor, x + c * kVec);
  }
}

template <OutType kType, int kVec>
__device__ __forceinline__ void widen_quantised(const Chunk<U8, kVec>& codes, float scale, float* x) {
  using C = Chunk<U8, kVec>;
#pragma unroll
  for (int j = 0; j < kVec; ++j)
    x[j] = dequantize(kType, uint8_t(codes.word[j / C::kPerWord] >> (j % C::kPerWord * 8))) * scale;
}

template <int kVec>
__device__ __forceinline__ void widen_quantised(OutType type, const Chunk<U8, kVec>& codes, float scale, float* x) {
  if (type == OutType::kE4M3) widen_quantised<OutType::kE4M3>(codes, scale, x);
  if (type == OutType::kE5M2) widen_quantised<OutType::kE5M2>(codes, scale, x);
  if (type == OutType::kInt8) widen_quantised<OutType::kInt8>(codes, scale, x);
}

}  // namespace rope::cuda::detail
