// Stored types of fewer bits than a dtype: float32 rounded once, to nearest even, saturating; and their codes as
// float32, exactly. A type is a struct and its place in the list:
//   kBits             of a code
//   kLargest          magnitude
//   encode2(x, y)     the codes of two neighbours, the first in the low bits
//   decode(code)      the number that a code stands for
// Where a row's codes have one scale they are those of the first list; in groups of a row (groups.h) of the second too.
#pragma once

#include "annotate.h"
#include "dtype.h"

#define ROPE_FOR_EACH_CODE(X) X(E4M3) X(E5M2) X(Int8)
#define ROPE_FOR_EACH_GROUPED_CODE(X) ROPE_FOR_EACH_CODE(X) X(E2M1)

namespace rope {

enum class OutType : int32_t {
  kSame = 0,
  kE4M3 = 1,
  kE5M2 = 2,
  kInt8 = 3,
  kF32 = 4,
  kF16 = 5,
  kBF16 = 6,
  kE2M1 = 7,
  kQ8_0 = 8,
  kQ4_0 = 9
};

// Another dtype than the call's.
ROPE_INLINE bool is_dtype(OutType type) { return type >= OutType::kF32 && type <= OutType::kBF16; }

namespace detail {

// A sign, 7 - kMantissa bits of exponent, kMantissa of mantissa. A NaN becomes 0x7f, as CUDA's conversion has it.
template <int kMantissa>
ROPE_INLINE uint32_t fp8(float x) {
  constexpr int kBias = kMantissa == 3 ? 7 : 15, kDropped = 23 - kMantissa;
  constexpr uint32_t kLargest = kMantissa == 3 ? 0x43e00000u : 0x47600000u;  // 448 and 57344 as float32
  constexpr uint32_t kSmallestNormal = uint32_t(128 - kBias) << 23;
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;
  const uint32_t capped = magnitude < kLargest ? magnitude : kLargest;
  const uint32_t shifted = capped - (uint32_t(127 - kBias) << 23);
  const uint32_t normal = (shifted + ((1u << (kDropped - 1)) - 1) + ((shifted >> kDropped) & 1u)) >> kDropped;
  // Subnormals are multiples of 2^(1 - bias - mantissa): the unit in the last place of 2^(24 - bias - mantissa).
  constexpr uint32_t kMagic = uint32_t(127 + 24 - kBias - kMantissa) << 23;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(capped) + bit_cast<float>(kMagic)) - kMagic;
  return (capped < kSmallestNormal ? subnormal : normal) | (bits >> 24 & 0x80u);
}

ROPE_INLINE uint32_t int8(float x) {
#ifdef __CUDA_ARCH__
  const int32_t nearest = __float2int_rn(x);  // saturates; a NaN becomes 0
#else
  const float inside = x < -128.0f ? -128.0f : x > 127.0f ? 127.0f : x == x ? x : 0.0f;
  const int32_t nearest = int32_t(__builtin_nearbyintf(inside));
#endif
  return uint32_t(nearest < -128 ? -128 : nearest > 127 ? 127 : nearest) & 0xffu;
}

}  // namespace detail

// "FP8 formats for deep learning", arXiv:2209.05433: without infinities.
struct E4M3 {
  static constexpr OutType kType = OutType::kE4M3;
  static constexpr int kBits = 8;
  static constexpr float kLargest = 448.0f;

  ROPE_INLINE_MEMBER static uint32_t encode2(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t y;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(second), "f"(first));
    return y;
#else
    return detail::fp8<3>(second) << 8 | detail::fp8<3>(first);
#endif
  }

  ROPE_INLINE_MEMBER static float decode(uint32_t code) {
    const uint32_t magnitude = code & 0x7fu;
    const float x = bit_cast<float>(magnitude << 20) * 0x1p120f;  // from float32's bias to this one's; subnormals too
    return bit_cast<float>((magnitude == 0x7fu ? 0x7fffffffu : bit_cast<uint32_t>(x)) | (code & 0x80u) << 24);
  }
};

// The same, with infinities.
struct E5M2 {
  static constexpr OutType kType = OutType::kE5M2;
  static constexpr int kBits = 8;
  static constexpr float kLargest = 57344.0f;

  ROPE_INLINE_MEMBER static uint32_t encode2(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t y;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(y) : "f"(second), "f"(first));
    return y;
#else
    return detail::fp8<2>(second) << 8 | detail::fp8<2>(first);
#endif
  }

  // The upper half of a float16.
  ROPE_INLINE_MEMBER static float decode(uint32_t code) { return F16::widen(uint16_t(code << 8)); }
};

struct Int8 {
  static constexpr OutType kType = OutType::kInt8;
  static constexpr int kBits = 8;
  static constexpr float kLargest = 127.0f;

  ROPE_INLINE_MEMBER static uint32_t encode2(float first, float second) {
    return detail::int8(second) << 8 | detail::int8(first);
  }

  ROPE_INLINE_MEMBER static float decode(uint32_t code) { return float(int8_t(code)); }
};

// fp4 of the OCP Microscaling formats (MX v1.0, section 5.3.3): 0, 0.5, 1, 1.5, 2, 3, 4, 6. A NaN becomes 6, as PTX's
// conversion has it.
struct E2M1 {
  static constexpr OutType kType = OutType::kE2M1;
  static constexpr int kBits = 4;
  static constexpr float kLargest = 6.0f;

  ROPE_INLINE_MEMBER static uint32_t encode2(float first, float second) { return encode(second) << 4 | encode(first); }

  ROPE_INLINE_MEMBER static float decode(uint32_t code) {
    const float x = bit_cast<float>((code & 0x7u) << 22) * 0x1p126f;  // from float32's bias to this one's; 0.5 too
    return bit_cast<float>(bit_cast<uint32_t>(x) | (code & 0x8u) << 28);
  }

 private:
  // The middles between neighbours that a magnitude has passed; at one the even code is taken.
  ROPE_INLINE_MEMBER static uint32_t encode(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const float m = bit_cast<float>(bits & 0x7fffffffu);
    const int passed =
        !(m <= 0.25f) + !(m < 0.75f) + !(m <= 1.25f) + !(m < 1.75f) + !(m <= 2.5f) + !(m < 3.5f) + !(m <= 5.0f);
    return uint32_t(passed) | (x == x ? bits >> 28 & 0x8u : 0u);
  }
};

// Where a dtype may stand: bytes of codes, whose type a parameter says.
struct Codes {
  using Storage = uint8_t;
};

// f(E4M3()), ... of the type; nothing for kSame.
template <class F>
ROPE_INLINE void for_code(OutType type, F f) {
#define ROPE_CASE(Code) \
  if (type == Code::kType) f(Code());
  ROPE_FOR_EACH_CODE(ROPE_CASE)
#undef ROPE_CASE
}

// f(F32()), ... of a type that is a dtype.
template <class F>
ROPE_INLINE void for_dtype(OutType type, F f) {
  if (type == OutType::kF32) f(F32());
  if (type == OutType::kF16) f(F16());
  if (type == OutType::kBF16) f(BF16());
}

ROPE_INLINE float largest(OutType type) {
  float largest = 0.0f;
  for_code(type, [&](auto code) { largest = code.kLargest; });
  return largest;
}

}  // namespace rope
