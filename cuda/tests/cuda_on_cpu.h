// Stands in for CUDA when the kernels are compiled by g++. Every CUDA thread of a launch runs to its end before the
// next one starts; where the threads of a block meet, they take turns. Finds wrong indices and accesses (with
// AddressSanitizer and UBSan).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

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

inline unsigned thread_index() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }

// ---- blocks whose threads meet: each is a fiber of the host thread, which goes round among them

// Where `expected` fibers wait for each other.
struct Meeting {
  unsigned expected = 0, arrived = 0, round = 0;
};

class Fibers {
 public:
  // Runs body(), as each thread of the block, to its end. Where all threads wait, idle() may bring what they wait for;
  // false: it does not, and they stay where they are (waits() says where).
  template <class Body, class Idle>
  bool run(dim3 block, Body body, Idle idle) {
    const unsigned count = block.x * block.y * block.z;
    together_ = {count};
    warps_.assign((count + 31) / 32, {});
    for (unsigned w = 0; w < warps_.size(); ++w) warps_[w].expected = std::min(32u, count - 32 * w);
    while (stacks_.size() < count) stacks_.push_back(std::make_unique<char[]>(kStackBytes));
    body_ = body;
    fibers_.assign(count, {});
    unsigned n = 0;
    for_each_in(block, [&](dim3 index) { start(fibers_[n], stacks_[n].get(), index), ++n; });
    order_.resize(count);
    std::iota(order_.begin(), order_.end(), 0u);
    // Threads must not count on each other's pace: their order changes, and a warp may rest while others can go on.
    constexpr unsigned kRest = 1000;  // rounds
    unsigned resting = 0;
    for (unsigned left = count, round = 0; left; ++round) {
      left = 0;
      bool moved = false;
      std::shuffle(order_.begin(), order_.end(), random_);
      if (round % kRest == 0) resting = unsigned(random_() % (2 * warps_.size()));  // none, half of the time
      for (const unsigned i : order_) {
        Fiber& fiber = fibers_[i];
        if (fiber.done) continue;
        if (i / 32 == resting || (fiber.is_ready && !fiber.is_ready(fiber.condition))) {
          ++left;
          continue;
        }
        moved = true;
        current_ = &fiber;
        threadIdx = fiber.index;
        go(home_, nullptr, fiber.context, fiber.stack, kStackBytes);
        left += !fiber.done;
      }
      if (!left || moved) continue;
      if (resting < warps_.size()) {
        resting = unsigned(warps_.size());
      } else if (!idle()) {
        return false;
      }
    }
    return true;
  }

  // Until ready(), which any thread may be asked. `what` and `which` name it for waits().
  template <class Ready>
  void wait(const Ready& ready, const char* what, uint32_t which) {
    if (ready()) return;
    Fiber& fiber = *current_;
    fiber.condition = &ready;
    fiber.is_ready = [](const void* condition) { return (*static_cast<const Ready*>(condition))(); };
    fiber.what = what;
    fiber.which = which;
    leave();
    fiber.is_ready = nullptr;
  }

  // last(), by the thread that arrives last.
  template <class Last>
  void meet(Meeting& m, const char* what, uint32_t which, Last last) {
    const unsigned round = m.round;
    if (++m.arrived == m.expected) {
      last();
      m.arrived = 0;
      ++m.round;
    }
    wait([&m, round] { return m.round != round; }, what, which);
  }

  void meet(bool warp_only) {
    const unsigned warp = thread_index() / 32;
    meet(warp_only ? warps_[warp] : together_, warp_only ? "warp" : "block", warp, [] {});
  }

  // "threads 0 to 127 wait: block 0; ...", of the threads that are not done.
  std::string waits() const {
    std::string text;
    for (size_t i = 0; i < fibers_.size();) {
      const Fiber& first = fibers_[i];
      size_t end = i + 1;
      while (end < fibers_.size() && fibers_[end].done == first.done && fibers_[end].what == first.what &&
             fibers_[end].which == first.which)
        ++end;
      if (!first.done)
        text += "threads " + std::to_string(i) + " to " + std::to_string(end - 1) + " wait: " + first.what + " " +
                std::to_string(first.which) + "; ";
      i = end;
    }
    return text;
  }

  float exchange(float x, int lanes) {
    const unsigned self = thread_index();
    values_[self] = x;
    meet(true);
    const float y = values_[self ^ unsigned(lanes)];
    meet(true);
    return y;
  }

 private:
  static constexpr size_t kStackBytes = 256 << 10;

  struct Fiber {
    ucontext_t context;
    char* stack = nullptr;
    dim3 index;
    bool done = false;
    bool (*is_ready)(const void*) = nullptr;  // null: it does not wait
    const void* condition = nullptr;
    const char* what = "";
    uint32_t which = 0;
  };

  static void enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<Fibers*>(uintptr_t(high) << 32 | low);
    arrive(nullptr, &self->home_stack_, &self->home_bytes_);
    self->body_();
    self->current_->done = true;
    self->leave();
  }

  void start(Fiber& fiber, char* stack, dim3 index) {
    fiber.stack = stack;
    fiber.index = index;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 2, unsigned(self), unsigned(self >> 32));
  }

  // Back to run(), until it comes round again.
  void leave() {
    const dim3 block = blockIdx;
    Fiber& fiber = *current_;
    go(fiber.context, fiber.done ? &fiber : nullptr, home_, home_stack_, home_bytes_);
    blockIdx = block;
  }

  // AddressSanitizer is told which stack it is on. `ended`: the fiber that is left for good.
  static void go(ucontext_t& from, Fiber* ended, ucontext_t& to, const void* stack, size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(ended ? nullptr : &fake, stack, bytes);
    swapcontext(&from, &to);
    arrive(fake, nullptr, nullptr);
#else
    (void)ended, (void)stack, (void)bytes;
    swapcontext(&from, &to);
#endif
  }

  static void arrive([[maybe_unused]] void* fake, [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, stack, bytes);
#endif
  }

  std::vector<std::unique_ptr<char[]>> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;
  std::minstd_rand random_;
  std::vector<Meeting> warps_;
  std::function<void()> body_;
  Meeting together_;
  Fiber* current_ = nullptr;
  ucontext_t home_;
  const void* home_stack_ = nullptr;
  size_t home_bytes_ = 0;
  float values_[1024];
};

inline thread_local Fibers fibers;

inline void synchronize(bool warp_only) { fibers.meet(warp_only); }
inline float exchange(float x, int lanes) { return fibers.exchange(x, lanes); }

template <bool kTogether = false, class Args>
int launch(void (*kernel)(Args), dim3 grid, dim3 block, const Args& args, void*, bool) {
  const bool valid = grid.x - 1 < 0x7fffffffu && grid.y - 1 < 65535 && grid.z - 1 < 65535 && block.z - 1 < 64 &&
                     block.x && block.y && block.x * block.y * block.z <= 1024;
  if (!valid) return 1;  // cudaErrorInvalidValue
  gridDim = grid;
  blockDim = block;
  if (kTogether) {
    static std::mutex one_launch;  // shared memory is static
    const std::lock_guard lock(one_launch);
    const auto run_blocks = [&] {
      for_each_in(grid, [&](dim3 b) {
        blockIdx = b;
        kernel(args);
        synchronize(false);
      });
    };
    return fibers.run(block, run_blocks, [] { return false; }) ? 0 : 719;  // cudaErrorLaunchFailure
  }
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

inline uint32_t load_here(const char* at) { return *reinterpret_cast<const uint32_t*>(at); }

template <class T>
T* advance(T* base, int32_t i, int32_t step) {
  return base + int64_t(i) * step;
}

template <class T>
const T* as_memory(const T* argument) {
  return argument;
}

}  // namespace rope::cuda
