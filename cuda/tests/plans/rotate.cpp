#include <algorithm>
#include <set>

#include "../../src/kernels/rotate/plan.cpp"  // its regimes, too
#include "check.h"

namespace rope::cuda::test {
namespace {

struct Shape {
  RotateParams p;
  int element_bytes;
  bool apart;
};

Heads heads_at(Random& r, const Shape& s, int32_t heads, bool apart) {
  const int64_t step = r.step(s.element_bytes), row = int64_t(s.p.head_dim) * s.element_bytes;
  const int64_t head_stride = r.chance(0.8) ? row : round_up(row, step) + step * r.between(0, 3);
  const int64_t token_stride = heads * head_stride + step * r.between(0, 2);
  const int64_t in = (int64_t(1) << 32) + step * r.between(0, 64), out = apart ? (int64_t(1) << 40) + step : in;
  return {reinterpret_cast<const char*>(in),
          reinterpret_cast<char*>(out),
          token_stride,
          head_stride,
          token_stride,
          head_stride};
}

Sections sections_of(Random& r, int32_t pairs) {
  Sections s = {int32_t(r.between(2, 4)), r.chance(0.3), {}, 0};
  const int32_t unit = r.of({1, 4, 8});
  int32_t left = pairs;
  for (int32_t i = 0; i + 1 < s.streams; ++i)
    left -= s.sizes[i] = std::min(left, int32_t(r.between(0, pairs / s.streams / unit + 1)) * unit);
  s.sizes[s.streams - 1] = left;
  return s;
}

Shape random_shape(Random& r) {
  Shape s = {};
  RotateParams& p = s.p;
  s.element_bytes = r.of({2, 4});
  p.head_dim = r.chance(0.7) ? r.of({64, 80, 96, 128, 192, 256}) : int32_t(r.between(2, 700));
  p.rotary_dim = r.chance(0.6) ? p.head_dim : int32_t(r.between(2, p.head_dim));
  p.rotary_dim = std::max(2, p.rotary_dim / 2 * 2);
  if (r.chance(0.3)) p.rotary_dim = std::min(p.rotary_dim, r.of({16, 32, 64}));
  p.rotary_offset = r.chance(0.6) ? 0 : int32_t(r.between(0, p.head_dim - p.rotary_dim));
  if (r.chance(0.5)) p.rotary_offset = p.rotary_offset / 8 * 8;
  p.num_q_heads = int32_t(r.chance(0.1) ? 0 : r.chance(0.5) ? r.between(1, 8) : r.between(8, 130));
  p.num_k_heads = int32_t(p.num_q_heads && r.chance(0.2) ? 0 : r.between(1, 9));
  p.num_tokens = r.chance(0.6) ? r.between(1, 64) : r.chance(0.7) ? r.between(64, 3000) : r.between(3000, 70000);
  p.layout = r.of({Layout::kNeox, Layout::kGptj});
  p.positions.kind = PositionKind::kIds64;
  if (r.chance(0.25)) p.positions.sections = sections_of(r, p.rotary_dim / 2);
  s.apart = r.chance(0.4);
  p.q = heads_at(r, s, p.num_q_heads, s.apart);
  p.k = heads_at(r, s, p.num_k_heads, s.apart && r.chance(0.8));
  return s;
}

template <int kElementBytes>
size_t index_of(const RotateCode& code) {
  const auto& all = kRotateCodes<kElementBytes>;
  CHECK(is_compiled(all, code));
  return size_t(std::find(std::begin(all), std::end(all), code) - std::begin(all));
}

// Every address that a thread forms is a multiple of an access.
void check_alignment(const Shape& s, const RotatePlan& plan, int32_t vec) {
  const RotateParams& p = s.p;
  for (const auto& [x, heads] : {std::pair(p.q, p.num_q_heads), std::pair(p.k, p.num_k_heads)}) {
    if (heads == 0) continue;
    for (const int64_t at : {reinterpret_cast<int64_t>(x.in), reinterpret_cast<int64_t>(x.out), x.in_token_stride,
                             x.in_head_stride, x.out_token_stride, x.out_head_stride})
      CHECK(at % plan.code.access_bytes == 0);
  }
  if (vec > 1) CHECK(p.rotary_dim / 2 % vec == 0 && p.rotary_offset % vec == 0);
}

// What a thread assumes of the streams of its pairs.
void check_sections(const RotateParams& p, const RotateCode& code, int32_t vec) {
  const Sections& sections = p.positions.sections;
  CHECK((code.sections == SectionForm::kNone) == (sections.streams == 0));
  if (code.sections != SectionForm::kWhole) return;
  for (int32_t pair = 0; pair < p.rotary_dim / 2; ++pair)
    CHECK(stream_of(sections, pair) == stream_of(sections, pair / vec * vec));
}

// The row of its list that a shape of so many bytes takes is met, and says what the plan does.
template <size_t kRows>
void check_regimes(const Regime (&regimes)[kRows], bool early, int32_t head_dim, int32_t rotary_dim) {
  for (const Regime& regime : regimes) {
    RotateParams p = {};
    p.head_dim = head_dim;
    p.rotary_dim = rotary_dim;
    p.num_q_heads = 32;
    const int64_t token_bytes = 2 * int64_t(rotary_dim) * p.num_q_heads,
                  below = &regime == regimes ? 0 : (&regime)[-1].max_bytes;
    p.num_tokens = below / token_bytes + 1;
    CHECK(p.num_tokens * token_bytes > below && p.num_tokens * token_bytes <= regime.max_bytes);
    p.q = {reinterpret_cast<const char*>(1 << 20),
           reinterpret_cast<char*>(1 << 20),
           2 * head_dim * 32,
           2 * head_dim,
           2 * head_dim * 32,
           2 * head_dim};
    const RotatePlan plan = plan_rotate(p, 2, early);
    CHECK(plan.prefetch == regime.prefetch && plan.release_early == regime.release_early);
    CHECK(plan.code.access_bytes == std::min(16, 2 * regime.elements));
    CHECK(plan.code.unroll == regime.unroll || plan.code.access_bytes < 16);
    if (regime.loop) CHECK(plan.grid_y == 1);
    CHECK(plan.early == (early && regime.release_early && plan.code.has_early()));
  }
}

}  // namespace

void test_rotate() {
  Random r(1);
  std::set<std::pair<size_t, bool>> met[2];
  for (int i = 0; i < 8000; ++i) {
    ++shape;
    const Shape s = random_shape(r);
    const RotateParams& p = s.p;
    const bool early = r.chance(0.5);
    const RotatePlan plan = plan_rotate(p, s.element_bytes, early);
    const RotateCode& code = plan.code;
    met[s.element_bytes == 4].insert({s.element_bytes == 2 ? index_of<2>(code) : index_of<4>(code), plan.early});
    if (plan.early) CHECK(early && code.has_early() && p.rotary_dim <= 2 * kFewPairs && plan.release_early);

    const int32_t vec = code.access_bytes / s.element_bytes;
    const bool apart = (p.num_q_heads && p.q.in != p.q.out) || (p.num_k_heads && p.k.in != p.k.out);
    const bool copies = apart && p.rotary_dim < p.head_dim;
    CHECK(!copies || code.copies);
    CHECK(plan.copy_slots == 0 || copies);
    const int32_t slots = p.rotary_dim / 2 / vec + plan.copy_slots;
    check_alignment(s, plan, vec);
    check_sections(p, code, vec);
    check_elements(p.layout, vec, p.rotary_dim, p.rotary_offset, p.head_dim, slots, plan.copy_slots, copies);
    check_grid({plan.grid_x, plan.grid_y, plan.grid_z}, {plan.block_x, plan.block_y, plan.block_z}, p.num_tokens, slots,
               p.num_q_heads + p.num_k_heads, code.unroll, 0);
  }
  // No kernel is compiled that no shape takes.
  for (const bool wide : {false, true})
    for (size_t i = 0; i < std::size(kRotateCodes<2>); ++i) {
      CHECK(met[wide].count({i, false}));
      if (kRotateCodes<2>[i].has_early()) CHECK(met[0].count({i, true}));
    }
  check_regimes(kRegimes, false, 128, 128);
  check_regimes(kEarlyRegimes, true, 128, 128);
  check_regimes(kSparseRegimes, false, 128, 32);
}

}  // namespace rope::cuda::test
