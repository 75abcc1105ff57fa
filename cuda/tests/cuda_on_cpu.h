// Stands in for CUDA when the kernels are compiled by g++: every thread of a launch runs to its end before the next one
// starts. Right for kernels without shared memory, barriers or shuffles; finds wrong indices and accesses (with
// AddressSanitizer and UBSan), not races.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace rope::cuda {

template <class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args, void*, bool) {
  const bool valid = grid.x - 1 < 0x7fffffffu && grid.y - 1 < 65535 && grid.z - 1 < 65535 && block.z - 1 < 64 &&
                     block.x && block.y && block.x * block.y * block.z <= 1024;
  if (!valid) return 1;  // cudaErrorInvalidValue
  gridDim = grid;
  blockDim = block;
  const auto for_each = [](dim3 size, auto body) {
    for (unsigned z = 0; z < size.z; ++z)
      for (unsigned y = 0; y < size.y; ++y)
        for (unsigned x = 0; x < size.x; ++x) body(dim3{x, y, z});
  };
  for_each(grid, [&](dim3 b) {
    blockIdx = b;
    for_each(block, [&](dim3 t) {
      threadIdx = t;
      kernel(args);
    });
  });
  return 0;
}

inline void wait_for_previous(uint64_t) {}
inline void wait_for_previous() {}
inline void release_next() {}
inline void prefetch(const void*) {}

template <class T>
const T* as_memory(const T* argument) {
  return argument;
}

}  // namespace rope::cuda
