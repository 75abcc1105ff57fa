#include <set>
#include <tuple>

#include "../../src/kernels/pipeline/plan.cpp"  // its regimes, too
#include "check.h"

namespace rope::cuda::test {
namespace {

PipelineOperand operand_at(Random& r, int element_bytes, int32_t heads, int32_t dim, bool rotated) {
  PipelineOperand o = {};
  const int64_t step = r.step(element_bytes), row = round_up(int64_t(dim) * element_bytes, step);
  o.in = reinterpret_cast<const char*>((int64_t(1) << 32) + step);
  o.out = reinterpret_cast<char*>((int64_t(1) << 40) + step);
  o.in_head_stride = o.out_head_stride = row;
  o.in_token_stride = o.out_token_stride = row * heads;
  o.heads = heads;
  o.dim = dim;
  o.rotated = rotated;
  o.whole = !rotated || r.chance(0.6);
  if (o.whole && r.chance(0.35)) {
    o.quantize.type = r.of({OutType::kE4M3, OutType::kInt8});
    o.quantize.kind = r.of({ScaleKind::kHost, ScaleKind::kHead, ScaleKind::kDynamic});
  }
  return o;
}

PipelineParams random_pipeline(Random& r, int element_bytes) {
  PipelineParams p = {};
  const int32_t dim = r.chance(0.7) ? r.of({64, 80, 128, 256}) : int32_t(r.between(2, 1200));
  const int32_t q_heads = int32_t(r.between(1, 40)), k_heads = int32_t(r.between(1, 9));
  p.rotary_dim = std::max(2, int32_t(r.chance(0.6) ? dim : r.between(2, dim)) / 2 * 2);
  p.rotary_offset = r.chance(0.7) ? 0 : int32_t(r.between(0, dim - p.rotary_dim));
  p.num_tokens = r.chance(0.7) ? r.between(1, 40) : r.chance(0.6) ? r.between(40, 800) : r.between(800, 30000);
  p.layout = r.of({Layout::kNeox, Layout::kGptj});
  p.angle = r.chance(0.8) ? Angle::kExact : Angle::kFp32;
  p.positions.kind = r.chance(0.8) ? PositionKind::kIds64 : PositionKind::kRagged32;
  for (const auto& [heads, rotated, use] : {std::tuple(q_heads, true, 0.9), std::tuple(k_heads, true, 0.9),
                                            std::tuple(k_heads, false, 0.6), std::tuple(q_heads, false, 0.2)})
    if (r.chance(use) || p.num_operands == 0)
      p.operands[p.num_operands++] = operand_at(r, element_bytes, heads, dim, rotated);
  if (r.chance(0.4)) {
    p.norm.on = true;
    p.norm.wide_weights = r.chance(0.8);
    p.norm.across_heads = r.chance(0.2);
    static const char weight = 0;
    for (int32_t i = 0; i < p.num_operands; ++i) {
      PipelineOperand& o = p.operands[i];
      if (o.rotated) o.weight = &weight;
      o.whole |= o.rotated;
    }
  }
  if (r.chance(0.5)) {
    static const char index = 0;
    p.cache.indices = &index;
    p.cache.page_size = r.of({16, 5});
    p.cache.page_shift = p.cache.page_size == 16 ? 4 : -1;
    p.cache.num_pages = 100;
    for (int32_t i = 1; i < p.num_operands; ++i) p.operands[i].cached = p.operands[i].heads == k_heads;
  }
  for (int32_t i = 0; i < p.num_operands; ++i)
    p.dynamic |= p.operands[i].quantize.type != OutType::kSame && p.operands[i].quantize.kind == ScaleKind::kDynamic;
  return p;
}

template <int kElementBytes>
size_t index_of(const PipelineCode& code) {
  const auto& all = kPipelineCodes<kElementBytes>;
  CHECK(is_compiled(all, code));
  return size_t(std::find(std::begin(all), std::end(all), code) - std::begin(all));
}

void check_alignment(const PipelineParams& p, const PipelineCode& code, int element_bytes, int32_t vec) {
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const int64_t out_bytes = stored_bytes(o.quantize.type, element_bytes, vec);
    for (const int64_t at : {reinterpret_cast<int64_t>(o.in), o.in_token_stride, o.in_head_stride})
      CHECK(at % code.access_bytes == 0);
    for (const int64_t at : {reinterpret_cast<int64_t>(o.out), o.out_token_stride, o.out_head_stride})
      CHECK(at % out_bytes == 0);
  }
}

// What the reductions take for granted (parts/rows.cuh).
void check_rows(const PipelineParams& p, const PipelineOperand& o, const PipelinePlan& plan, const OperandPlan& x,
                int32_t vec) {
  if (!plan.code.reduce) return;
  CHECK(plan.grid_z == 1 && x.slots <= x.lanes);
  if (!plan.code.general) {
    CHECK(32 % x.lanes == 0 && x.rows_in_warps);
    if (o.weight) CHECK(o.dim % std::max(2 * vec, 8) == 0 && o.dim >= 16 && (!o.rotated || p.rotary_dim == o.dim));
  }
  if (x.rows_in_warps) CHECK(32 % x.lanes == 0);
  if (o.weight && p.norm.across_heads) CHECK(x.blocks == 1 && x.tokens == 1 && plan.code.unroll == 1);
}

// Every (token, head, slot) is one thread's, in one of its turns; of shapes that are counted quickly.
void check_threads(const PipelineParams& p, const PipelineOperand& o, const PipelinePlan& plan, const OperandPlan& x) {
  if (p.num_tokens * o.heads * x.slots > 50'000) return;
  std::vector<uint8_t> count(size_t(p.num_tokens * o.heads * x.slots), 0);
  const unsigned blocks = unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
  for (unsigned b = 0; b < blocks; ++b)
    for (unsigned z = 0; z < plan.grid_z; ++z)
      for (unsigned t = 0; t < plan.threads; ++t) {
        const PipelinePlace at = x.place(b, z, t);
        CHECK(at.row == int32_t(t) / x.lanes && at.lane == int32_t(t) % x.lanes && at.row_token == at.row / x.columns);
        if (at.row_token >= x.tokens || at.token >= p.num_tokens || at.slot >= x.slots) continue;
        for (int32_t turn = 0; turn < x.turns; ++turn)
          for (int32_t u = 0; u < plan.code.unroll; ++u) {
            const int32_t head = at.head + (turn * plan.code.unroll + u) * x.columns;
            if (head >= o.heads) continue;
            CHECK(u < x.in_flight || !plan.code.reduce || x.in_flight > 1);
            ++count[(size_t(at.token) * size_t(o.heads) + size_t(head)) * size_t(x.slots) + size_t(at.slot)];
          }
      }
  for (const uint8_t n : count) CHECK(n == 1);
}

// Each row of a list is met by a shape of its size, of 128 elements and so many heads, and says what the plan does.
template <size_t kRows>
void check_regimes(const Regime (&regimes)[kRows], bool early, bool reduce, bool quantised) {
  for (const Regime& regime : regimes) {
    PipelineParams p = {};
    p.num_operands = 1;
    p.rotary_dim = 128;
    p.positions.kind = PositionKind::kIds64;
    static const char weight = 0;
    PipelineOperand& q = p.operands[0];
    q.in = reinterpret_cast<const char*>(1 << 20);
    q.out = reinterpret_cast<char*>(int64_t(1) << 40);
    q.in_head_stride = q.out_head_stride = 256;
    q.in_token_stride = q.out_token_stride = 256 * 32;
    q.heads = 32;
    q.dim = 128;
    q.rotated = q.whole = true;
    p.norm.on = p.norm.wide_weights = reduce;
    q.weight = reduce ? &weight : nullptr;
    if (quantised) q.quantize.type = OutType::kE4M3;
    const int64_t token_bytes = 256 * 32, below = &regime == regimes ? 0 : (&regime)[-1].max_bytes;
    p.num_tokens = below / token_bytes + 1;
    CHECK(p.num_tokens * token_bytes > below && p.num_tokens * token_bytes <= regime.max_bytes);
    const PipelinePlan plan = plan_pipeline(p, 2, early);
    CHECK(plan.code.access_bytes == regime.access_bytes && plan.threads == unsigned(regime.threads));
    CHECK(plan.code.unroll == regime.unroll && plan.release_early == regime.release_early);
    CHECK(plan.code.early == (early && regime.release_early) && !plan.code.general);
  }
}

}  // namespace

void test_pipeline() {
  Random r(2);
  std::set<size_t> met[2];
  int unsupported = 0;
  for (int i = 0; i < 12000; ++i) {
    ++shape;
    const int element_bytes = r.of({2, 4});
    const PipelineParams p = random_pipeline(r, element_bytes);
    const bool early = r.chance(0.5);
    const PipelinePlan plan = plan_pipeline(p, element_bytes, early);
    if (plan.unsupported) {
      ++unsupported;
      continue;
    }
    met[element_bytes == 4].insert(element_bytes == 2 ? index_of<2>(plan.code) : index_of<4>(plan.code));
    CHECK(plan.threads <= unsigned(kMaxBlock) && plan.grid_z <= unsigned(kMaxGridY));
    if (plan.code.early) CHECK(early && plan.release_early && !p.cache.num_skipped);
    const int32_t vec = plan.code.access_bytes / element_bytes;
    check_alignment(p, plan.code, element_bytes, vec);
    unsigned first = 0;
    int reporters = 0;
    for (int32_t j = 0; j < p.num_operands; ++j) {
      const PipelineOperand& o = p.operands[j];
      const OperandPlan& x = plan.operands[j];
      CHECK(plan.first_block[j] == first);
      first += unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
      reporters += x.reports;
      check_rows(p, o, plan, x, vec);
      check_elements(p.layout, vec, o.rotated ? p.rotary_dim : 0, p.rotary_offset, o.dim, x.slots, x.stored_slots,
                     o.whole);
      check_threads(p, o, plan, x);
    }
    CHECK(plan.grid_x == first && reporters <= 1);
  }
  CHECK(unsupported > 0);
  // No kernel is compiled that no shape takes.
  for (size_t i = 0; i < std::size(kPipelineCodes<2>); ++i) CHECK(met[0].count(i) || met[1].count(i));
  check_regimes(kPlain, false, false, false);
  check_regimes(kQuantised, false, false, true);
  check_regimes(kReduced, false, true, false);
  check_regimes(kPlainEarly, true, false, false);
  check_regimes(kQuantisedEarly, true, false, true);
  check_regimes(kReducedEarly, true, true, false);
}

}  // namespace rope::cuda::test
