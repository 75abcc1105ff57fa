#include <set>

#include "../../src/kernels/cos_sin/plan.h"
#include "check.h"

namespace rope::cuda::test {

void test_cos_sin() {
  Random r(4);
  std::set<bool> met;
  for (int i = 0; i < 1500; ++i) {
    ++shape;
    const int element_bytes = r.of({2, 4});
    CosSinParams p = {};
    p.pairs = r.chance(0.5) ? r.of({32, 64, 128, 1024}) : int32_t(r.between(1, 1024));
    p.num_rows = r.chance(0.8) ? r.between(1, 5000) : r.between(5000, 3000000);
    const int64_t step = r.step(element_bytes);
    p.row_stride = round_up(int64_t(2) * p.pairs * element_bytes, step);
    p.cos = reinterpret_cast<char*>((int64_t(1) << 32) + step);
    p.sin = p.cos + p.pairs * element_bytes;
    const CosSinPlan plan = plan_cos_sin(p, element_bytes);
    met.insert(plan.wide);
    const int32_t vec = plan.wide ? 16 / element_bytes : 1;
    if (plan.wide)
      for (const int64_t at : {reinterpret_cast<int64_t>(p.cos), reinterpret_cast<int64_t>(p.sin), p.row_stride})
        CHECK(at % 16 == 0 && p.pairs % vec == 0);
    CHECK(plan.block_x * plan.block_y <= unsigned(kCosSinBlock) && plan.grid_y <= unsigned(kMaxGridY));
    // Chunks of a row, then rows.
    std::vector<uint8_t> pairs(size_t(p.pairs), 0), rows(size_t(p.num_rows), 0);
    for (unsigned chunk = 0; chunk < plan.grid_y * plan.block_x; ++chunk)
      for (int32_t j = 0; j < vec && int32_t(chunk) * vec < p.pairs; ++j) ++pairs[chunk * unsigned(vec) + unsigned(j)];
    for (int64_t first = 0; first < int64_t(plan.grid_x) * plan.block_y; ++first)
      for (int64_t row = first; row < p.num_rows; row += int64_t(plan.grid_x) * plan.block_y) ++rows[size_t(row)];
    for (const auto* counts : {&pairs, &rows})
      for (const uint8_t count : *counts) CHECK(count == 1);
  }
  CHECK(met.size() == 2);
}

}  // namespace rope::cuda::test
