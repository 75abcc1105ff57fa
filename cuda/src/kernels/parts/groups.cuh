// Heads in groups of elements, or blocks: the elements meet in shared memory, in their order, and each group is one
// thread's to decode and to encode.
#pragma once

#include "../../operations/token.h"
#include "launch.h"
#include "plan.h"
#include "slot.h"

namespace rope::cuda {

// The head's slots are `lanes` neighbouring threads, this one's is `lane`.
template <int kVec>
struct GroupRows {
  int32_t lanes, lane;
  bool in_warp;
  Slot slot;
  float* row;
  OutType type;
  const Groups& groups;
  int32_t count;  // of a head's groups
  bool live;      // the head is there
  char *codes, *scales;

  // Where element i is: groups of 16 and more begin in different banks.
  __device__ static int32_t place(int32_t i) { return i + i / 16; }
  __device__ static int32_t floats(int32_t lanes) { return place(lanes * 2 * kVec); }
  static constexpr int kFloats = kMaxBlock * 2 * kVec / 16 * 17;

  // x: the slot's elements.
  __device__ __forceinline__ void load(float* x) const {
    for (int32_t n = lane; live && n < count; n += lanes)
      decode_group(type, groups, n, codes, scales, [&](int32_t i, float y) { row[place(i)] = y; });
    synchronize(in_warp);
#pragma unroll
    for (int j = 0; live && j < kVec; ++j) {
      x[j] = row[place(slot.first + j)];
      x[kVec + j] = row[place(slot.second + j)];
    }
  }

  __device__ __forceinline__ void store(const float* x) const {
#pragma unroll
    for (int j = 0; live && j < kVec; ++j) {
      row[place(slot.first + j)] = x[j];
      row[place(slot.second + j)] = x[kVec + j];
    }
    synchronize(in_warp);
    for (int32_t n = lane; live && n < count; n += lanes)
      encode_group(type, groups, n, [&](int32_t i) { return row[place(i)]; }, codes, scales);
    synchronize(in_warp);
  }
};

}  // namespace rope::cuda
