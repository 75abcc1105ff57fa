// Rows in groups of elements that share a scale, which is computed from the largest magnitude among them. Codes
// (codes.h) have their scales beside them, of a type from the first list; blocks, from the second, have theirs in front
// of their codes. A type is a struct and its place in a list.
//   of scales   kBytes; store(x, largest, tensor_scale, at) stores the scale of a group whose largest magnitude is x,
//   of
//               codes up to `largest`; load(at, tensor_scale)
//   of blocks   kElements, kBytes; encode(x, block), x(i): element i; decode(block, i)
#pragma once

#include "codes.h"

#define ROPE_FOR_EACH_SCALE(X) X(F32Scale) X(E8M0Scale) X(E4M3Scale)
#define ROPE_FOR_EACH_BLOCK(X) X(Q8_0) X(Q4_0)

namespace rope {

enum class ScaleType : int32_t { kF32 = 0, kE8M0 = 1, kE4M3 = 2 };

// fmaxf's rule for NaNs, which both backends would otherwise apply in their own way.
ROPE_INLINE float larger_magnitude(float largest_so_far, float x) {
  const float magnitude = bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
  return magnitude > largest_so_far ? magnitude : largest_so_far;
}

struct F32Scale {
  static constexpr ScaleType kType = ScaleType::kF32;
  static constexpr int kBytes = 4;

  ROPE_INLINE_MEMBER static void store(float x, float largest, float, char* at) {
    *reinterpret_cast<float*>(at) = x > 0.0f ? x / largest : 1.0f;
  }
  ROPE_INLINE_MEMBER static float load(const char* at, float) { return *reinterpret_cast<const float*>(at); }
};

// 2^(code - 127), the least that no element saturates with: rounded up, as FlashInfer and the recipe of
// arXiv:2506.08027 do. (MX v1.0, section 6.3, asks for no more than a power of two near the largest magnitude, and
// rounds down in its example.)
struct E8M0Scale {
  static constexpr ScaleType kType = ScaleType::kE8M0;
  static constexpr int kBytes = 1;

  ROPE_INLINE_MEMBER static void store(float x, float largest, float, char* at) {
    const uint32_t bits = bit_cast<uint32_t>(x), limit = bit_cast<uint32_t>(largest);
    const int32_t code = int32_t(bits >> 23) - int32_t(limit >> 23) + 127 + ((bits & 0x7fffffu) > (limit & 0x7fffffu));
    *at = char(code < 0 ? 0 : code);
  }
  ROPE_INLINE_MEMBER static float load(const char* at, float) {
    const uint32_t code = uint8_t(*at);
    if (code == 0xffu) return bit_cast<float>(0x7fffffffu);
    return bit_cast<float>(code ? code << 23 : 0x00400000u);
  }
};

// NVFP4's: e4m3, in units of one scale of the whole tensor. A group that is too small for one has the scale 0.
struct E4M3Scale {
  static constexpr ScaleType kType = ScaleType::kE4M3;
  static constexpr int kBytes = 1;

  ROPE_INLINE_MEMBER static void store(float x, float largest, float tensor_scale, char* at) {
    *at = char(E4M3::encode2(x / (largest * tensor_scale), 0.0f));
  }
  ROPE_INLINE_MEMBER static float load(const char* at, float tensor_scale) {
    return E4M3::decode(uint8_t(*at)) * tensor_scale;
  }
};

namespace detail {

ROPE_INLINE void store_f16(float x, char* at) {
  uint32_t bits = F16::narrow(x);
#ifdef __CUDA_ARCH__
  asm("" : "+r"(bits));  // ptxas 13.0 else stores, as the low byte, the float16 converted to an integer
#endif
  at[0] = char(bits);
  at[1] = char(bits >> 8);
}

ROPE_INLINE float load_f16(const char* at) { return F16::widen(uint16_t(uint8_t(at[0]) | uint8_t(at[1]) << 8)); }

// Towards zero, within 0 to `most`; a NaN becomes 0.
ROPE_INLINE int32_t whole(float x, int32_t most) { return x >= float(most) ? most : x > 0.0f ? int32_t(x) : 0; }

}  // namespace detail

// GGUF's, with the rounding of ggml's own quantisers: a float16 scale d, then 32 int8 q, an element q * d. Codes are
// chosen by the scale before it is rounded, and to nearest, ties away from zero.
struct Q8_0 {
  static constexpr OutType kType = OutType::kQ8_0;
  static constexpr int kElements = 32, kBytes = 34;

  template <class X>
  ROPE_INLINE_MEMBER static void encode(X x, char* block) {
    float largest = 0.0f;
    for (int i = 0; i < kElements; ++i) largest = larger_magnitude(largest, x(i));
    const float d = largest / 127.0f, factor = d != 0.0f ? 1.0f / d : 0.0f;
    detail::store_f16(d, block);
    for (int i = 0; i < kElements; ++i) {
      const float y = x(i) * factor, m = y < 0.0f ? -y : y;
      const int32_t below = detail::whole(m, 127), q = below + (below < 127 && m - float(below) >= 0.5f);
      block[2 + i] = char(y < 0.0f ? -q : q);
    }
  }

  ROPE_INLINE_MEMBER static float decode(const char* block, int32_t i) {
    return float(int8_t(block[2 + i])) * detail::load_f16(block);
  }
};

// A float16 scale d, then 16 bytes: the low bits of byte i are element i, the high ones element i + 16; an element is
// (code - 8) * d. The element of the largest magnitude, the first of them, becomes the code 0. A NaN becomes 8.
struct Q4_0 {
  static constexpr OutType kType = OutType::kQ4_0;
  static constexpr int kElements = 32, kBytes = 18;

  template <class X>
  ROPE_INLINE_MEMBER static void encode(X x, char* block) {
    float largest = 0.0f, outermost = 0.0f;
    for (int i = 0; i < kElements; ++i) {
      const float m = larger_magnitude(largest, x(i));
      outermost = m > largest ? x(i) : outermost;
      largest = m;
    }
    const float d = outermost / -8.0f, factor = d != 0.0f ? 1.0f / d : 0.0f;
    detail::store_f16(d, block);
    const auto code = [&](int i) {
      const float y = x(i) * factor;
      return uint32_t(y == y ? detail::whole(y + 8.5f, 15) : 8);
    };
    for (int i = 0; i < kElements / 2; ++i) block[2 + i] = char(code(i) | code(i + kElements / 2) << 4);
  }

  ROPE_INLINE_MEMBER static float decode(const char* block, int32_t i) {
    const uint32_t two = uint8_t(block[2 + i % 16]), code = i < 16 ? two & 0xfu : two >> 4;
    return float(int32_t(code) - 8) * detail::load_f16(block);
  }
};

// f(Q8_0()), ... of the type; nothing for others.
template <class F>
ROPE_INLINE void for_block(OutType type, F f) {
#define ROPE_CASE(Block) \
  if (type == Block::kType) f(Block());
  ROPE_FOR_EACH_BLOCK(ROPE_CASE)
#undef ROPE_CASE
}

template <class F>
ROPE_INLINE void for_grouped_code(OutType type, F f) {
#define ROPE_CASE(Code) \
  if (type == Code::kType) f(Code());
  ROPE_FOR_EACH_GROUPED_CODE(ROPE_CASE)
#undef ROPE_CASE
}

template <class F>
ROPE_INLINE void for_scale(ScaleType type, F f) {
#define ROPE_CASE(Scale) \
  if (type == Scale::kType) f(Scale());
  ROPE_FOR_EACH_SCALE(ROPE_CASE)
#undef ROPE_CASE
}

// Bytes of `elements` codes or blocks, or of as many elements of a dtype.
ROPE_INLINE int64_t stored_bytes(OutType type, int64_t dtype_bytes, int64_t elements) {
  int64_t bytes = dtype_bytes * elements;
  for_grouped_code(type, [&](auto code) { bytes = elements * code.kBits / 8; });
  for_block(type, [&](auto block) { bytes = elements / block.kElements * block.kBytes; });
  for_dtype(type, [&](auto dtype) { bytes = elements * int64_t(sizeof(typename decltype(dtype)::Storage)); });
  return bytes;
}

// Of the elements of an operand. Strides in bytes.
struct Groups {
  int32_t size;  // elements of a group; 0: there are none
  ScaleType scale_type;
  char* scales;  // of blocks null
  int64_t page_stride, row_stride, head_stride;
  float tensor_scale;
  const float* tensor_scales;  // where it is read, or null
};

ROPE_INLINE float tensor_scale(const Groups& g) { return g.tensor_scales ? *g.tensor_scales : g.tensor_scale; }

// The n-th group of a row, whose scales are at `scales`; x(i) is element i of the row.
template <class X>
ROPE_INLINE void encode_group(OutType type, const Groups& g, int32_t n, X x, char* row, char* scales) {
  const auto element = [&](int32_t i) { return x(n * g.size + i); };
  for_block(type, [&](auto block) { block.encode(element, row + n * block.kBytes); });
  for_grouped_code(type, [&](auto code) {
    float largest = 0.0f, scale = 0.0f;
    for (int32_t i = 0; i < g.size; ++i) largest = larger_magnitude(largest, element(i));
    for_scale(g.scale_type, [&](auto kind) {
      const float whole = tensor_scale(g);
      char* const at = scales + n * kind.kBytes;
      kind.store(largest, code.kLargest, whole, at);
      scale = kind.load(at, whole);
    });
    const float inverse = 1.0f / scale;
    const float factor = scale == 0.0f ? 0.0f : inverse < 0x1.fffffep+127f ? inverse : 0x1.fffffep+127f;
    char* const codes = row + n * (g.size * code.kBits / 8);
    for (int32_t i = 0; i < g.size; i += 2) {
      const uint32_t two = code.encode2(element(i) * factor, element(i + 1) * factor);
      codes[i * code.kBits / 8] = char(two);
      if (code.kBits == 8) codes[i + 1] = char(two >> 8);
    }
  });
}

// The elements of the n-th group of a row: out(i, x) for element i of the row.
template <class Out>
ROPE_INLINE void decode_group(OutType type, const Groups& g, int32_t n, const char* row, const char* scales, Out out) {
  for_block(type, [&](auto block) {
    for (int32_t i = 0; i < g.size; ++i) out(n * g.size + i, block.decode(row + n * block.kBytes, i));
  });
  for_grouped_code(type, [&](auto code) {
    float scale = 0.0f;
    for_scale(g.scale_type, [&](auto kind) { scale = kind.load(scales + n * kind.kBytes, tensor_scale(g)); });
    const char* const codes = row + n * (g.size * code.kBits / 8);
    for (int32_t i = 0; i < g.size; ++i) {
      const uint32_t byte = uint8_t(codes[i * code.kBits / 8]);
      out(n * g.size + i, code.decode(code.kBits == 8 ? byte : byte >> (i % 2 * 4) & 0xfu) * scale);
    }
  });
}

}  // namespace rope
