// A warp's tile of keys and values in registers: where it is, how it comes there, and its products.
#pragma once

#include "args.h"
#include "warp.cuh"

namespace rope::cuda {

// What a block is about.
struct DecodeBlock {
  int32_t request, head, row;  // head: of k; row: the first one, of q_tokens * group
  int32_t group;
  int32_t length;                   // 0 where the given one is out of range
  int32_t low, begin;               // the first key that any query sees, and the split's
  int32_t end;                      // of both
  int32_t first_split, last_split;  // that have keys

  __device__ __forceinline__ bool is_whole() const { return last_split - first_split <= 1; }
  __device__ __forceinline__ int32_t token(int32_t r) const { return (row + r) / group; }
  __device__ __forceinline__ int32_t query_head(int32_t r) const { return head * group + (row + r) % group; }
};

// Where the keys of a tile are, one in each lane, asked for before they are needed.
struct TilePages {
  int32_t page, entry;
  bool lost;  // a page of some lane was outside the cache

  template <class S>
  __device__ __forceinline__ void look_up(const DecodeParams& p, const DecodeBlock& b, int32_t tile, int32_t lane) {
    // Those that nobody sees are replaced by some that are seen, for an address.
    int32_t key = tile + lane % S::kTileKeys;
    key = key < b.low ? b.low : key < b.end ? key : b.end - 1;
    CachePlace place = {};
    look_up_place<false>(p.cache, {key, b.request}, &place);
    page = int32_t(place.page);
    entry = int32_t(place.entry);
  }

  // Waits for them.
  __device__ __forceinline__ void settle(const DecodeParams& p) {
    const bool inside = uint32_t(page) < uint32_t(p.cache.num_pages);
    lost |= any_lane(!inside);
    page = inside ? page : 0;
  }

  // Where the row of the lane's key, or its value, begins.
  __device__ __forceinline__ const char* row_of(const DecodePages& pages, int32_t head) const {
    return pages.data + head * pages.head_stride + page * pages.page_stride + entry * pages.entry_stride;
  }
};

// Two neighbouring pairs of elements of a piece: a lane's part of 16 elements of a key.
template <class S, class Code>
__device__ __forceinline__ void step_of(const uint32_t (&piece)[4], int step, uint32_t* first, uint32_t* second) {
  if constexpr (S::kElementBytes == 2) {
    *first = piece[2 * step];
    *second = piece[2 * step + 1];
  } else {
    *first = widen_codes<Code>(uint16_t(piece[step]));
    *second = widen_codes<Code>(uint16_t(piece[step] >> 16));
  }
}

// Where in shared memory element i of query r of the block, of 16, is: as the lanes take 16 elements of all of them.
template <class S>
__device__ __forceinline__ int32_t query_place(int32_t r, int32_t i) {
  constexpr int kPieceDims = 16 / S::kElementBytes;
  const int32_t piece = i / kPieceDims, step = piece / 4 * S::kPieceSteps + i % kPieceDims / 4;
  return ((step * 8 + r % 8) * 4 + piece % 4) * 8 + i % 4 / 2 * 4 + r / 8 * 2 + i % 2;
}

template <class S>
struct KeyTile {
  uint32_t piece[S::kGroups][2][S::kKeyPieces][4];

  __device__ __forceinline__ void load(const DecodeParams& p, const DecodeBlock& b, const TilePages& pages,
                                       int32_t lane) {
    const char* const own = pages.row_of(p.k, b.head);
#pragma unroll
    for (int i = 0; i < S::kGroups; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const char* const row = from_lane(own, i * 16 + half * 8 + lane / 4) + lane % 4 * 16;
#pragma unroll
        for (int j = 0; j < S::kKeyPieces; ++j) {
          const uint4 x = load_once(row + j * 64);
          piece[i][half][j][0] = x.x;
          piece[i][half][j][1] = x.y;
          piece[i][half][j][2] = x.z;
          piece[i][half][j][3] = x.w;
        }
      }
  }

  // scores[i][half]: keys 16 i + 8 half + 2t (0, 2) and + 1 with queries g (0, 1) and g + 8.
  template <class M, class Code>
  __device__ __forceinline__ void multiply(const uint16_t* queries, int32_t lane,
                                           float (&scores)[S::kGroups][2][4]) const {
#pragma unroll
    for (int j = 0; j < S::kKeyPieces; ++j)
#pragma unroll
      for (int s = 0; s < S::kPieceSteps; ++s) {
        const uint4 q = load_shared(queries + ((j * S::kPieceSteps + s) * 32 + lane) * 8);
        const uint32_t a[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < S::kGroups; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t first, second;
            step_of<S, Code>(piece[i][half][j], s, &first, &second);
            product<M>(scores[i][half], a, first, second);
          }
      }
  }
};

template <class S>
struct ValueTile {
  static constexpr int kWords = S::kValueBytes / 4;
  uint32_t piece[S::kGroups][4][S::kValuePieces][kWords];

  __device__ __forceinline__ void load(const DecodeParams& p, const DecodeBlock& b, const TilePages& pages,
                                       int32_t lane) {
    const char* const own = pages.row_of(p.v, b.head);
#pragma unroll
    for (int i = 0; i < S::kGroups; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const char* const row = from_lane(own, i * 16 + k / 2 * 8 + k % 2 + lane % 4 * 2) + lane / 4 * S::kValueBytes;
#pragma unroll
        for (int j = 0; j < S::kValuePieces; ++j) {
          if constexpr (kWords == 4) {
            const uint4 x = load_once(row + j * 8 * S::kValueBytes);
            piece[i][k][j][0] = x.x;
            piece[i][k][j][1] = x.y;
            piece[i][k][j][2] = x.z;
            piece[i][k][j][3] = x.w;
          } else {
            const uint2 x = load_once_8(row + j * 8 * S::kValueBytes);
            piece[i][k][j][0] = x.x;
            piece[i][k][j][1] = x.y;
          }
        }
      }
  }

  // o[u]: elements 2 u (0, 1) and 2 u + 1 (2, 3) of the pieces of lane / 4, one behind the other, of queries 2t (0, 2)
  // and 2t + 1. weights: of keys 2t, 2t + 1 (0) and + 8 (1) of query g.
  template <class M, class Code>
  __device__ __forceinline__ void multiply(const uint32_t (&weights)[S::kRowTiles][S::kGroups][2],
                                           float (&o)[S::kRowTiles][S::kSteps][4]) const {
    constexpr int kWordSteps = 2 / S::kElementBytes;
#pragma unroll
    for (int i = 0; i < S::kGroups; ++i)
#pragma unroll
      for (int j = 0; j < S::kValuePieces; ++j)
#pragma unroll
        for (int w = 0; w < kWords; ++w)
#pragma unroll
          for (int h = 0; h < kWordSteps; ++h) {
            uint32_t a[4];
#pragma unroll
            for (int k = 0; k < 2; ++k) {  // two keys that are neighbours, element by element
              const uint32_t x = piece[i][2 * k][j][w], y = piece[i][2 * k + 1][j][w];
              if constexpr (S::kElementBytes == 2) {
                a[2 * k] = bytes_of<0x5410>(x, y);
                a[2 * k + 1] = bytes_of<0x7632>(x, y);
              } else {
                const uint32_t both = h ? bytes_of<0x7362>(x, y) : bytes_of<0x5140>(x, y);
                a[2 * k] = widen_codes<Code>(uint16_t(both));
                a[2 * k + 1] = widen_codes<Code>(uint16_t(both >> 16));
              }
            }
#pragma unroll
            for (int n = 0; n < S::kRowTiles; ++n)
              product<M>(o[n][(j * kWords + w) * kWordSteps + h], a, weights[n][i][0], weights[n][i][1]);
          }
  }
};

}  // namespace rope::cuda
