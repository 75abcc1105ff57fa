// The threads of the library, which all calls share.
#pragma once

#include <cstdint>

namespace rope::cpu {

using PieceFn = void (*)(void* data, int64_t index);

inline constexpr int64_t kMaxThreads = 256, kMaxPieces = (1 << 20) - 1;  // of a call

// Calls piece(data, i) once for every i in [0, num_pieces), on the calling thread and on up to num_threads - 1 others,
// whichever of them come in time; returns when all of these have returned.
void run_pieces(int64_t num_pieces, int64_t num_threads, PieceFn piece, void* data);

}  // namespace rope::cpu
