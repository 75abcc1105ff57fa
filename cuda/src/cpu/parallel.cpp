#include "parallel.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "../math/float_environment.h"

namespace rope::cpu {
namespace {

// What takes a thread as long, 10 to 25 us, as it takes to wake one that sleeps (KERNELS.md).
constexpr int64_t kBytesPerThread = 256 << 10;

// OpenMP's threads do not survive fork(), and a child that used them would wait for ever: it runs on one thread.
std::atomic<bool> forked{false};
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

void for_token_ranges(int64_t num_tokens, int64_t bytes_per_token, int32_t num_threads, TokenRangeFn fn,
                      const void* context) {
  const int64_t deserved = std::max<int64_t>(1, num_tokens * bytes_per_token / kBytesPerThread);
  const int64_t allowed = forked ? 1 : num_threads ? num_threads : omp_get_max_threads();
  const int threads = int(std::min({deserved, allowed, num_tokens}));
  if (threads <= 1) {
    const DefaultFloatEnvironment environment;
    fn(context, 0, num_tokens);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const DefaultFloatEnvironment environment;
    const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    fn(context, num_tokens * part / parts, num_tokens * (part + 1) / parts);
  }
}

}  // namespace rope::cpu
