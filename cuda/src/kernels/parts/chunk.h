// kVec consecutive elements as one access moves them: 16, 8 or 4 bytes, or a single element.
#pragma once

#include <type_traits>

#include "../../math/dtype.h"

namespace rope::cuda {

template <class D, int kVec>
struct Chunk {
  static constexpr int kElementBytes = sizeof(typename D::Storage), kBytes = kElementBytes * kVec;
  using Word = std::conditional_t<kBytes >= 4, uint32_t, typename D::Storage>;
  static constexpr int kWords = kBytes / int(sizeof(Word)), kPerWord = kVec / kWords;

  alignas(kBytes) Word word[kWords];

  // As: D, or its twin, whose bits the words then are.
  template <class As = D>
  ROPE_INLINE_MEMBER void widen(float* x) const {
#pragma unroll
    for (int j = 0; j < kVec; ++j)
      x[j] = As::widen(typename As::Storage(word[j / kPerWord] >> (j % kPerWord * 8 * kElementBytes)));
  }

  template <class As = D>
  ROPE_INLINE_MEMBER void narrow(const float* x) {
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      if constexpr (kPerWord == 2) {
        word[j] = As::narrow2(x[2 * j], x[2 * j + 1]);
      } else {
        word[j] = As::narrow(x[j]);
      }
    }
  }
};

}  // namespace rope::cuda
