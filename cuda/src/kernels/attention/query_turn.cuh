// Queries turned in shared memory, by rows of cos and sin: the arithmetic, and so the bits, of the rotation
// (math/pair.h).
#pragma once

#include "storage.cuh"

namespace rope::cuda {

// cos and sin of eight pairs.
struct PairAngles {
  float4 cos[2], sin[2];
};

// Two neighbouring elements of 16 bits in a word.
template <class D>
__device__ __forceinline__ Pair widen2(uint32_t word) {
  return {D::widen(uint16_t(word)), D::widen(uint16_t(word >> 16))};
}

// A pair that is one word.
template <class D>
__device__ __forceinline__ void turn_word(uint32_t& x, float cos, float sin) {
  const Pair y = rotate_pair(widen2<D>(x), CosSin{cos, sin});
  x = D::narrow2(y.first, y.second);
}

// Two pairs, the firsts of which are one word and the seconds another.
template <class D>
__device__ __forceinline__ void turn_words(uint32_t& x, uint32_t& y, float cos0, float sin0, float cos1, float sin1) {
  const Pair first = widen2<D>(x), second = widen2<D>(y);
  const Pair a = rotate_pair({first.first, second.first}, CosSin{cos0, sin0});
  const Pair b = rotate_pair({first.second, second.second}, CosSin{cos1, sin1});
  x = D::narrow2(a.first, b.first);
  y = D::narrow2(a.second, b.second);
}

// The two chunks of a slot (math/pair.h), 8 elements each.
template <class D>
__device__ __forceinline__ void turn_slot(Layout layout, uint4& x, uint4& y, const PairAngles& t) {
  if (layout == Layout::kNeox) {
    turn_words<D>(x.x, y.x, t.cos[0].x, t.sin[0].x, t.cos[0].y, t.sin[0].y);
    turn_words<D>(x.y, y.y, t.cos[0].z, t.sin[0].z, t.cos[0].w, t.sin[0].w);
    turn_words<D>(x.z, y.z, t.cos[1].x, t.sin[1].x, t.cos[1].y, t.sin[1].y);
    turn_words<D>(x.w, y.w, t.cos[1].z, t.sin[1].z, t.cos[1].w, t.sin[1].w);
  } else {
    turn_word<D>(x.x, t.cos[0].x, t.sin[0].x);
    turn_word<D>(x.y, t.cos[0].y, t.sin[0].y);
    turn_word<D>(x.z, t.cos[0].z, t.sin[0].z);
    turn_word<D>(x.w, t.cos[0].w, t.sin[0].w);
    turn_word<D>(y.x, t.cos[1].x, t.sin[1].x);
    turn_word<D>(y.y, t.cos[1].y, t.sin[1].y);
    turn_word<D>(y.z, t.cos[1].z, t.sin[1].z);
    turn_word<D>(y.w, t.cos[1].w, t.sin[1].w);
  }
}

// One thread's part of turning rows of a tile. It has one slot of every kThreads / slots-th row, and asks for the
// angles of kAhead of them before it needs the first, which it does when it is made.
// kBack: the inverse rotation, of gradients.
template <class Shape, class D, int kThreads, int kAhead, bool kBack = false>
class QueryTurner {
 public:
  // Rows [first_row, first_row + rows) of the tile, but for those behind the sequence's end.
  __device__ __forceinline__ QueryTurner(const AttentionTurn& turn, const Tile& tile, int first_row, int rows,
                                         int thread)
      : turn_(turn) {
    const int slots = turn_.rotary_dim / 16;
    step_ = kThreads / slots;
    row_ = first_row + thread / slots;
    end_ = min(first_row + rows, tile.q_tokens - tile.row);
    if (thread >= step_ * slots) end_ = 0;
    const bool halves = turn_.layout == Layout::kNeox;
    const int slot = thread % slots;
    first_column_ = turn_.rotary_offset + slot * 8;
    angle_ = tile.sequence * turn_.sequence_stride + (tile.q_begin + tile.row + row_) * turn_.row_stride +
             slot * (halves ? 8 : 4);
    apart_ = halves ? 4 : turn_.rotary_dim / 4;
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (row_ + i * step_ < end_) load(i);
  }

  // queries: where the tile lies.
  __device__ __forceinline__ void turn(uint32_t queries) {
#pragma unroll 1
    for (; row_ < end_; row_ += kAhead * step_) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int row = row_ + i * step_;
        if (row >= end_) break;
        const uint32_t first = queries + place(row, first_column_);
        const uint32_t second = queries + place(row, first_column_ + turn_.rotary_dim / 2);
        uint4 x = load_shared(first), y = load_shared(second);
        turn_slot<D>(turn_.layout, x, y, angles_[i]);
        if (row + kAhead * step_ < end_) load(i);
        store_shared(first, x);
        store_shared(second, y);
      }
    }
  }

 private:
  // The angles of the next row that has none yet.
  __device__ __forceinline__ void load(int i) {
    const float *cos = turn_.cos + angle_, *sin = turn_.sin + angle_;
    angles_[i] = {{load_global(cos), load_global(cos + apart_)}, {load_global(sin), load_global(sin + apart_)}};
    if constexpr (kBack)
      for (float4& x : angles_[i].sin) x = {-x.x, -x.y, -x.z, -x.w};
    angle_ += step_ * turn_.row_stride;
  }

  // Of a chunk of 16 bytes.
  static __device__ __forceinline__ uint32_t place(int row, int column) {
    return chunk_place<Shape::kRows>(row, column / 8);
  }

  const AttentionTurn& turn_;
  int row_, end_, step_, first_column_, apart_;
  int64_t angle_;
  PairAngles angles_[kAhead];
};

}  // namespace rope::cuda
