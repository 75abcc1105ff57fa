// Attention's gradients for sm_90a. dq is added up in float32 in the workspace: for each head and block of
// kBackwardRows queries, first the columns of one warpgroup, then those of the other; of a part, 4 floats of each
// thread for every 8 columns, as products leave them (attention/wgmma.cuh). ATTENTION.md has the reasons.
#pragma once

#include "consumer.cuh"
#include "rows.cuh"

namespace rope::cuda {

// Registers of a thread, of the 504 that three warpgroups have of the launch.
inline constexpr int kBackwardLoadingRegisters = 24, kBackwardComputingRegisters = 240;

template <class Shape, class D>
__global__ void __launch_bounds__(kAttentionThreads, 1) backward_keys_kernel(const __grid_constant__ KeysArgs args) {
  auto& storage = *reinterpret_cast<BackwardStorage<Shape>*>(shared_memory());
  if (threadIdx.x == 0) storage.init();
  synchronize(false);
  release_next();
  const int warpgroup = uniform(int(threadIdx.x) / kWarpgroup);
  if (warpgroup == 0) {
    shrink_registers<kBackwardLoadingRegisters>();
    const int warp = uniform(int(threadIdx.x) / kWarp);
    if (warp == 0) {
      if (threadIdx.x == 0) BackwardLoader<Shape>(args, storage).run();
    } else if (warp <= kComputing) {
      add_parts<Shape>(args, storage, warp - 1);
    }
  } else {
    grow_registers<kBackwardComputingRegisters>();
    BackwardConsumer<Shape, D>(args, storage, warpgroup - 1).run();
  }
}

}  // namespace rope::cuda
