// The kernel that decodes (operations/decode.h, shape.h).
#pragma once

#include "results.cuh"

namespace rope::cuda {

template <class S>
__device__ __forceinline__ DecodeBlock block_of(const DecodeArgs& args) {
  const DecodeParams& p = args.params;
  DecodeBlock b;
  const int32_t unit = int32_t(blockIdx.x), head_of_all = unit / args.row_blocks;
  b.row = unit % args.row_blocks * S::kRows;
  b.request = head_of_all / p.k_heads;
  b.head = head_of_all % p.k_heads;
  b.group = p.q_heads / p.k_heads;
  b.length = p.lengths[b.request];
  if (b.length < 0 || b.length > p.max_length) b.length = 0;
  const SeenKeys first = seen_keys(p, b.length, 0);
  b.low = first.low;
  b.first_split = b.low / args.split;
  b.last_split = b.length > 0 ? (b.length - 1) / args.split + 1 : 0;
  if (b.last_split <= b.first_split) b.first_split = b.last_split = 0;
  b.begin = int32_t(blockIdx.y) * args.split;
  b.end = b.begin + args.split < b.length ? b.begin + args.split : b.length;
  return b;
}

// The block's queries, turned, in shared memory as elements M; zeros behind the last one.
template <class S, class D, class M>
__device__ __forceinline__ void load_queries(const DecodeArgs& args, const DecodeBlock& b, int32_t rows,
                                             uint16_t* shared) {
  const DecodeParams& p = args.params;
  const DecodeTurn& turn = p.turn;
  const auto* const words = as_memory(args.words);
  const int32_t half = turn.rotary_dim / 2, slots = S::kHeadDim - half;  // a pair, or an element that does not turn
  for (int32_t i = int32_t(threadIdx.x); i < 16 * S::kHeadDim / 8; i += kDecodeThreads)
    reinterpret_cast<uint4*>(shared)[i] = {0, 0, 0, 0};
  synchronize(false);
#pragma unroll 1
  for (int32_t i = int32_t(threadIdx.x); i < rows * slots; i += kDecodeThreads) {
    const int32_t r = i / slots, slot = i % slots;
    int32_t first = slot - half, second = -1;
    if (slot < half) {
      first = turn.rotary_offset + (turn.layout == Layout::kNeox ? slot : 2 * slot);
      second = turn.layout == Layout::kNeox ? first + half : first + 1;
    } else if (first >= turn.rotary_offset) {
      first += turn.rotary_dim;
    }
    const int32_t token = b.token(r);
    const int64_t row = int64_t(b.request) * p.q_tokens + token;
    const auto* const from =
        reinterpret_cast<const uint16_t*>(p.q.data + row * p.q.token_stride + b.query_head(r) * p.q.head_stride);
    const auto get = [&](int32_t at) { return widen_from<D>(args.dtype, from[at]); };
    // The bits of rope_apply, which products may round once more.
    const auto put = [&](int32_t at, float x) {
      const uint16_t y = narrow_to<D>(args.dtype, x);
      shared[query_place<S>(r, at)] = std::is_same_v<D, M> ? y : M::narrow(widen_from<D>(args.dtype, y));
    };
    int64_t position;
    if (second < 0) {
      put(first, get(first));
    } else if (decode_position(turn, row, b.length - p.q_tokens + token, &position)) {
      const Pair y = rotate_pair({get(first), get(second)}, decode_angle(turn, words, position, slot));
      put(first, y.first);
      put(second, y.second);
    } else {
      put(first, get(first));
      put(second, get(second));
    }
  }
}

// The warp's sums over its tiles of the split.
template <class S, class M, class Code>
struct WarpSums {
  RowSums<S> rows;
  float o[S::kRowTiles][S::kSteps][4];

  __device__ __forceinline__ void add_tiles(const DecodeArgs& args, const DecodeBlock& b, int32_t tile, int32_t lane,
                                            KeyTile<S>& keys, ValueTile<S>& values, TilePages& pages,
                                            const uint16_t* queries) {
    constexpr int32_t kStep = kDecodeWarps * S::kTileKeys;
    const DecodeParams& p = args.params;
    const float scale = args.score_scale * (p.k.scales ? *p.k.scales : p.k.scale);
    for (; tile < b.end; tile += kStep) {
      float scores[S::kGroups][2][4] = {};
      keys.template multiply<M, Code>(queries, lane, scores);
      pages.settle(p);
      keys.load(p, b, pages, lane);
      uint32_t weights[S::kRowTiles][S::kGroups][2];
      float factor[S::kRowTiles];
      rows.template add<M>(args, tile, lane, scale, scores, weights, factor);
#pragma unroll
      for (int n = 0; n < S::kRowTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = from_lane(factor[n], (lane % 4 * 2 + e) * 4);
#pragma unroll
          for (int u = 0; u < S::kSteps; ++u) {
            o[n][u][e] *= x;
            o[n][u][e + 2] *= x;
          }
        }
      values.template multiply<M, Code>(weights, o);
      values.load(p, b, pages, lane);
      pages.look_up<S>(p, b, tile + 2 * kStep, lane);
    }
  }

  // The warps of the block added up: the result, or that of its split.
  template <class D>
  __device__ __forceinline__ void leave(const DecodeArgs& args, const DecodeBlock& b, int32_t row_count, bool lost,
                                        float* shared) const {
    __shared__ float largest_of[kDecodeWarps][S::kRows], sum_of[kDecodeWarps][S::kRows];
    const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < S::kRowTiles; ++n) {
      const float sum = sum_of_keys(rows.sum[n]);
      if (t == 0) {
        largest_of[warp][n * 8 + g] = rows.largest[n];
        sum_of[warp][n * 8 + g] = lost ? __builtin_nanf("") : sum;
      }
    }
    const bool whole = b.is_whole();
    const SplitPlace place = whole ? SplitPlace{} : split_place<S>(args, int32_t(blockIdx.y));
#pragma unroll
    for (int n = 0; n < S::kRowTiles; ++n)
#pragma unroll
      for (int part = 0; part < S::kSteps / 4; ++part) {
#pragma unroll
        for (int u = 0; u < 4; ++u)
#pragma unroll
          for (int c = 0; c < 4; ++c)
            shared[(warp * 8 + 2 * t + c % 2) * kColumnStride + g * 8 + 2 * u + c / 2] = o[n][part * 4 + u][c];
        synchronize(false);
        const int32_t row = int32_t(threadIdx.x) / 16, column = int32_t(threadIdx.x) % 16 * 4, r = n * 8 + row;
        if (r < row_count) {
          float tops[kDecodeWarps], of_warps[kDecodeWarps];
          Quad quads[kDecodeWarps];
#pragma unroll
          for (int w = 0; w < kDecodeWarps; ++w) {
            tops[w] = largest_of[w][r];
            of_warps[w] = sum_of[w][r];
            quads[w] = quad_at(shared + (w * 8 + row) * kColumnStride + column);
          }
          RowResult result;
          result.add(tops, of_warps, quads);
          if (whole) {
            store_result<D>(args, b, r, element_of<S>(part, column), result);
          } else {
            quad_at(place.partial + r * S::kHeadDim + part * kColumns + column) = result.o;
            if (part == 0 && column == 0) {
              place.sums[2 * r] = result.largest;
              place.sums[2 * r + 1] = result.sum;
            }
          }
        }
        synchronize(false);
      }
  }
};

// Blocks that the registers of a multiprocessor are shared by. Of three on sm_120 a thread would spill one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
inline constexpr int kMostResident = 2;
#else
inline constexpr int kMostResident = 3;
#endif

// D: of q and o; M: what products are of. Code: of the cache, if it has codes.
template <class S, class D, class M, class Code>
__global__ void __launch_bounds__(kDecodeThreads, S::kRowTiles == 1 ? kMostResident : 2)
    decode_kernel(const __grid_constant__ DecodeArgs args) {
  constexpr int kPartFloats = kDecodeWarps * 8 * kColumnStride;
  static_assert(kPartFloats * sizeof(float) >= 16 * S::kHeadDim * sizeof(uint16_t));
  alignas(16) __shared__ float shared[kPartFloats];  // queries, then what warps exchange
  const DecodeParams& p = args.params;
  const DecodeBlock b = block_of<S>(args);
  const int32_t warp = int32_t(threadIdx.x) / 32, lane = int32_t(threadIdx.x) % 32;
  const int32_t rows = min(S::kRows, p.q_tokens * b.group - b.row);
  const int32_t split = int32_t(blockIdx.y);
  if (split > 0 && (split < b.first_split || split >= b.last_split)) return;
  if (split == 0 && b.first_split > 0) return;

  // Keys and values are on their way while queries turn. Behind the last tile a key that is there is loaded again: with
  // a condition, what is loaded would be moved between registers, and so waited for.
  KeyTile<S> keys;
  ValueTile<S> values;
  TilePages pages;
  pages.lost = false;
  int32_t tile = (b.low > b.begin ? b.low : b.begin) / S::kTileKeys * S::kTileKeys + warp * S::kTileKeys;
  pages.look_up<S>(p, b, tile, lane);
  pages.settle(p);
  keys.load(p, b, pages, lane);
  values.load(p, b, pages, lane);
  pages.look_up<S>(p, b, tile + kDecodeWarps * S::kTileKeys, lane);
  auto* const queries = reinterpret_cast<uint16_t*>(shared);
  load_queries<S, D, M>(args, b, rows, queries);
  synchronize(false);
  WarpSums<S, M, Code> sums = {};
  sums.rows.clear(p, b, lane);
  sums.add_tiles(args, b, tile, lane, keys, values, pages, queries);

  synchronize(false);  // queries are read
  sums.template leave<D>(args, b, rows, pages.lost, shared);
  if (!b.is_whole() && is_last(args, b)) add_splits<S, D>(args, b, rows);
}

}  // namespace rope::cuda
