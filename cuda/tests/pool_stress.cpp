// The pool under load, compiled a second time under ThreadSanitizer: several calls at the same time, of many lengths
// and on different numbers of threads, also in a forked child. Every token must be visited once, and what the threads
// wrote must be there when the call returns.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <thread>
#include <vector>

#include "../src/cpu/parallel.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

constexpr int64_t kBytesPerToken = 16 << 10;
constexpr int kCallers = 12;  // more than the pool serves at the same time
#if defined(__SANITIZE_THREAD__)
constexpr bool kForks = false;  // ThreadSanitizer knows no threads of a forked child
#else
constexpr bool kForks = true;
#endif

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::_Exit(1);                                                       \
    }                                                                      \
  } while (0)

// Plain memory: two threads in one token are a data race.
struct Token {
  int64_t visits;
  std::thread::id by;
};

bool is_default_environment() {
#if defined(__SSE__)
  return (_mm_getcsr() & 0xffc0) == 0x1f80;
#else
  return true;
#endif
}

void visit(const void* context, int64_t begin, int64_t end) {
  CHECK(is_default_environment());
  Token* const tokens = *static_cast<Token* const*>(context);
  for (int64_t i = begin; i < end; ++i) {
    ++tokens[i].visits;
    tokens[i].by = std::this_thread::get_id();
    for (volatile int work = 0; work < 50;) work = work + 1;
  }
}

// Calls of different lengths; the number of threads that they were spread over at most.
size_t call_many(int seed, int rounds, int num_threads) {
  size_t most = 0;
  for (int round = 0; round < rounds; ++round) {
    const int64_t num_tokens = 1 + (seed * 131 + round * 37) % 700;
    std::vector<Token> tokens(size_t(num_tokens), Token{});
    Token* const data = tokens.data();
    rope::cpu::for_token_ranges(num_tokens, kBytesPerToken, {num_threads, nullptr, nullptr}, visit, &data);
    std::set<std::thread::id> threads;
    for (const Token& token : tokens) {
      CHECK(token.visits == 1);
      threads.insert(token.by);
    }
    CHECK(num_threads == 0 || threads.size() <= size_t(num_threads));
    most = std::max(most, threads.size());
  }
  return most;
}

void call_from_many_threads(int rounds) {
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i)
    callers.emplace_back([=] {
#if defined(__SSE__)
      _mm_setcsr(0x1f80 | 0x8040);  // denormals are zeros
#endif
      call_many(i, rounds, i % 5);
    });
  for (std::thread& caller : callers) caller.join();
}

void call_in_a_child(int rounds) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    call_many(3, rounds, 4);
    std::_Exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  CHECK(call_many(0, rounds, 1) == 1);
  CHECK(call_many(1, 20 * rounds, 3) > 1);  // or the pool is none
  call_from_many_threads(rounds);
  if (!kForks) return 0;
  call_in_a_child(rounds);
  std::thread others([=] { call_many(2, 20 * rounds, 4); });
  for (int i = 0; i < 20; ++i) call_in_a_child(rounds / 20);
  others.join();
  return 0;
}
