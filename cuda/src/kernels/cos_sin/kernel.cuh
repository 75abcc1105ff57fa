// The kernel that fills rows of cos and sin: a thread takes kVec neighbouring pairs, whose words it keeps, through all
// the rows that are its own. Float32 positions, which few calls have, are those of kVec == 1 alone.
#pragma once

#include "../../operations/general.h"
#include "../parts/chunk.h"
#include "../parts/launch.h"
#include "../parts/words.h"
#include "plan.h"

namespace rope::cuda {

struct CosSinArgs {
  CosSinParams params;
  alignas(16) uint64_t words[kMaxRotaryDim / 2];
};

template <class D, Angle kAngle, int kVec>
__global__ void __launch_bounds__(kCosSinBlock) cos_sin_kernel(const __grid_constant__ CosSinArgs args) {
  using C = Chunk<D, kVec>;
  const CosSinParams& p = args.params;
  const PairMap<Layout::kNeox, kVec> map{int32_t(blockIdx.y * blockDim.x + threadIdx.x), p.pairs};
  if (map.first() >= p.pairs) return;
  uint64_t word[kVec];
#pragma unroll
  for (int j = 0; j < kVec; ++j) word[j] = as_memory(args.words)[map.pair(j)];
  const int64_t first = int64_t(map.first()) * C::kElementBytes, step = int64_t(gridDim.x) * blockDim.y;
  wait_for_previous();
  release_next();
  for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < p.num_rows; row += step) {
    const bool is_float = kVec == 1 && p.positions.kind == PositionKind::kFloat32;
    int64_t position = 0;
    const bool moves = !p.of_tokens || position_of(p.positions, row, &position);
    if (!p.of_tokens) position = is_float ? index_at(p.positions.ids, true, row) : simple_position(p.positions, row);
    float cos[kVec], sin[kVec];
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const CosSin a =
          is_float ? angle_at_float(kAngle, as_float(position), as_memory(args.words), map.pair(j), p.pairs, p.scale)
                   : scaled_angle(phase_at<kAngle>(position, word[j]), p.scale, p.scale);
      cos[j] = moves ? a.cos : 1.0f;
      sin[j] = moves ? a.sin : 0.0f;
    }
    C c, s;
    c.narrow(cos);
    s.narrow(sin);
    *reinterpret_cast<C*>(p.cos + row * p.row_stride + first) = c;
    *reinterpret_cast<C*>(p.sin + row * p.row_stride + first) = s;
  }
}

}  // namespace rope::cuda
