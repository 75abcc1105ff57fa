// Which elements of a head are a thread's: two chunks of kVec elements, at `first` and `second`.
#pragma once

#include "../../math/pair.h"

namespace rope::cuda {

struct Slot {
  bool rotated;
  int32_t first, second;
};

// A head's slots: the rotated ones (math/pair.h), then `stored_slots` of what is only copied or stored, chunk by
// chunk; of these the last one may have one chunk only, and takes it twice. rotary_dim is 0 where nothing is rotated.
// kStored: there may be any.
template <int kVec, bool kStored>
ROPE_INLINE Slot slot_of(Layout layout, int32_t rotary_dim, int32_t rotary_offset, int32_t dim, int32_t stored_slots,
                         int32_t slot) {
  const int32_t half = rotary_dim / 2, rotated_slots = half / kVec;
  if (!kStored || slot < rotated_slots) {
    if (layout == Layout::kGptj) {
      const PairMap<Layout::kGptj, kVec> map{slot, half};
      return {true, rotary_offset + map.first(), rotary_offset + map.second()};
    }
    const PairMap<Layout::kNeox, kVec> map{slot, half};
    return {true, rotary_offset + map.first(), rotary_offset + map.second()};
  }
  const auto element = [&](int32_t chunk) {
    return chunk * kVec < rotary_offset ? chunk * kVec : chunk * kVec + rotary_dim;
  };
  const int32_t n = slot - rotated_slots, chunks = (dim - rotary_dim) / kVec;
  return {false, element(n), element(n + stored_slots < chunks ? n + stored_slots : n)};
}

// The slots of a head that slot_of() knows behind the rotated ones.
ROPE_INLINE int32_t stored_slots_of(int32_t unrotated, int32_t vec) { return (unrotated / vec + 1) / 2; }

}  // namespace rope::cuda
