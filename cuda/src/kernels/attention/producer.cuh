// The warpgroup that loads: one thread brings keys and values, another one queries, a tile ahead of those that compute;
// the warps that bring no keys turn queries, if they are to turn.
#pragma once

#include "query_turn.cuh"

namespace rope::cuda {

// Numbers tiles: heads in sections, whose keys and values the second-level cache holds together; in a section the last
// queries first, which see the most keys under a causal mask, so that the last tiles dealt are short. Ragged: sequence
// after sequence, or numbers would go to tiles that short ones do not have.
template <class Shape>
class TileList {
 public:
  __device__ __forceinline__ explicit TileList(const AttentionArgs& args) : args_(args) {}

  // Ragged: of numbers that increase from call to call.
  __device__ __forceinline__ Tile find(int32_t number) {
    Tile t = {0, -1, 0, 0, 0, args_.q_tokens, args_.k_tokens};
    if (!args_.q_indptr) {
      const int32_t heads = args_.q_heads * args_.sequences;
      if (number >= blocks(t) * heads) return t;
      place(number, heads, &t);
      t.sequence = t.head / args_.q_heads;
      t.head -= t.sequence * args_.q_heads;
      return t;
    }
    for (; sequence_ < args_.sequences; ++sequence_) {
      t.q_begin = args_.q_indptr[sequence_];
      t.q_tokens = args_.q_indptr[sequence_ + 1] - t.q_begin;
      const int32_t tiles = blocks(t) * args_.q_heads;
      if (number < first_ + tiles) {
        t.k_begin = args_.k_indptr[sequence_];
        t.k_tokens = args_.k_indptr[sequence_ + 1] - t.k_begin;
        place(number - first_, args_.q_heads, &t);
        return t;
      }
      first_ += tiles;
    }
    return t;
  }

 private:
  static __device__ __forceinline__ int32_t blocks(const Tile& t) {
    return (t.q_tokens + Shape::kRows - 1) / Shape::kRows;
  }

  __device__ __forceinline__ void place(int32_t number, int32_t all_heads, Tile* t) const {
    const int32_t each = args_.section * blocks(*t), section = number / each, rest = number - section * each;
    const int32_t first_head = section * args_.section, heads = min(args_.section, all_heads - first_head);
    const int32_t from_end = rest / heads;
    t->row = (blocks(*t) - 1 - from_end) * Shape::kRows;
    t->head = first_head + rest - from_end * heads;
  }

  const AttentionArgs& args_;
  int32_t sequence_ = 0, first_ = 0;  // ragged: where the search goes on, and the number of that sequence's first tile
};

// A block's first tile has its own number, all others come from a counter that the blocks share. The last block that
// finds none leaves zeros for the next launch.
__device__ __forceinline__ int32_t next_number(const AttentionArgs& args) {
  return int32_t(gridDim.x) + atomicAdd(&args.counter[0], 1);
}
__device__ __forceinline__ void end_numbers(const AttentionArgs& args) {
  if (atomicAdd(&args.counter[1], 1) == int32_t(gridDim.x) - 1) args.counter[0] = args.counter[1] = 0;
}

template <class Shape>
class QueryLoader {
 public:
  __device__ __forceinline__ QueryLoader(const AttentionArgs& args, AttentionStorage<Shape>& storage)
      : args_(args), storage_(storage), list_(args), queries_(storage.loaded_queries(args.turn.cos)) {
    wait_for_previous();
  }

  // Has a tile's queries loaded; false: there is none left, which the tile says too.
  __device__ __forceinline__ bool load(QueryStage<Shape> stage) {
    queries_.wait_empty(stage);
    const Tile t = list_.find(stage.count ? next_number(args_) : int32_t(blockIdx.x));
    storage_.tile[stage.index()] = t;
    if (t.head < 0) {
      barrier_arrive(queries_.filled(stage));
      end_numbers(args_);
      return false;
    }
    queries_.template load<Shape::kHeadPanels>(stage, &args_.q, t.q_begin + t.row, t.head, t.sequence);
    return true;
  }

 private:
  const AttentionArgs& args_;
  AttentionStorage<Shape>& storage_;
  TileList<Shape> list_;
  const QueryRing<Shape> queries_;
};

template <class Shape>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, AttentionStorage<Shape>& storage) {
  QueryLoader<Shape> loader(args, storage);
#pragma unroll 1
  for (QueryStage<Shape> stage; loader.load(stage); ++stage.count) {
  }
}

// By kTurningWarps warps, the first of which loads. The first tile is turned by those that compute (consumer.cuh).
template <class Shape, class D>
__device__ __forceinline__ void load_and_turn_queries(const AttentionArgs& args, AttentionStorage<Shape>& storage,
                                                      int thread) {
  const auto loaded = storage.loaded_queries(true), turned = storage.queries();
  QueryLoader<Shape> loader(args, storage);
#pragma unroll 1
  for (QueryStage<Shape> stage;; ++stage.count) {
    if (thread == 0) loader.load(stage);
    synchronize(true);
    loaded.wait_full(stage);
    const Tile t = storage.tile[stage.index()];
    if (stage.count && t.head >= 0) {
      QueryTurner<Shape, D, kTurningWarps * kWarp, 1> turner(args.turn, t, 0, Shape::kRows, thread);
      turner.turn(loaded.buffer(stage));
      fence_async_proxy();
    }
    synchronize(true);
    if (thread % kWarp == 0) barrier_arrive(turned.filled(stage));
    if (t.head < 0) break;
  }
}

// Blocks of keys from the last to the first: where keys are masked comes first.
template <class Shape>
__device__ __forceinline__ void load_keys_and_values(const AttentionArgs& args, AttentionStorage<Shape>& storage) {
  const auto queries = storage.loaded_queries(args.turn.cos);
  const auto keys = storage.keys();
  const auto values = storage.values();
  const auto next_tile = [&](QueryStage<Shape> stage) {
    queries.wait_full(stage);
    const Tile t = storage.tile[stage.index()];
    queries.release(stage);  // a tile that sees no keys may otherwise be gone before it is seen here
    return t;
  };
  BlockStage block;
  wait_for_previous();
  Tile t = TileList<Shape>(args).find(int32_t(blockIdx.x));  // the first one's keys do not wait for its queries
#pragma unroll 1
  for (QueryStage<Shape> stage; t.head >= 0;) {
    const SeenBlocks seen = seen_blocks<Shape::kRows, Shape::kKeys>(t, args.window_left, args.window_right);
    const int32_t head = t.head / args.group;
#pragma unroll 1
    for (int32_t n = seen.end - 1; n >= seen.begin; --n, ++block.count) {
      const int32_t row = t.k_begin + n * Shape::kKeys;
      keys.wait_empty(block);
      keys.template load<Shape::kHeadPanels>(block, &args.k, row, head, t.sequence);
      values.wait_empty(block);
      values.template load<Shape::kValuePanels>(block, &args.v, row, head, t.sequence);
    }
    if (!stage.count) next_tile(stage);
    ++stage.count;
    t = next_tile(stage);
  }
}

}  // namespace rope::cuda
