// What plans share: the limits of every CUDA device, the alignment of what a kernel touches, and how a grid of blocks
// is laid over tokens, heads and slots. Pure arithmetic, for host and device.
#pragma once

#include <initializer_list>

#include "../../operations/call.h"

namespace rope::cuda {

inline constexpr int32_t kMaxBlockZ = 64, kMaxGridY = 65535;
inline constexpr int kMaxBlock = 128;  // threads that a plan gives a block, where it says nothing else
// Blocks of long code that must fit a multiprocessor. Without that, ptxas spills so that more do.
inline constexpr int kUnspilledBlocks = 4;

// Which accesses every address allows that a kernel forms in steps of an access. What is added counts in bytes of
// elements as large as an input's; in memory of smaller elements a distance stands for as many more bytes.
class Alignment {
 public:
  explicit Alignment(int element_bytes) : element_bytes_(element_bytes) {}

  void add_elements(int64_t count) { bits_ |= uint64_t(count) * uint64_t(element_bytes_); }
  void add_bytes(int64_t distance) { bits_ |= uint64_t(distance); }
  void add_bytes(int64_t distance, int64_t stored_bytes) {
    bits_ |= uint64_t(distance) * uint64_t(element_bytes_ / stored_bytes);
  }
  void add_address(const void* pointer) { bits_ |= reinterpret_cast<uintptr_t>(pointer); }

  bool allows(int access_bytes) const { return bits_ % uint64_t(access_bytes) == 0; }

  // 16 or 8 bytes, at most `most`, else one element.
  int widest(int most) const {
    for (const int access : {16, 8})
      if (access <= most && allows(access)) return access;
    return element_bytes_;
  }

 private:
  int element_bytes_;
  uint64_t bits_ = 0;
};

// threadIdx.x runs over slots, y over heads, z over tokens; blockIdx.x over tokens, y over heads, z over slots that do
// not fit one block. A thread's next head is `step` further.
struct GridPlace {
  int64_t token;
  int32_t slot, head, step;
};

template <class Index, class Size>
ROPE_INLINE GridPlace grid_place(Index block, Index thread, Size block_size, Size grid_size) {
  return {int64_t(block.x) * block_size.z + thread.z, int32_t(block.z * block_size.x + thread.x),
          int32_t(block.y * block_size.y + thread.y), int32_t(grid_size.y * block_size.y)};
}

}  // namespace rope::cuda
