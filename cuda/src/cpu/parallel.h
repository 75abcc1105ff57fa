// Splitting tokens over threads.
#pragma once

#include <cstdint>

#include "../operations/call.h"

namespace rope::cpu {

using TokenRangeFn = void (*)(const void* context, int64_t begin, int64_t end);

// Calls fn over disjoint ranges that cover [0, num_tokens), on as many threads as the work deserves and the call
// allows. Each range is computed in the default floating-point environment, whatever its thread has set.
void for_token_ranges(int64_t num_tokens, int64_t bytes_per_token, const Threads& allowed, TokenRangeFn fn,
                      const void* context);

}  // namespace rope::cpu
