// Stands in for CUDA when the kernels are compiled by g++: every thread of a launch runs to its end before the next one
// starts. Right for kernels without shared memory, barriers or shuffles; finds wrong indices and accesses (with
// AddressSanitizer and UBSan), not races.
#pragma once

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
  gridDim = grid;
  blockDim = block;
  for (unsigned by = 0; by < grid.y; ++by)
    for (unsigned bx = 0; bx < grid.x; ++bx)
      for (unsigned z = 0; z < block.z; ++z)
        for (unsigned y = 0; y < block.y; ++y)
          for (unsigned x = 0; x < block.x; ++x) {
            blockIdx = {bx, by, 0};
            threadIdx = {x, y, z};
            kernel(args);
          }
  return 0;
}

inline void wait_for_previous() {}
inline void release_next() {}

}  // namespace rope::cuda
