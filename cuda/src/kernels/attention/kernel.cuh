// The attention kernel: blocks that stay, each with a warpgroup that loads and two that compute; tiles of queries are
// dealt to them by a counter. ATTENTION.md has the reasons.
#pragma once

#include "consumer.cuh"
#include "producer.cuh"

namespace rope::cuda {

// Registers of a thread, of the 504 that three warpgroups have of the launch.
inline constexpr int kLoadingRegisters = 56, kComputingRegisters = 224;

template <class Shape, class D, bool kSoftcap>
__global__ void __launch_bounds__(kAttentionThreads, 1) attention_kernel(const __grid_constant__ AttentionArgs args) {
  auto& storage = *reinterpret_cast<AttentionStorage<Shape>*>(shared_memory());
  if (threadIdx.x == 0) storage.init(args.turn.cos);
  synchronize(false);
  release_next();
  const int warpgroup = uniform(int(threadIdx.x) / kWarpgroup);
  if (warpgroup == 0) {
    shrink_registers<kLoadingRegisters>();
    const int warp = uniform(int(threadIdx.x) / kWarp);
    if (warp == 0) {
      if (threadIdx.x == 0) load_keys_and_values<Shape>(args, storage);
    } else if (args.turn.cos) {
      load_and_turn_queries<Shape, D>(args, storage, int(threadIdx.x) - kWarp);
    } else if (threadIdx.x == kWarp) {
      load_queries<Shape>(args, storage);
    }
  } else {
    grow_registers<kComputingRegisters>();
    Consumer<Shape, D, kSoftcap>(args, storage, warpgroup - 1).run();
  }
}

}  // namespace rope::cuda
