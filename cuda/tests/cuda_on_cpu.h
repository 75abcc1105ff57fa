// Stands in for CUDA when the kernels are compiled by g++. Every CUDA thread of a launch runs to its end before the
// next one starts; where the threads of a block meet, each is a thread of the host. Finds wrong indices and accesses
// (with AddressSanitizer and UBSan).
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // launches whose threads meet come one after the other

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace rope::cuda {

template <class Body>
void for_each_in(dim3 size, Body body) {
  for (unsigned z = 0; z < size.z; ++z)
    for (unsigned y = 0; y < size.y; ++y)
      for (unsigned x = 0; x < size.x; ++x) body(dim3{x, y, z});
}

inline pthread_barrier_t block_meeting;
inline std::vector<pthread_barrier_t> warp_meetings;

inline unsigned thread_index() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }

inline void synchronize(bool warp_only) {
  pthread_barrier_wait(warp_only ? &warp_meetings[thread_index() / 32] : &block_meeting);
}

inline float exchange(float x, int lanes) {
  static float values[1024];
  const unsigned self = thread_index();
  values[self] = x;
  synchronize(true);
  const float y = values[self ^ unsigned(lanes)];
  synchronize(true);
  return y;
}

// A host thread for each thread of a block; they take the blocks one after the other.
template <class Args>
void run_together(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args) {
  static std::mutex one_launch;
  const std::lock_guard lock(one_launch);
  const unsigned count = block.x * block.y * block.z;
  pthread_barrier_init(&block_meeting, nullptr, count);
  warp_meetings.resize((count + 31) / 32);
  for (unsigned w = 0; w < warp_meetings.size(); ++w)
    pthread_barrier_init(&warp_meetings[w], nullptr, std::min(32u, count - 32 * w));
  std::vector<std::thread> threads;
  for_each_in(block, [&](dim3 t) {
    threads.emplace_back([&, t] {
      gridDim = grid;
      blockDim = block;
      threadIdx = t;
      for_each_in(grid, [&](dim3 b) {
        blockIdx = b;
        kernel(args);
        synchronize(false);
      });
    });
  });
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&block_meeting);
  for (pthread_barrier_t& meeting : warp_meetings) pthread_barrier_destroy(&meeting);
}

template <bool kTogether = false, class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args, void*, bool) {
  const bool valid = grid.x - 1 < 0x7fffffffu && grid.y - 1 < 65535 && grid.z - 1 < 65535 && block.z - 1 < 64 &&
                     block.x && block.y && block.x * block.y * block.z <= 1024;
  if (!valid) return 1;  // cudaErrorInvalidValue
  if (kTogether) {
    run_together(kernel, grid, block, args);
    return 0;
  }
  gridDim = grid;
  blockDim = block;
  for_each_in(grid, [&](dim3 b) {
    blockIdx = b;
    for_each_in(block, [&](dim3 t) {
      threadIdx = t;
      kernel(args);
    });
  });
  return 0;
}

inline void wait_for_previous(uint64_t) {}
template <class... T>
void fold(uint64_t&, const T&...) {}
inline void assume_global(const void*) {}
inline void wait_for_previous() {}
inline void release_next() {}
inline void prefetch(const void*) {}

template <class T>
const T* as_memory(const T* argument) {
  return argument;
}

}  // namespace rope::cuda
