#include <algorithm>
#include <set>
#include <tuple>

#include "../../src/kernels/cache_rotation/plan.h"
#include "check.h"

namespace rope::cuda::test {
namespace {

// Keys of `element_bytes`, 1 for codes, whose scales may be computed.
PipelineParams random_keys(Random& r, int element_bytes) {
  PipelineParams p = {};
  PipelineOperand& keys = p.operands[0];
  p.num_operands = 1;
  const bool computed = element_bytes == 1 && r.chance(0.5), grouped = computed && r.chance(0.5);
  p.dynamic = computed && !grouped;
  if (grouped) keys.quantize = {OutType::kE2M1, ScaleKind::kGroup, 1.0f, 1.0f, nullptr};
  keys.heads = int32_t(r.between(1, 40));
  keys.dim = r.chance(0.7) ? r.of({64, 128, 192, 576}) : int32_t(r.between(2, 2600));
  keys.whole = computed;
  keys.cached = keys.rotated = true;
  p.rotary_dim = std::max(2, int32_t(r.chance(0.5) ? keys.dim : r.between(2, keys.dim)) / 2 * 2);
  p.rotary_dim = std::min(p.rotary_dim, kMaxRotaryDim);
  p.rotary_offset = r.chance(0.5) ? 0 : int32_t(r.between(0, keys.dim - p.rotary_dim));
  p.num_tokens = r.chance(0.7) ? r.between(1, 300) : r.between(300, 20000);
  p.layout = r.of({Layout::kNeox, Layout::kGptj});
  const int64_t step = r.step(element_bytes), row = round_up(int64_t(keys.dim) * element_bytes, step);
  keys.out = reinterpret_cast<char*>((int64_t(1) << 32) + step);
  keys.out_head_stride = row;
  keys.out_token_stride = row * keys.heads;
  keys.out_page_stride = row * keys.heads * 16;
  return p;
}

}  // namespace

void test_rotate_cache() {
  Random r(3);
  std::set<std::tuple<bool, bool, bool>> met;
  int unsupported = 0;
  for (int i = 0; i < 4000; ++i) {
    ++shape;
    const int element_bytes = r.of({1, 2, 4});
    const PipelineParams p = random_keys(r, element_bytes);
    const PipelineOperand& keys = p.operands[0];
    const CachePlan plan = plan_rotate_cache(p, element_bytes);
    CHECK(element_bytes == 1 ? is_compiled(kCodesCacheCodes, plan.code) : is_compiled(kDtypeCacheCodes, plan.code));
    met.insert({plan.code.wide, plan.code.dynamic, plan.code.grouped});
    const int32_t vec = plan.code.vec(element_bytes);
    for (const int64_t at :
         {reinterpret_cast<int64_t>(keys.out), keys.out_head_stride, keys.out_token_stride, keys.out_page_stride})
      CHECK(plan.code.grouped || at % (vec * element_bytes) == 0);
    CHECK((plan.unsupported != nullptr) == (keys.whole && plan.grid_z > 1));
    if (plan.unsupported) {
      CHECK(keys.dim > (vec > 1 ? 2048 : 256));
      ++unsupported;
      continue;
    }
    check_elements(p.layout, vec, p.rotary_dim, p.rotary_offset, keys.dim, plan.slots, plan.stored_slots, keys.whole);
    check_grid({plan.grid_x, plan.grid_y, plan.grid_z}, {plan.block_x, plan.block_y, plan.block_z}, p.num_tokens,
               plan.slots, keys.heads, plan.code.unroll(), plan.turns);
  }
  CHECK(met.size() == std::size(kCodesCacheCodes) && unsupported > 0);
}

}  // namespace rope::cuda::test
