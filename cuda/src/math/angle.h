// The angle of a pair at a position, and its cosine and sine. One code for both backends: their bits are equal.
//
// A phase is an unsigned 64-bit fraction of a turn; unsigned overflow is the exact reduction modulo one turn.
#pragma once

#include "annotate.h"

namespace rope {

enum class Angle : int32_t { kExact = 0, kFp32 = 1 };

struct CosSin {
  float cos, sin;
};

namespace detail {

// 1/(2 pi) in binary, behind two words of zeros: bit 64 + n of the stream weighs 2^-(n+1).
#define ROPE_INV_TWO_PI_STREAM \
  {0x00000000u, 0x00000000u, 0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u, 0x4f10e410u}

// The float32 angle a, in radians, as a phase (Payne and Hanek's method): a = m * 2^e with a 24-bit integer m, and
// 2^e / (2 pi) modulo 1 is a 64-bit window into the stream. The window is cut below 2^-64 and m < 2^24, so the phase is
// within 2^-40 turns. |a| < 2^96.
ROPE_INLINE uint64_t phase_of_radians(float a) {
  static constexpr uint32_t stream[8] = ROPE_INV_TWO_PI_STREAM;
  const uint32_t bits = bit_cast<uint32_t>(a);
  const uint32_t mantissa = (bits & 0x007fffffu) | 0x00800000u;
  const int32_t first = int32_t((bits >> 23) & 0xffu) - 150 + 64;  // e + 64: where the window starts
  if (first < 0) return 0;                                         // |a| < 2^-40: cos 1, sin 0 to 1e-12
  const int32_t word = first >> 5, shift = first & 31;
  // Three words from stream[word] on, word <= 4, by selects: an array indexed at run time would be put into memory.
  uint32_t x = stream[0], y = stream[1], z = stream[2];
  for (int i = 1; i <= 4; ++i) {
    x = word >= i ? stream[i] : x;
    y = word >= i ? stream[i + 1] : y;
    z = word >= i ? stream[i + 2] : z;
  }
  const uint64_t window = (uint64_t(x) << 32 | y) << shift | (uint64_t(z) << shift) >> 32;
  const uint64_t phase = window * mantissa;
  return bits >> 31 ? 0 - phase : phase;
}

}  // namespace detail

// `word` is one entry of the table that rope_frequencies() fills: turns per position as a 64-bit fraction (kExact), or
// the float32 frequency in radians per position (kFp32).
template <Angle kAngle>
ROPE_INLINE uint64_t phase_at(int64_t position, uint64_t word) {
  if constexpr (kAngle == Angle::kExact) {
    return uint64_t(position) * word;
  } else {
    return detail::phase_of_radians(float(position) * bit_cast<float>(uint32_t(word)));
  }
}

// Both are within 7.6e-8 of the truth for every phase (all 2^32 tried; the rounding of the result alone is 3.0e-8).
// The upper 32 bits of the phase are split into the nearest quarter turn and t quarter turns, |t| <= 1/2. The
// coefficients are near-minimax in t^2 over that range; the sine's first one, pi/2, is carried in two floats.
ROPE_INLINE CosSin cos_sin(uint64_t phase) {
  const uint32_t turns = uint32_t(phase >> 32);
  const uint32_t quarter = (turns + 0x20000000u) >> 30;
  const float t = float(int32_t(turns - (quarter << 30))) * 0x1p-30f;
  const float s = t * t;

  float p = __builtin_fmaf(-0x1.2d9b4p-8f, s, 0x1.465ec4p-4f);
  p = __builtin_fmaf(p, s, -0x1.4abbbap-1f);
  p = __builtin_fmaf(p, s, -0x1.a1114ap-25f);
  const float sine = __builtin_fmaf(t, 0x1.921fb6p+0f, t * p);

  float q = __builtin_fmaf(0x1.d9c2e8p-11f, s, -0x1.55c57ap-6f);
  q = __builtin_fmaf(q, s, 0x1.03c1dcp-2f);
  q = __builtin_fmaf(q, s, -0x1.3bd3ccp+0f);
  const float cosine = __builtin_fmaf(q, s, 1.0f);

  // Quarter turn 1: (c, s) -> (-s, c); 2: (-c, -s); 3: (s, -c).
  const bool swapped = quarter & 1u;
  const uint32_t c = bit_cast<uint32_t>(swapped ? sine : cosine) ^ ((quarter + 1u) & 2u) << 30;
  const uint32_t d = bit_cast<uint32_t>(swapped ? cosine : sine) ^ (quarter & 2u) << 30;
  return {bit_cast<float>(c), bit_cast<float>(d)};
}

}  // namespace rope
