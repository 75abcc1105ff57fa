// What every operation gets beside its parameters, and what it returns.
#pragma once

#include <cstdint>

#include "../math/angle.h"
#include "../math/dtype.h"
#include "../math/pair.h"
#include "../math/position.h"
#include "../math/xpos.h"

namespace rope {

inline constexpr int kMaxRotaryDim = 2048;
inline constexpr int kFewPairs = 128;  // rotary_dim / 2 of most heads, which have code of their own

constexpr int32_t divide_up(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

// What a call holds for every pair.
struct PairData {
  const uint64_t* words;             // [rotary_dim / 2], from rope_frequencies; null: in FrequencySets, or not needed
  const XPos* xpos;                  // null: no operand has it
  const uint8_t* streams = nullptr;  // [rotary_dim / 2], of positions, that each turns by; null: a token has one
};

// CPU: what runs the pieces of a call.
struct Threads {
  int32_t num_threads;  // of the library, at most; 0: as many as there are processors for
  void (*parallel_for)(void* context, int64_t num_pieces, void (*piece)(void* data, int64_t index), void* data);
  void* parallel_context;  // parallel_for is the engine's, instead; or null
};

// Where and how to run.
struct Execution {
  void* stream;          // CUDA
  bool dependent;        // CUDA: programmatic dependent launch
  bool positions_ready;  // CUDA: nothing that is still pending on the stream writes positions or cache indices
  Threads threads;       // CPU
};

struct Outcome {
  int error;                // a cudaError_t; 0 on the CPU
  const char* unsupported;  // null, or why the backend does not serve these parameters: nothing was done
};

// f(constant) for the value's constant, so that what depends on it can be compiled for each.
template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

template <class F>
Outcome for_layout(Layout layout, F f) {
  return layout == Layout::kNeox ? f(Constant<Layout::kNeox>()) : f(Constant<Layout::kGptj>());
}

// Of frequencies: what cos and sin are formed from.
template <class F>
Outcome for_angle(Angle angle, F f) {
  return angle == Angle::kExact ? f(Constant<Angle::kExact>()) : f(Constant<Angle::kFp32>());
}

}  // namespace rope
