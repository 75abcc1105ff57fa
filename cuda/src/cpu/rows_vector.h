// Rows in vector instructions. `Lanes` (lanes_*.h) is an instruction set: a vector of kCount floats and what is done
// with it. The arithmetic is that of math/, operation by operation, so the bits are the same.
#pragma once

#include "../math/dtype.h"
#include "../math/pair.h"
#include "../operations/call.h"

namespace rope::cpu {

// How one load of a dtype becomes kVectors vectors of floats, and back. NaNs have been replaced by kNan by then.
template <class Lanes, class D>
struct Chunk;

template <class Lanes>
struct Chunk<Lanes, F32> {
  using Raw = typename Lanes::Words;
  using Floats = typename Lanes::Floats;
  static constexpr int kVectors = 1;
  static constexpr uint32_t kNan = 0x7fffffffu;
  ROPE_INLINE_MEMBER static void widen(Raw x, Floats* y) { y[0] = Lanes::floats(x); }
  ROPE_INLINE_MEMBER static Raw narrow(const Floats* y) { return Lanes::words(y[0]); }
};

template <class Lanes>
struct Chunk<Lanes, F16> {
  using Raw = typename Lanes::Halves;
  using Floats = typename Lanes::Floats;
  static constexpr int kVectors = 1;
  static constexpr uint32_t kNan = 0x7fffffffu;
  ROPE_INLINE_MEMBER static void widen(Raw x, Floats* y) { y[0] = Lanes::widen_f16(x); }
  ROPE_INLINE_MEMBER static Raw narrow(const Floats* y) { return Lanes::narrow_f16(y[0]); }
};

// Elements are not moved to other lanes: the even ones of a load, low halves of words, are one vector, the odd ones
// another.
template <class Lanes>
struct Chunk<Lanes, BF16> {
  using Raw = typename Lanes::Words;
  using Floats = typename Lanes::Floats;
  static constexpr int kVectors = 2;
  static constexpr uint32_t kNan = 0x7fff0000u;  // rounds without carry
  ROPE_INLINE_MEMBER static void widen(Raw x, Floats* y) {
    y[0] = Lanes::floats(Lanes::low_to_high(x));
    y[1] = Lanes::floats(Lanes::high(x));
  }
  ROPE_INLINE_MEMBER static Raw narrow(const Floats* y) {
    return Lanes::narrow_bf16(Lanes::words(y[0]), Lanes::words(y[1]));
  }
};

template <class Lanes, class D, Layout kLayout>
struct VectorRow {
  using Storage = typename D::Storage;
  using C = Chunk<Lanes, D>;
  using Raw = typename C::Raw;
  using Floats = typename Lanes::Floats;

  static constexpr int kElements = Lanes::kCount * C::kVectors;  // of a chunk
  static constexpr bool kNeox = kLayout == Layout::kNeox;
  static constexpr bool kEvenOdd = C::kVectors == 2;

  // Natural order, but
  // - NeoX in even and odd elements: the angles of a chunk in that order;
  // - GPT-J with neighbours in one vector: every angle twice, the first sine negated.
  struct Angles {
    alignas(64) float cos[kMaxRotaryDim], sin[kMaxRotaryDim];
  };

  ROPE_INLINE_MEMBER static void arrange(const float* cos, const float* sin, int32_t pairs, Angles* a) {
    constexpr int kCount = Lanes::kCount;
    if constexpr (kNeox && kEvenOdd) {
      for (int32_t i = 0; i < pairs; i += kElements) {
        for (int32_t j = 0; j < kCount; ++j) {
          a->cos[i + j] = cos[i + 2 * j];
          a->cos[i + kCount + j] = cos[i + 2 * j + 1];
          a->sin[i + j] = sin[i + 2 * j];
          a->sin[i + kCount + j] = sin[i + 2 * j + 1];
        }
      }
    } else if constexpr (kNeox || kEvenOdd) {
      for (int32_t i = 0; i < pairs; i += kCount) {
        for (int32_t j = i; j < i + kCount; ++j) {
          a->cos[j] = cos[j];
          a->sin[j] = sin[j];
        }
      }
    } else {
      for (int32_t i = 0; i < pairs; i += kCount) {
        for (int32_t j = i; j < i + kCount; ++j) {
          a->cos[2 * j] = a->cos[2 * j + 1] = cos[j];
          a->sin[2 * j] = -sin[j];
          a->sin[2 * j + 1] = sin[j];
        }
      }
    }
  }

  ROPE_INLINE_MEMBER static void rotate(const Storage* in, Storage* out, int32_t pairs, const Angles& a) {
    const int32_t count = kNeox ? pairs : 2 * pairs;
    int32_t i = 0;
    for (; i + kElements <= count; i += kElements) step(in, out, i, pairs, a, Whole());
    if (i < count) step(in, out, i, pairs, a, Part{int32_t(sizeof(Storage)) * (count - i)});
  }

 private:
  struct Whole {};
  struct Part {
    int32_t bytes;
  };

  ROPE_INLINE_MEMBER static Raw load(const Storage* at, Whole) { return Lanes::template load<Raw>(at); }
  ROPE_INLINE_MEMBER static Raw load(const Storage* at, Part p) { return Lanes::template load<Raw>(at, p.bytes); }
  ROPE_INLINE_MEMBER static void store(Storage* at, Raw x, Whole) { Lanes::store(at, x); }
  ROPE_INLINE_MEMBER static void store(Storage* at, Raw x, Part p) { Lanes::store(at, x, p.bytes); }

  // The chunk at i, for NeoX also the one a half further.
  template <class Extent>
  ROPE_INLINE_MEMBER static void step(const Storage* in, Storage* out, int32_t i, int32_t pairs, const Angles& a,
                                      Extent extent) {
    Floats x[2], y[2];
    C::widen(load(in + i, extent), x);
    if constexpr (kNeox) {
      C::widen(load(in + i + pairs, extent), y);
      for (int v = 0; v < C::kVectors; ++v) {
        turn(&x[v], &y[v], a.cos + i + v * Lanes::kCount, a.sin + i + v * Lanes::kCount);
      }
      store(out + i + pairs, C::narrow(y), extent);
    } else if constexpr (kEvenOdd) {
      turn(&x[0], &x[1], a.cos + i / 2, a.sin + i / 2);
    } else {
      x[0] = Lanes::multiply_add(x[0], Lanes::load_floats(a.cos + i),
                                 Lanes::multiply(Lanes::swap_neighbours(x[0]), Lanes::load_floats(a.sin + i)));
      replace_nans(&x[0], &x[0]);
    }
    store(out + i, C::narrow(x), extent);
  }

  // math/pair.h
  ROPE_INLINE_MEMBER static void turn(Floats* first, Floats* second, const float* cos, const float* sin) {
    const Floats c = Lanes::load_floats(cos), s = Lanes::load_floats(sin), x = *first;
    *first = Lanes::multiply_subtract(x, c, Lanes::multiply(*second, s));
    *second = Lanes::multiply_add(*second, c, Lanes::multiply(x, s));
    replace_nans(first, second);
  }

  // One comparison finds the NaNs of two vectors; they are rare.
  ROPE_INLINE_MEMBER static void replace_nans(Floats* x, Floats* y) {
    if (__builtin_expect(Lanes::any_nan(*x, *y), false)) {
      *x = Lanes::replace_nans(*x, C::kNan);
      *y = Lanes::replace_nans(*y, C::kNan);
    }
  }
};

}  // namespace rope::cpu
