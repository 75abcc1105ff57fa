#include <algorithm>
#include <set>

#include "../../src/kernels/decode/plan.h"
#include "check.h"

namespace rope::cuda::test {

void test_decode() {
  Random r(5);
  std::set<std::pair<int32_t, bool>> met;
  for (int i = 0; i < 5000; ++i) {
    ++shape;
    DecodeParams p = {};
    p.type = r.of({OutType::kSame, OutType::kE4M3, OutType::kE5M2});
    p.head_dim = r.of({64, 128});
    p.k_heads = int32_t(r.between(1, 16));
    p.q_heads = p.k_heads * int32_t(r.between(1, 16));
    p.q_tokens = r.chance(0.5) ? 1 : int32_t(r.between(1, kMaxDecodeTokens));
    p.requests = int32_t(r.chance(0.5) ? r.between(1, 16) : r.between(1, 3000));
    p.max_length = int32_t(r.chance(0.5) ? r.between(0, 4096) : r.between(0, 300000));
    p.split = r.chance(0.3) ? kDecodeSplit * int32_t(r.between(1, 16)) : 0;
    const int processors = r.of({20, 108, 132});
    const DecodePlan plan = plan_decode(p, processors, false);
    if (plan.unsupported) {
      CHECK(p.split && plan.units > kDecodeCounters);
      continue;
    }
    CHECK(is_compiled(kDtypeDecodeCodes, plan.code) || is_compiled(kCodesDecodeCodes, plan.code));
    const int32_t rows = p.q_heads / p.k_heads * p.q_tokens;
    CHECK(plan.row_blocks * 8 * plan.code.row_tiles >= rows && (plan.row_blocks - 1) * 8 * plan.code.row_tiles < rows);
    CHECK(plan.units == int64_t(p.requests) * p.k_heads * plan.row_blocks);
    // Each key is in one split; tiles of warps do not straddle two.
    const int32_t keys = std::max(p.max_length, 1);
    CHECK(int64_t(plan.split) * plan.splits >= keys && int64_t(plan.split) * (plan.splits - 1) < keys);
    CHECK(plan.split % (kDecodeWarps * 16) == 0 && (!p.split || plan.split == p.split));
    const int64_t results = plan.units * plan.splits * 8 * plan.code.row_tiles * (p.head_dim + 2) * 4;
    CHECK(plan.workspace_bytes == (plan.splits > 1 ? kDecodeCounters * 4 + results : 0));
    // Few keys: one wave of blocks, unless a warp's tile is all that a block has.
    if (!p.split && plan.splits > 1 && plan.split > kDecodeWarps * 32 && plan.split < 256)
      CHECK(plan.units * plan.splits <= processors * 3);
    met.insert({plan.code.row_tiles, plan.splits > 1});
  }
  CHECK(met.size() == 4);
  DecodeParams wide = {};
  wide.head_dim = 96;
  wide.q_heads = wide.k_heads = wide.q_tokens = wide.requests = 1;
  CHECK(plan_decode(wide, 132, false).unsupported);
}

}  // namespace rope::cuda::test
