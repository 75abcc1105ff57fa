// The table's words of a thread's pairs.
#pragma once

#include "../math/rotate.h"
#include "launch.h"

namespace rope::cuda {

// The table's words for the pairs of a slot, two at a time where two are neighbours.
template <Layout kLayout, int kVec>
__device__ __forceinline__ void load_words(const uint64_t* table, PairMap<kLayout, kVec> map, uint64_t* word) {
  struct alignas(16) Two {
    uint64_t x, y;
  };
  constexpr bool kNeighbours = kLayout == Layout::kNeox ? kVec >= 2 : kVec >= 4;
#pragma unroll
  for (int j = 0; j < kVec; j += kNeighbours ? 2 : 1) {
    if constexpr (kNeighbours) {
      const Two two = *reinterpret_cast<const Two*>(table + map.pair(j));
      word[j] = two.x;
      word[j + 1] = two.y;
    } else {
      word[j] = table[map.pair(j)];
    }
  }
}

}  // namespace rope::cuda
