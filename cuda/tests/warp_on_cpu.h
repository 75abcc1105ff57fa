// Stands in for kernels/decode/warp.cuh when kernels are compiled by g++: the same names, carried out by the fibers of
// cuda_on_cpu.h.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include "../src/math/codes.h"
#include "cuda_on_cpu.h"

struct uint2 {
  uint32_t x, y;
};

struct uint4 {
  uint32_t x, y, z, w;
};

namespace rope::cuda {

using std::min;

inline float fmaxf(float x, float y) { return std::fmax(x, y); }

template <class Word>
Word load_words(const void* at) {
  Word x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

inline uint4 load_once(const char* at) { return load_words<uint4>(at); }
inline uint2 load_once_8(const char* at) { return load_words<uint2>(at); }
inline uint4 load_shared(const uint16_t* at) { return load_words<uint4>(at); }

// What each thread of the block shows to the others of its warp.
template <class T>
const T* shown_to_warp(const T& x) {
  static thread_local T values[1024];
  const unsigned self = thread_index();
  values[self] = x;
  synchronize(true);
  return values + self / 32 * 32;
}

template <class T>
T from_lane(T x, int lane) {
  const T y = shown_to_warp(x)[lane];
  synchronize(true);
  return y;
}

inline bool any_lane(bool x) {
  const bool* const all = shown_to_warp(x);
  const bool any = std::any_of(all, all + 32, [](bool y) { return y; });
  synchronize(true);
  return any;
}

// Of lane 4 g + t: a has rows g, g + 8, g, g + 8 and columns 2t, 2t, 2t + 8, 2t + 8, b rows 2t, 2t + 8 of column g, d
// rows g, g, g + 8, g + 8 and columns 2t, 2t + 1, 2t, 2t + 1; a register of a or b has two elements (PTX ISA, mma).
template <class M>
void product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Factors {
    uint32_t a[4], b[2];
  };
  const unsigned lane = thread_index() % 32;
  const Factors* const of = shown_to_warp(Factors{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const auto element = [](uint32_t pair, unsigned i) { return M::widen(uint16_t(pair >> (16 * (i % 2)))); };
  for (unsigned c = 0; c < 4; ++c) {
    const unsigned row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const Factors &x = of[row % 8 * 4 + k % 8 / 2], &y = of[column * 4 + k % 8 / 2];
      d[c] += element(x.a[row / 8 + k / 8 * 2], k) * element(y.b[k / 8], k);
    }
  }
  synchronize(true);
}

template <uint32_t kSelector>
uint32_t bytes_of(uint32_t x, uint32_t y) {
  const uint64_t both = uint64_t(y) << 32 | x;
  uint32_t z = 0;
  for (int i = 0; i < 4; ++i) z |= uint32_t(both >> (8 * (kSelector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return z;
}

template <class Code>
uint32_t widen_codes(uint16_t codes) {
  return F16::narrow2(Code::decode(codes & 0xff), Code::decode(codes >> 8));
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }

inline int32_t take_number(int32_t* counter) { return std::exchange(*counter, *counter + 1); }
inline void publish() {}

inline int multiprocessors() { return 3; }

}  // namespace rope::cuda
