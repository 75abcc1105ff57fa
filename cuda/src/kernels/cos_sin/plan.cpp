#include "plan.h"

#include <algorithm>

namespace rope::cuda {
namespace {

constexpr int32_t kMaxBlocks = 4096;  // along the rows: several times what a device runs at once

}  // namespace

CosSinPlan plan_cos_sin(const CosSinParams& p, int element_bytes) {
  Alignment alignment(element_bytes);
  alignment.add_elements(p.pairs);
  alignment.add_address(p.cos);
  alignment.add_address(p.sin);
  alignment.add_bytes(p.row_stride);
  CosSinPlan plan = {};
  plan.wide = alignment.allows(16) && p.positions.kind != PositionKind::kFloat32;
  const int32_t chunks = plan.wide ? p.pairs / (16 / element_bytes) : p.pairs;
  plan.grid_y = unsigned(divide_up(chunks, kCosSinBlock));
  plan.block_x = unsigned(divide_up(chunks, plan.grid_y));
  plan.block_y = unsigned(std::min<int64_t>(kCosSinBlock / plan.block_x, p.num_rows));
  plan.grid_x = unsigned(std::min(divide_up(p.num_rows, plan.block_y), kMaxBlocks));
  return plan;
}

}  // namespace rope::cuda
