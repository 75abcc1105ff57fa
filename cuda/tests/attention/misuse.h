// Kernels that are wrong on purpose: what hopper_on_cpu.h must not let pass.
#pragma once

#include "../../src/kernels/attention/hopper_host.cuh"
#include "../plans/check.h"

namespace rope::cuda::test {

struct MisuseArgs {
  TensorMap map;
  uint16_t* out;
};

// A barrier at 0, a box of 64 rows at 1024.
inline constexpr uint32_t kBarrier = 0, kBox = 1024;
inline constexpr int kBoxBytes = 64 * 128;

inline void begin(int arrivals) {
  if (threadIdx.x == 0) barrier_init(kBarrier, arrivals);
  synchronize(false);
}

inline void load(const MisuseArgs& args) {
  if (threadIdx.x == 0) load_box(kBox, &args.map, kBarrier, 0, 0, 0, 0);
}

inline void right(MisuseArgs args) {
  begin(1);
  if (threadIdx.x == 0) barrier_expect(kBarrier, kBoxBytes);
  load(args);
  barrier_wait(kBarrier, 0);
  store_shared(kBox + 16 * threadIdx.x, {1, 2, 3, 4});
  fence_async_proxy();
  group_sync(1, kWarpgroup);
  if (threadIdx.x == 0) {
    store_box(&args.map, kBox, 0, 0, 0, 0);
    commit_stores();
    wait_stores_read();
  }
}

inline void nobody_arrives(MisuseArgs) {
  begin(1);
  barrier_wait(kBarrier, 0);
}
inline void too_many_arrive(MisuseArgs) {
  begin(1);
  if (threadIdx.x == 0) barrier_expect(kBarrier, kBoxBytes);
  barrier_arrive(kBarrier);
}
inline void fewer_bytes(MisuseArgs args) {
  begin(1);
  if (threadIdx.x == 0) barrier_expect(kBarrier, 2 * kBoxBytes);
  load(args);
  barrier_wait(kBarrier, 0);
}
inline void more_bytes(MisuseArgs args) {
  begin(1);
  if (threadIdx.x == 0) barrier_expect(kBarrier, kBoxBytes / 2);
  load(args);
  barrier_wait(kBarrier, 0);
}
inline void nobody_waits(MisuseArgs) {
  begin(1);
  if (threadIdx.x == 0) barrier_expect(kBarrier, kBoxBytes);
}
inline void phase_missed(MisuseArgs) {
  begin(1);
  if (threadIdx.x == 0)
    for (int i = 0; i < 3; ++i) barrier_arrive(kBarrier);
  barrier_wait(kBarrier, 0);
}
inline void arrival_left(MisuseArgs) { group_arrive(1, 2 * kWarpgroup); }
inline void no_fence(MisuseArgs args) {
  store_shared(kBox + 16 * threadIdx.x, {1, 2, 3, 4});
  group_sync(1, kWarpgroup);
  if (threadIdx.x == 0) {
    store_box(&args.map, kBox, 0, 0, 0, 0);
    commit_stores();
    wait_stores_read();
  }
}
inline void store_not_waited_for(MisuseArgs args) {
  if (threadIdx.x == 0) {
    store_box(&args.map, kBox, 0, 0, 0, 0);
    commit_stores();
  }
}
inline void products_without_fence(MisuseArgs) {
  float d[32];
  Product<64, BF16>::keys(d, uint64_t(1) << 62, uint64_t(1) << 62, false);
}
inline void products_differ(MisuseArgs) {
  float d[32];
  products_begin();
  Product<64, BF16>::keys(d, uint64_t(1) << 62 | threadIdx.x, uint64_t(1) << 62, false);
  products_commit();
  products_wait<0>();
}

template <auto kKernel>
int launch_misuse() {
  ++shape;
  std::vector<uint16_t> memory(64 * 64);
  MisuseArgs args = {{reinterpret_cast<char*>(memory.data()), {64, 64, 1, 1}, {128, 16, 16}, 64}, memory.data()};
  return launch_resident<kKernel>(1, kWarpgroup, 16 << 10, args, nullptr, false);
}

inline void check_misuse() {
  std::puts("twelve kernels, eleven of them wrong:");
  CHECK(launch_misuse<right>() == 0);
  CHECK(launch_misuse<nobody_arrives>() != 0);
  CHECK(launch_misuse<too_many_arrive>() != 0);
  CHECK(launch_misuse<fewer_bytes>() != 0);
  CHECK(launch_misuse<more_bytes>() != 0);
  CHECK(launch_misuse<nobody_waits>() != 0);
  CHECK(launch_misuse<phase_missed>() != 0);
  CHECK(launch_misuse<arrival_left>() != 0);
  CHECK(launch_misuse<no_fence>() != 0);
  CHECK(launch_misuse<store_not_waited_for>() != 0);
  CHECK(launch_misuse<products_without_fence>() != 0);
  CHECK(launch_misuse<products_differ>() != 0);
}

}  // namespace rope::cuda::test
