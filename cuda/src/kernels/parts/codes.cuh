// Rows of codes, chunk by chunk, and the scales that are computed for them.
#pragma once

#include <type_traits>

#include "../../operations/token.h"
#include "chunk.h"
#include "launch.h"

namespace rope::cuda {

template <class Code, int kVec>
__device__ __forceinline__ void store_codes(char* at, float factor, const float* x) {
  static_assert(Code::kBits == 8, "a code is a byte");
  if constexpr (kVec == 1) {
    *at = char(Code::encode2(x[0] * factor, 0.0f));
  } else {
    // One word, which ptxas cannot take apart.
    using Word = std::conditional_t<kVec == 2, uint16_t, std::conditional_t<kVec == 4, uint32_t, uint64_t>>;
    static_assert(sizeof(Word) == kVec);
    Word word = 0;
#pragma unroll
    for (int j = 0; j < kVec; j += 2) word |= Word(Word(Code::encode2(x[j] * factor, x[j + 1] * factor)) << (8 * j));
    *reinterpret_cast<Word*>(at) = word;
  }
}

// x * factor, rounded, to the two chunks of a slot.
template <int kVec>
__device__ __forceinline__ void store_codes(OutType type, char* row, int32_t first, int32_t second, float factor,
                                            const float* x) {
#pragma unroll
  for (int c = 0; c < 2; ++c)
    for_code(type,
             [&](auto code) { store_codes<decltype(code), kVec>(row + (c ? second : first), factor, x + c * kVec); });
}

// x, rounded to another dtype than the call's, element by element, to the two chunks of a slot. gap: bytes.
template <int kVec>
__device__ __forceinline__ void store_dtype(OutType type, char* row, int32_t first, int32_t second, int64_t gap,
                                            const float* x) {
  for_dtype(type, [&](auto d) {
    using Storage = typename decltype(d)::Storage;
#pragma unroll
    for (int j = 0; j < 2 * kVec; ++j) {
      const int32_t i = j < kVec ? first + j : second + j - kVec;
      *reinterpret_cast<Storage*>(row + i * (int64_t(sizeof(Storage)) + gap)) = d.narrow(x[j]);
    }
  });
}

template <int kVec>
__device__ __forceinline__ void widen_codes(OutType type, const Chunk<Codes, kVec>& codes, float scale, float* x) {
  using C = Chunk<Codes, kVec>;
  for_code(type, [&](auto code) {
#pragma unroll
    for (int j = 0; j < kVec; ++j)
      x[j] = code.decode(uint8_t(codes.word[j / C::kPerWord] >> (j % C::kPerWord * 8))) * scale;
  });
}

// What a head is multiplied with whose scale is computed from its largest magnitude; one of its threads `stores` it,
// the n-th.
__device__ __forceinline__ float renew_scale(const Quantize& q, int64_t n, float largest_magnitude, bool stores) {
  const float scale = dynamic_scale(q.type, largest_magnitude);
  if (stores) q.scales[n] = scale;
  return 1.0f / scale;
}

}  // namespace rope::cuda
