// The kernel that fills a table of cos and sin.
//
// A thread takes kVec neighbouring pairs, whose words it keeps, through all the rows that are its own. threadIdx.x runs
// over the chunks of a row, y over rows; blockIdx.x over rows, y over chunks that do not fit one block.
#include <algorithm>
#include <cstring>

#include "build_cos_sin.h"
#include "chunk.h"
#include "launch.h"
#include "words.h"

namespace rope::cuda {

inline constexpr int kBuildTableBlock = 256;        // threads, at most
inline constexpr int32_t kBuildTableBlocks = 4096;  // along the rows, at most: several times what a device runs at once

struct BuildTableArgs {
  CosSinParams params;
  alignas(16) uint64_t words[kMaxRotaryDim / 2];
};

template <class D, Angle kAngle, int kVec>
__global__ void __launch_bounds__(kBuildTableBlock) build_cos_sin_kernel(const __grid_constant__ BuildTableArgs args) {
  using C = Chunk<D, kVec>;
  const CosSinParams& p = args.params;
  const PairMap<Layout::kNeox, kVec> map{int32_t(blockIdx.y * blockDim.x + threadIdx.x), p.pairs};
  if (map.first() >= p.pairs) return;
  uint64_t word[kVec];
  load_words(as_memory(args.words), map, word);
  const int64_t first = int64_t(map.first()) * C::kElementBytes, step = int64_t(gridDim.x) * blockDim.y;
  wait_for_previous();
  release_next();
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < p.num_rows; row += step) {
    const int64_t position = simple_position(p.positions, row);
    float cos[kVec], sin[kVec];
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const CosSin a = scaled_angle(phase_at<kAngle>(position, word[j]), p.scale, p.scale);
      cos[j] = a.cos;
      sin[j] = a.sin;
    }
    C c, s;
    c.narrow(cos);
    s.narrow(sin);
    *reinterpret_cast<C*>(p.cos + row * p.row_stride + first) = c;
    *reinterpret_cast<C*>(p.sin + row * p.row_stride + first) = s;
  }
}

template <class D, Angle kAngle>
struct BuildTableInstance {
  static constexpr int kElementBytes = sizeof(typename D::Storage);

  template <int kVec>
  static int launch_one(const CosSinParams& p, const uint64_t* table, const Execution& e) {
    BuildTableArgs args;
    args.params = p;
    std::memcpy(args.words, table, sizeof(uint64_t) * size_t(p.pairs));
    const int32_t chunks = p.pairs / kVec, grid_y = divide_up(chunks, kBuildTableBlock);
    const int32_t block_x = divide_up(chunks, grid_y);
    const int32_t block_y = int32_t(std::min<int64_t>(kBuildTableBlock / block_x, p.num_rows));
    const int32_t grid_x = std::min(divide_up(p.num_rows, block_y), kBuildTableBlocks);
    return launch(build_cos_sin_kernel<D, kAngle, kVec>, dim3{unsigned(grid_x), unsigned(grid_y), 1},
                  dim3{unsigned(block_x), unsigned(block_y), 1}, args, e.stream, e.dependent);
  }

  static int run(const CosSinParams& p, const uint64_t* table, const Execution& e) {
    const int64_t addresses = reinterpret_cast<int64_t>(p.cos) | reinterpret_cast<int64_t>(p.sin) | p.row_stride;
    const bool wide = (addresses | p.pairs * kElementBytes) % 16 == 0;
    return wide ? launch_one<16 / kElementBytes>(p, table, e) : launch_one<1>(p, table, e);
  }
};

extern const BuildTableSet kBuildTable = build_cos_sin_set<BuildTableInstance>();

}  // namespace rope::cuda
