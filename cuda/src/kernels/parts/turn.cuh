// A thread's pairs, turned.
#pragma once

#include "../../math/pair.h"
#include "launch.h"

namespace rope::cuda {

// x: the two chunks of a slot, one behind the other. Turn: CosSin, or PairTurn.
template <Layout kLayout, int kVec, class Turn>
__device__ __forceinline__ void turn_pairs(const Turn* angle, float* x) {
  using Map = PairMap<kLayout, kVec>;
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    const Pair y = rotate_pair({x[Map::element0(j)], x[Map::element1(j)]}, angle[j]);
    x[Map::element0(j)] = y.first;
    x[Map::element1(j)] = y.second;
  }
}

template <int kVec, class Turn>
__device__ __forceinline__ void turn_pairs(Layout layout, const Turn* angle, float* x) {
  if (layout == Layout::kGptj) {
    turn_pairs<Layout::kGptj, kVec>(angle, x);
  } else {
    turn_pairs<Layout::kNeox, kVec>(angle, x);
  }
}

}  // namespace rope::cuda
