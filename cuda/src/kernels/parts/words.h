// The words of a thread's pairs, in the launch's argument, and their phases by several positions.
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

// The words for the pairs of a slot, two at a time where two are neighbours.
template <Layout kLayout, int kVec>
__device__ __forceinline__ void load_words(const uint64_t* words, PairMap<kLayout, kVec> map, uint64_t* word) {
  struct alignas(16) Two {
    uint64_t x, y;
  };
  constexpr bool kNeighbours = kLayout == Layout::kNeox ? kVec >= 2 : kVec >= 4;
#pragma unroll
  for (int j = 0; j < kVec; j += kNeighbours ? 2 : 1) {
    if constexpr (kNeighbours) {
      const Two two = *reinterpret_cast<const Two*>(words + map.pair(j));
      word[j] = two.x;
      word[j + 1] = two.y;
    } else {
      word[j] = words[map.pair(j)];
    }
  }
}

// Which stream of positions each pair turns by, where there are sections.
template <int kMaxPairs>
void fill_streams(const Sections& sections, int32_t pairs, uint8_t (&streams)[kMaxPairs]) {
  for (int32_t i = 0; sections.streams && i < pairs; ++i) streams[i] = uint8_t(stream_of(sections, i));
}

// The streams of a slot's pairs, a byte each.
template <Layout kLayout, int kVec>
__device__ __forceinline__ uint64_t load_streams(const uint8_t* streams, PairMap<kLayout, kVec> map) {
  uint64_t bytes = 0;
#pragma unroll
  for (int j = 0; j < kVec; ++j) bytes |= uint64_t(streams[map.pair(j)]) << (8 * j);
  return bytes;
}

// The phases of a slot's pairs of a token with sections. False: the token is to be left alone.
template <SectionForm kForm, Angle kAngle, int kVec>
__device__ __forceinline__ bool section_phases(const Positions& p, uint64_t streams, int64_t token,
                                               const uint64_t* word, uint64_t* phase) {
  constexpr uint64_t kOnes = ~0ull / 255 >> (64 - 8 * kVec);  // a one for each pair
  const uint64_t own = streams & 0xff;
  const int64_t first = stream_position(p, token, 0);
  if (kForm == SectionForm::kAny && streams != own * kOnes) {
    int64_t at[kMaxStreams];
#pragma unroll
    for (int i = 0; i < kMaxStreams; ++i) at[i] = i < p.sections.streams ? stream_position(p, token, i) : 0;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const uint32_t s = uint32_t(streams >> (8 * j)) & 0xff;
      phase[j] = phase_at<kAngle>(s == 0 ? at[0] : s == 1 ? at[1] : s == 2 ? at[2] : at[3], word[j]);
    }
  } else {
    const int64_t position = stream_position(p, token, int32_t(own));
#pragma unroll
    for (int j = 0; j < kVec; ++j) phase[j] = phase_at<kAngle>(position, word[j]);
  }
  return first != -1;
}

}  // namespace rope::cuda
