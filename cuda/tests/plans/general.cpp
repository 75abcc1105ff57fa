#include <set>

#include "../../src/kernels/general/plan.h"
#include "../../src/kernels/parts/operand.h"
#include "shapes.h"

namespace rope::cuda::test {
namespace {

template <int kElementBytes>
size_t index_of(const GeneralCode& code) {
  const auto& all = kGeneralCodes<kElementBytes>;
  CHECK(is_compiled(all, code));
  return size_t(std::find(std::begin(all), std::end(all), code) - std::begin(all));
}

// What the pipeline kernel knows nothing of.
void add_extras(Random& r, int element_bytes, PipelineCall* p) {
  p->rare = true;
  if (r.chance(0.2)) p->out_layout = p->layout == Layout::kNeox ? Layout::kGptj : Layout::kNeox;
  for (int32_t i = 0; i < p->num_operands; ++i) {
    OperandExtras& x = p->extras[i];
    const int64_t step = r.step(element_bytes);
    x.in_sequence_stride = step * r.between(0, 1000);
    x.out_sequence_stride =
        step * r.between(0, 1000) * stored_bytes(p->operands[i].quantize.type, element_bytes, 1) / element_bytes;
    if (r.chance(0.1)) x.in_gap = element_bytes;
    if (r.chance(0.1)) x.out_gap = element_bytes;
    if (!p->operands[i].cached || r.chance(0.5)) continue;
    x.kept = reinterpret_cast<char*>((int64_t(1) << 50) + step);
    x.kept_sequence_stride = step * r.between(0, 1000);
    x.kept_token_stride = step * r.between(0, 1000);
    x.kept_head_stride = step * r.between(0, 1000);
  }
}

// Elements that are no neighbours are moved one by one.
void check_extras(const PipelineCall& p, const GeneralCode& code, int element_bytes, int32_t vec) {
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const OperandExtras& x = p.extras[i];
    CHECK(vec == 1 || (p.out_layout == p.layout && !x.in_gap && !x.out_gap && !x.kept_gap));
    const PipelineOperand& o = p.operands[i];
    CHECK(is_grouped(o) || x.out_sequence_stride % stored_bytes(o.quantize.type, element_bytes, vec) == 0);
    for (const int64_t at : {x.in_sequence_stride, reinterpret_cast<int64_t>(x.kept), x.kept_sequence_stride,
                             x.kept_token_stride, x.kept_head_stride})
      CHECK(at % code.access_bytes == 0);
  }
}

void check_alignment(const PipelineParams& p, const GeneralCode& code, int element_bytes, int32_t vec) {
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    for (const int64_t at : {reinterpret_cast<int64_t>(o.in), o.in_token_stride, o.in_head_stride})
      CHECK(at % code.access_bytes == 0);
    if (is_grouped(o)) continue;
    const int64_t out_bytes = stored_bytes(o.quantize.type, element_bytes, vec);
    for (const int64_t at :
         {reinterpret_cast<int64_t>(o.out), o.out_token_stride, o.out_head_stride, o.out_page_stride})
      CHECK(at % out_bytes == 0);
  }
}

// What the reductions take for granted (parts/rows.cuh).
void check_rows(const PipelineParams& p, const PipelineOperand& o, const GeneralPlan& plan, const GeneralOperand& x) {
  if (!plan.code.reduce) return;
  CHECK(plan.grid_z == 1 && x.slots <= x.lanes);
  if (x.rows_in_warps) CHECK(32 % x.lanes == 0);
  if (o.weight && p.norm.across_heads) CHECK(x.blocks == 1 && x.tokens == 1);
}

// Every (token, head, slot) is one thread's, in one of its turns; of shapes that are counted quickly.
void check_threads(const PipelineParams& p, const PipelineOperand& o, const GeneralPlan& plan,
                   const GeneralOperand& x) {
  if (p.num_tokens * o.heads * x.slots > 50'000) return;
  std::vector<uint8_t> count(size_t(p.num_tokens * o.heads * x.slots), 0);
  const unsigned blocks = unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
  for (unsigned b = 0; b < blocks; ++b)
    for (unsigned z = 0; z < plan.grid_z; ++z)
      for (unsigned t = 0; t < unsigned(kMaxBlock); ++t) {
        const GeneralPlace at = x.place(b, z, t);
        CHECK(at.row == int32_t(t) / x.lanes && at.lane == int32_t(t) % x.lanes && at.row_token == at.row / x.columns);
        if (at.row_token >= x.tokens || at.token >= p.num_tokens || at.slot >= x.slots) continue;
        for (int32_t turn = 0, head = at.head; turn < x.turns; ++turn, head += x.columns)
          if (head < o.heads)
            ++count[(size_t(at.token) * size_t(o.heads) + size_t(head)) * size_t(x.slots) + size_t(at.slot)];
      }
  for (const uint8_t n : count) CHECK(n == 1);
}

}  // namespace

// Every pipeline has a plan for the general kernel, whichever kernel it is for.
void test_general() {
  Random r(2);
  std::set<size_t> met[2];
  int unsupported = 0;
  bool slots_apart = false;
  for (int i = 0; i < 12'000; ++i) {
    ++shape;
    const int element_bytes = r.of({2, 4});
    PipelineCall p = {};
    static_cast<PipelineParams&>(p) =
        r.chance(0.8) ? random_pipeline(r, element_bytes) : random_rotation(r, element_bytes);
    p.out_layout = p.layout;
    if (r.chance(0.3)) add_extras(r, element_bytes, &p);
    if (p.layout == Layout::kNeox && p.rotary_dim % 4 == 0 && r.chance(0.2)) p.blocks = 2, p.rare = true;
    const GeneralPlan plan = plan_general(p, element_bytes);
    if (plan.unsupported) {
      CHECK(reduces(p));
      ++unsupported;
      continue;
    }
    met[element_bytes == 4].insert(element_bytes == 2 ? index_of<2>(plan.code) : index_of<4>(plan.code));
    CHECK(plan.code.reduce == reduces(p) && plan.code.grouped == is_grouped(p) && plan.grid_z <= unsigned(kMaxGridY));
    slots_apart |= plan.grid_z > 1;
    const int32_t vec = plan.code.access_bytes / element_bytes;
    check_alignment(p, plan.code, element_bytes, vec);
    if (p.rare) check_extras(p, plan.code, element_bytes, vec);
    CHECK(p.rotary_dim / 2 / p.blocks % vec == 0);
    unsigned first = 0;
    int reporters = 0;
    for (int32_t j = 0; j < kMaxOperands; ++j) {
      const PipelineOperand& o = p.operands[j];
      const GeneralOperand& x = plan.operands[j];
      CHECK(plan.first_block[j] == (j < p.num_operands ? first : UINT32_MAX));
      if (j >= p.num_operands) continue;
      first += unsigned(divide_up(p.num_tokens, x.tokens)) * unsigned(x.blocks);
      reporters += x.reports;
      check_rows(p, o, plan, x);
      check_elements(p.layout, vec, o.rotated ? p.rotary_dim : 0, p.rotary_offset, o.dim, x.slots, x.stored_slots,
                     o.whole);
      check_threads(p, o, plan, x);
    }
    CHECK(plan.grid_x == first && reporters <= 1);
  }
  CHECK(unsupported > 0 && slots_apart);
  // No kernel is compiled that no shape takes.
  for (const auto& numbers : met) CHECK(numbers.size() == std::size(kGeneralCodes<2>));
}

}  // namespace rope::cuda::test
