// Splitting tokens over threads.
#pragma once

#include <cstdint>

namespace rope::cpu {

using TokenRangeFn = void (*)(const void* context, int64_t begin, int64_t end);

// Calls fn over disjoint ranges that cover [0, num_tokens), on as many threads as the work deserves, at most
// num_threads (0: all of the process's). Each thread computes in the default floating-point environment, whatever the
// caller has set.
void for_token_ranges(int64_t num_tokens, int64_t bytes_per_token, int32_t num_threads, TokenRangeFn fn,
                      const void* context);

}  // namespace rope::cpu
