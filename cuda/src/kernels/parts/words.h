// What a call has for every pair, in the launch's argument.
#pragma once

#include <cstring>

#include "../../operations/call.h"
#include "launch.h"
#include "plan.h"

namespace rope::cuda {

// For the argument, which holds what a call has for every pair.
template <int kMaxPairs>
void copy_words(const PairData& pairs, int32_t count, uint64_t (&words)[kMaxPairs]) {
  if (pairs.words) std::memcpy(words, pairs.words, sizeof(uint64_t) * size_t(count));
}

// Which stream of positions each pair turns by, where there are sections.
template <int kMaxPairs>
void fill_streams(const Sections& sections, int32_t pairs, uint8_t (&streams)[kMaxPairs]) {
  for (int32_t i = 0; sections.streams && i < pairs; ++i) streams[i] = uint8_t(stream_of(sections, i));
}

}  // namespace rope::cuda
