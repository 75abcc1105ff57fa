#include "parallel.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "../math/float_environment.h"
#include "pool.h"

namespace rope::cpu {
namespace {

// What takes a thread as long, 10 to 25 us, as it takes to wake one that sleeps (KERNELS.md).
constexpr int64_t kBytesPerThread = 256 << 10;
// 3 to 15 us: what a call may have to wait for at its end. Large ones cost less, but a thread needs several.
constexpr int64_t kSmallPiece = 40 << 10, kLargePiece = 160 << 10, kPiecesPerThread = 8;

struct Ranges {
  TokenRangeFn fn;
  const void* context;
  int64_t num_tokens, num_pieces;
};

void run_range(void* data, int64_t index) {
  const auto& r = *static_cast<const Ranges*>(data);
  const DefaultFloatEnvironment environment;
  r.fn(r.context, r.num_tokens * index / r.num_pieces, r.num_tokens * (index + 1) / r.num_pieces);
}

// Processors that the control group's quota makes up, or 0: none is set. A process that uses more is stopped until the
// next period.
int64_t quota() {
  long long time = 0, period = 1;
  if (std::FILE* const file = std::fopen("/sys/fs/cgroup/cpu.max", "re")) {
    if (std::fscanf(file, "%lld %lld", &time, &period) != 2) time = 0;
    std::fclose(file);
  }
  return time > 0 && period > 0 ? (time + period - 1) / period : 0;
}

// What the process was started with: the least of what limits its threads.
int64_t most_threads() {
  static std::atomic<int64_t> known;
  if (const int64_t most = known.load(std::memory_order_relaxed)) return most;
  int64_t most = kMaxThreads;
  const char* const text = std::getenv("OMP_NUM_THREADS");
  for (const int64_t limit : {quota(), text ? int64_t(std::atol(text)) : 0})
    if (limit > 0) most = std::min(most, limit);
  known.store(most, std::memory_order_relaxed);
  return most;
}

// Asked in every call: a thread that is bound to one processor computes alone.
int64_t processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
}

}  // namespace

void for_token_ranges(int64_t num_tokens, int64_t bytes_per_token, const Threads& allowed, TokenRangeFn fn,
                      const void* context) {
  const int64_t bytes = num_tokens * bytes_per_token;
  Ranges ranges{fn, context, num_tokens, 1};
  int64_t threads = std::min({bytes / kBytesPerThread, num_tokens, kMaxThreads});
  if (threads > 1 && !allowed.parallel_for)
    threads = std::min(threads, allowed.num_threads ? allowed.num_threads : std::min(processors(), most_threads()));
  if (threads <= 1) return run_range(&ranges, 0);
  const int64_t piece = std::clamp(bytes / (threads * kPiecesPerThread), kSmallPiece, kLargePiece);
  ranges.num_pieces = std::clamp(bytes / piece, threads, std::min(num_tokens, kMaxPieces));
  if (allowed.parallel_for)
    allowed.parallel_for(allowed.parallel_context, ranges.num_pieces, run_range, &ranges);
  else
    run_pieces(ranges.num_pieces, threads, run_range, &ranges);
}

}  // namespace rope::cpu
