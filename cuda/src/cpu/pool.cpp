// A call's pieces are claimed from a word in memory, by its own thread and by those of the pool. So a thread that the
// system has put aside holds up nobody: its share is done by others, and if it comes late it finds none. All that a
// call ever waits for is a piece in another thread's hands. KERNELS.md has the measurements.
//
// There is no lock, and nothing here is ever destroyed: threads end with the process, and the library stays loaded
// (-z nodelete).
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>

namespace rope::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// A worker looks this long for the next call before it sleeps, since waking one takes 20 to 40 us (KERNELS.md).
constexpr std::chrono::microseconds kLook{3000};
// A worker that loses its processor for so long while it looks has to share it. For a while it then sleeps at once: the
// system soon runs a thread that has slept, while one that has looked for calls has used up its time.
constexpr std::chrono::microseconds kPutAside{500}, kShy{100'000};
// Less than the time that the system gives a thread at once (1.4 ms and more): a worker offers its processor after so
// much work, and so loses it between two pieces and hardly ever within one, for which a call would wait.
constexpr std::chrono::microseconds kTurn{1000};
// A call sleeps if its last pieces take longer than this.
constexpr std::chrono::microseconds kWait{50};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

enum class Spin { kDone, kTimeout, kPutAside };

// Waits until `done`, no longer than `until`. Whoever else wants the processor gets it.
template <class Done>
Spin spin(Done done, Clock::time_point until) {
  for (Clock::time_point now = Clock::now(), before; now < until;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return Spin::kDone;
      relax();
    }
    sched_yield();
    before = now;
    now = Clock::now();
    if (now - before > kPutAside) return Spin::kPutAside;
  }
  return Spin::kTimeout;
}

void futex(std::atomic<int32_t>* word, int operation, int32_t value) {
  static_assert(sizeof(*word) == sizeof(int32_t));
  syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

// What nobody has claimed: the pieces [first, last). The caller takes them from the front and workers from the back, so
// that each goes through memory of its own.
struct Claims {
  uint64_t call : 16;  // tells this call from the one before it
  uint64_t seats : 8;  // workers that may still join
  uint64_t first : 20, last : 20;
};
static_assert(std::atomic<Claims>::is_always_lock_free);

constexpr int32_t kAsleep = 1 << 30;  // added to `unfinished` while the caller sleeps

struct alignas(64) Job {
  std::atomic<bool> taken;
  // Read by those who hold a piece, and until their pieces are finished the call is not over.
  PieceFn piece;
  void* data;
  int processor;  // of the calling thread
  alignas(64) std::atomic<Claims> claims;
  alignas(64) std::atomic<int32_t> unfinished;  // pieces
};

// Calls that run at the same time; one more runs alone.
Job jobs[8];
alignas(64) std::atomic<int32_t> published;  // calls so far, modulo 2^32
alignas(64) std::atomic<int32_t> awake;      // workers that look for a call
std::atomic<int32_t> workers;
std::atomic<bool> growing;

// The pool of a forked child, which has none of the threads. The calls that they were in are not its own.
void forget() {
  for (Job& job : jobs) {
    job.taken = false;
    job.claims = Claims{};
  }
  awake = workers = 0;
  growing = false;
}
const int fork_handler = pthread_atfork(nullptr, nullptr, forget);

int64_t claim_first(Job& job) {
  Claims c = job.claims.load(std::memory_order_relaxed), next;
  do {
    if (c.first == c.last) return -1;
    next = c;
    ++next.first;
  } while (!job.claims.compare_exchange_weak(c, next, std::memory_order_acquire, std::memory_order_relaxed));
  return int64_t(c.first);
}

// call: the one that the worker has joined, or -1, and it joins the one that it finds.
int64_t claim_last(Job& job, int32_t* call) {
  Claims c = job.claims.load(std::memory_order_relaxed), next;
  do {
    if (c.first == c.last || (*call < 0 ? c.seats == 0 : *call != c.call)) return -1;
    next = c;
    --next.last;
    if (*call < 0) --next.seats;
  } while (!job.claims.compare_exchange_weak(c, next, std::memory_order_acquire, std::memory_order_relaxed));
  *call = c.call;
  return int64_t(next.last);
}

class Worker {
 public:
  Worker() {
    if (sched_getaffinity(0, sizeof(processors_), &processors_)) CPU_ZERO(&processors_);
  }

  [[noreturn]] void run() {
    for (Clock::time_point until = Clock::now(), shy = until;;) {
      const int32_t seen = published.load(std::memory_order_acquire);
      bool helped = false;
      for (Job& job : jobs) helped |= help(job);
      if (const Clock::time_point now = Clock::now(); helped && now > shy) until = now + kLook;
      awake.fetch_add(1);
      const Spin found = spin([&] { return published.load(std::memory_order_relaxed) != seen; }, until);
      awake.fetch_sub(1);
      if (found == Spin::kDone) continue;
      if (found == Spin::kPutAside) shy = Clock::now() + kShy;
      futex(&published, FUTEX_WAIT_PRIVATE, seen);
    }
  }

 private:
  // Does pieces of a call as long as there are any; whether there was one.
  bool help(Job& job) {
    int32_t call = -1;
    Clock::time_point start = Clock::now();
    for (int64_t i; (i = claim_last(job, &call)) >= 0;) {
      job.piece(job.data, i);
      const int caller = job.processor;
      if (job.unfinished.fetch_sub(1, std::memory_order_acq_rel) == kAsleep + 1)
        futex(&job.unfinished, FUTEX_WAKE_PRIVATE, 1);
      if (sched_getcpu() == caller) leave(caller);
      if (Clock::now() - start < kTurn) continue;
      sched_yield();
      start = Clock::now();
    }
    return call >= 0;
  }

  // On the processor of the thread that it should help a worker is of no use. That is where the system wakes it if all
  // processors are busy, and keeps it.
  void leave(int processor) {
    cpu_set_t others = processors_;
    CPU_CLR(processor, &others);
    if (CPU_COUNT(&others)) sched_setaffinity(0, sizeof(others), &others);
  }

  cpu_set_t processors_;  // where it may run
};

void* work(void*) {
  Worker().run();
  return nullptr;
}

// Starts threads until there are `wanted`, unless another call is doing so or the system refuses.
void grow(int32_t wanted) {
  if (workers.load(std::memory_order_relaxed) >= wanted || growing.exchange(true, std::memory_order_acquire)) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // which the threads inherit
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  // Where the process may run, even if the thread that makes the call may not.
  if (cpu_set_t processors; sched_getaffinity(getpid(), sizeof(processors), &processors) == 0)
    pthread_attr_setaffinity_np(&attributes, sizeof(processors), &processors);
  for (pthread_t thread; workers.load(std::memory_order_relaxed) < wanted; workers.fetch_add(1)) {
    if (pthread_create(&thread, &attributes, work, nullptr)) break;
    pthread_setname_np(thread, "roperope");
    pthread_detach(thread);
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  growing.store(false, std::memory_order_release);
}

Job* take_job() {
  for (Job& job : jobs)
    if (!job.taken.load(std::memory_order_relaxed) && !job.taken.exchange(true, std::memory_order_acquire)) return &job;
  return nullptr;
}

void publish(Job& job, int64_t num_pieces, int32_t helpers) {
  job.processor = sched_getcpu();
  job.unfinished.store(int32_t(num_pieces), std::memory_order_relaxed);
  const uint64_t last_call = job.claims.load(std::memory_order_relaxed).call;
  job.claims.store({last_call + 1, uint64_t(helpers), 0, uint64_t(num_pieces)}, std::memory_order_release);
  // A worker that does not count as awake any more sees the number, and does not fall asleep.
  published.fetch_add(1);
  if (const int32_t missing = helpers - awake.load(); missing > 0) futex(&published, FUTEX_WAKE_PRIVATE, missing);
}

void wait_for_all(Job& job) {
  const auto done = [&] { return job.unfinished.load(std::memory_order_acquire) == 0; };
  if (spin(done, Clock::now() + kWait) == Spin::kDone) return;
  int32_t left = job.unfinished.fetch_add(kAsleep, std::memory_order_acq_rel) + kAsleep;
  for (; left != kAsleep; left = job.unfinished.load(std::memory_order_acquire))
    futex(&job.unfinished, FUTEX_WAIT_PRIVATE, left);
}

}  // namespace

void run_pieces(int64_t num_pieces, int64_t num_threads, PieceFn piece, void* data) {
  Job* const job = num_threads > 1 ? take_job() : nullptr;
  if (!job) {
    for (int64_t i = 0; i < num_pieces; ++i) piece(data, i);
    return;
  }
  const int32_t helpers = int32_t(num_threads - 1);
  grow(helpers);
  job->piece = piece;
  job->data = data;
  publish(*job, num_pieces, helpers);
  int32_t mine = 0;
  for (int64_t i; (i = claim_first(*job)) >= 0; ++mine) piece(data, i);
  if (job->unfinished.fetch_sub(mine, std::memory_order_acq_rel) != mine) wait_for_all(*job);
  job->taken.store(false, std::memory_order_release);
}

}  // namespace rope::cpu
