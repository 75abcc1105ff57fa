// The kernel's own arguments and places of threads (launch.cuh, thread.cuh) are made of each plan, as on the device,
// and the elements counted that they come to.
#include <set>

#include "../../src/kernels/pipeline/launch.cuh"
#include "../../src/kernels/pipeline/plan.cpp"  // its regimes, too
#include "shapes.h"

namespace rope::cuda::test {
namespace {

// A row of an operand, of one token: where it begins, and how far it is to the next head.
struct Row {
  int64_t begin, head_stride;
  int32_t heads, dim;
  int64_t element_bytes;

  // The number, of the token's elements of the operand, of that at an address.
  int64_t element(const char* at) const {
    const int64_t offset = reinterpret_cast<int64_t>(at) - begin;
    const int64_t head = heads == 1 ? 0 : offset / head_stride;
    const int64_t in_head = offset - head * head_stride;
    CHECK(offset >= 0 && head < heads && in_head % element_bytes == 0 && in_head / element_bytes < dim);
    return head * dim + in_head / element_bytes;
  }
};

// What the threads of a token touch.
template <class D, size_t kIndex>
class TokenCount {
  static constexpr int kElementBytes = sizeof(typename D::Storage);
  static constexpr PipelineCode kCode = kPipelineCodes<kElementBytes>[kIndex];
  static constexpr int kVec = kCode.access_bytes / kElementBytes, kUnroll = kCode.unroll;
  static constexpr int kMaxPairs = kCode.many ? kMaxRotaryDim / 2 : kFewPairs;

 public:
  using Args = PipelineArgs<kMaxPairs>;

  static void fill(const PipelineParams& p, const PipelinePlan& plan, Args* args) {
    fill_args(p, {}, {}, plan, kVec, args);
  }

  TokenCount(const PipelineParams& p, const PipelinePlan& plan, const Args& args, int32_t token, uint32_t slot)
      : p_(p), plan_(plan), args_(args), token_(token) {
    if (p.cache.page_table || p.cache.request_ids) {  // which the shape has not in memory
      const int32_t size = p.cache.page_size;
      entry_ = {true, int32_t(slot) / size, int32_t(slot) % size, slot};
    } else if (p.cache.indices) {
      CachePlace place = {};
      const bool named = look_up_place<false>(args.params.cache, CacheIndex{int64_t(slot), 0}, &place);
      entry_ = find_entry<kCode.form>(args, TokenIndices{{}, Index{slot, 0}, 0}, named, place, false);
    }
    CHECK(entry_.found && (!p.cache.indices || entry_.row == slot));
    for (int32_t i = 0; i < p.num_operands; ++i) {
      const PipelineOperand& o = p.operands[i];
      const int64_t page = o.cached ? slot / uint32_t(p.cache.page_size) : 0;
      const int64_t entry = o.cached ? slot % uint32_t(p.cache.page_size) : token;
      const int64_t out_bytes = stored_bytes(o.quantize.type, kElementBytes, 1);
      in_[i] = {reinterpret_cast<int64_t>(o.in) + token * o.in_token_stride, o.in_head_stride, o.heads, o.dim,
                kElementBytes};
      out_[i] = {reinterpret_cast<int64_t>(o.out) + page * o.out_page_stride + entry * o.out_token_stride,
                 o.out_head_stride, o.heads, o.dim, out_bytes};
      touched_[i].assign(size_t(o.heads) * size_t(o.dim), 0);
    }
    for (int32_t i = 0; i < kMaxAngles[kCode.many]; ++i) angles_[i].cos = float(i);
  }

  // The thread's turns, in the order of pipeline_kernel().
  void take_thread() {
    const int32_t first_of_block = int32_t(blockIdx.y) * args_.block_groups;
    int32_t index = first_of_block + int32_t(threadIdx.y);
    for (int32_t turn = 0; turn < args_.turns; ++turn, index += int32_t(blockDim.y)) {
      const Group g = group_of<D, kVec, kUnroll, kCode.quantised, kCode.form>(args_, token_, true, index);
      if (g.live > 0 && g.rotated) CHECK(first_of_block < args_.rotated_groups);
      for (int32_t u = 0; u < std::min(g.live, kUnroll); ++u) take_slot(g, u);
    }
  }

  // Everything that is stored was touched once, and nothing else.
  void check() const {
    for (int32_t i = 0; i < p_.num_operands; ++i) {
      const PipelineOperand& o = p_.operands[i];
      size_t at = 0;
      for (int32_t head = 0; head < o.heads; ++head)
        for (int32_t e = 0; e < o.dim; ++e, ++at) CHECK(touched_[i][at] == int(o.whole || is_rotated(o, e)));
    }
  }

 private:
  bool is_rotated(const PipelineOperand& o, int64_t e) const {
    return o.rotated && e >= p_.rotary_offset && e < p_.rotary_offset + p_.rotary_dim;
  }

  void take_slot(const Group& g, int32_t u) {
    const auto which = g.operand - args_.operands;
    CHECK(which < p_.num_operands && g.stage == &args_.stages[which]);
    const PipelineOperand& o = p_.operands[which];
    const int64_t out_bytes = stored_bytes(o.quantize.type, kElementBytes, 1);
    const char* const in = advance(g.in, u, g.operand->in_head_stride);
    char* const out = advance(advance(advance(g.out, entry_.page, g.operand->out_page_stride), entry_.entry,
                                      g.operand->out_entry_stride),
                              u, g.operand->out_head_stride);
    int64_t first[2];
    for (const int c : {0, 1}) {
      const char* const from = advance(in, c * g.apart, kElementBytes);
      const char* const to = advance(out, c * g.apart, int32_t(out_bytes));
      CHECK(reinterpret_cast<intptr_t>(from) % kCode.access_bytes == 0);
      CHECK(reinterpret_cast<intptr_t>(to) % stored_bytes(o.quantize.type, kElementBytes, kVec) == 0);
      first[c] = in_[which].element(from);
      for (const int32_t j : {0, kVec - 1}) {
        CHECK(in_[which].element(from + j * kElementBytes) == first[c] + j);
        CHECK(out_[which].element(to + j * out_bytes) == first[c] + j);
        CHECK(g.rotated == is_rotated(o, first[c] % o.dim + j));
      }
      for (int32_t j = 0; j < kVec && (c == 0 || g.apart); ++j) ++touched_[which][size_t(first[c] + j)];
    }
    const int64_t head = first[0] / o.dim;
    CHECK(first[1] / o.dim == head);
    if (o.quantize.kind == ScaleKind::kHead || o.quantize.kind == ScaleKind::kDynamic) {
      CHECK(g.head - g.stage->first_head + u == head && g.operand->end_head - g.stage->first_head == o.heads);
    }
    if (kCode.form != Form::kAny) {  // slots lie alike in every head, however it is counted
      CHECK(first[0] % plan_.operands[which].dim == plan_.start + int32_t(threadIdx.x) * kVec);
      CHECK(first[1] - first[0] == p_.rotary_dim / 2);
    }
    if (g.rotated) check_angles(first[0] % o.dim, first[1] % o.dim);
  }

  // The pairs of a slot, whose chunks begin at these elements of a head, meet their own angles.
  void check_angles(int64_t first, int64_t second) const {
    const CosSin* const own = angles_ + threadIdx.z * unsigned(args_.pairs);
    const int32_t slot = int32_t(threadIdx.x);
    CHECK(slot * kVec < args_.pairs && reinterpret_cast<intptr_t>(own) % (kVec > 2 ? 16 : 8) == 0);
    CosSin angle[kVec];
    load_angles<kVec>(own + slot * args_.angle_step, args_.angle_apart, angle);
    for (int32_t j = 0; j < kVec; ++j) {
      const bool gptj = p_.layout == Layout::kGptj;
      const int32_t at[] = {gptj ? PairMap<Layout::kGptj, kVec>::element0(j)
                                 : PairMap<Layout::kNeox, kVec>::element0(j),
                            gptj ? PairMap<Layout::kGptj, kVec>::element1(j)
                                 : PairMap<Layout::kNeox, kVec>::element1(j)};
      int64_t e[2];
      for (const int i : {0, 1}) e[i] = (at[i] < kVec ? first + at[i] : second + at[i] - kVec) - p_.rotary_offset;
      CHECK(e[1] - e[0] == (gptj ? 1 : args_.pairs));
      CHECK(int32_t(angle[j].cos - own->cos) == (gptj ? e[0] / 2 : e[0]));
    }
  }

  const PipelineParams& p_;
  const PipelinePlan& plan_;
  const Args& args_;
  const int32_t token_;
  Entry entry_ = {true, 0, 0, 0};
  Row in_[kMaxOperands], out_[kMaxOperands];
  std::vector<uint8_t> touched_[kMaxOperands];
  alignas(16) CosSin angles_[kMaxAngles[kCode.many]] = {};
};

// A few of the tokens, in the last row of blocks and in another.
template <class D, size_t kIndex>
void check_threads(Random& r, const PipelineParams& p, const PipelinePlan& plan) {
  using Count = TokenCount<D, kIndex>;
  static typename Count::Args args;
  Count::fill(p, plan, &args);
  blockDim = {plan.block_x, plan.block_y, plan.block_z};
  for (const unsigned x : std::set<unsigned>{unsigned(r.between(0, plan.grid_x - 1)), plan.grid_x - 1})
    for (const unsigned z : std::set<unsigned>{0, plan.block_z / 2, plan.block_z - 1}) {
      const int64_t token = int64_t(x) * plan.block_z + z;
      if (token >= p.num_tokens) continue;
      const int64_t entries = p.cache.indices ? p.cache.num_pages * p.cache.page_size : 1;
      Count count(p, plan, args, int32_t(token), uint32_t(r.between(0, entries - 1)));
      for_each_in({1, plan.grid_y, 1}, [&](dim3 block) {
        for_each_in({plan.block_x, plan.block_y, 1}, [&](dim3 thread) {
          blockIdx = {x, block.y, 0};
          threadIdx = {thread.x, thread.y, z};
          count.take_thread();
        });
      });
      count.check();
    }
}

void check_limits(const PipelineParams& p, const PipelinePlan& plan) {
  const int64_t tokens = int64_t(plan.grid_x) * plan.block_z;
  CHECK(tokens >= p.num_tokens && tokens - plan.block_z < p.num_tokens);
  CHECK(tokens - 1 <= UINT32_MAX);  // of a token that there is not, the number is above all others
  CHECK(int64_t(plan.grid_y) * plan.block_y * plan.turns >= plan.groups && plan.grid_y <= unsigned(kMaxGridY));
  CHECK(plan.block_x * plan.block_y * plan.block_z <= unsigned(kMaxBlock) && plan.block_z <= unsigned(kMaxBlockZ));
  CHECK(int64_t(plan.block_z) * (p.rotary_dim / 2) <= kMaxAngles[plan.code.many]);
  CHECK(plan.code.many == (p.rotary_dim / 2 > kFewPairs));
}

// What the kernel takes for granted of its stages.
void check_stages(const PipelineParams& p, const PipelinePlan& plan) {
  const PipelineCode& code = plan.code;
  CHECK(!p.norm.on || (code.reduce && p.norm.wide_weights && !p.norm.across_heads));
  CHECK(!p.dynamic || (code.reduce && code.quantised));
  if (code.form != Form::kAny) {
    const PositionKind kind = p.positions.kind;
    CHECK(kind == PositionKind::kOffset || kind == PositionKind::kIds32 || kind == PositionKind::kIds64);
    CHECK(!p.positions_from && !p.sets.words);
    const bool table = p.angle == Angle::kCosSin && code.form == Form::kTables && !p.positions.sections.streams;
    CHECK(p.angle == Angle::kExact || table);
    if (code.form == Form::kUsual) CHECK(!p.cache.indices || plan.direct);
  }
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    const OperandPlan& x = plan.operands[i];
    CHECK(o.quantize.type == OutType::kSame || code.quantised);
    CHECK(o.xpos_sign == 0 && unsigned(x.slots) <= plan.block_x);
    if (code.form != Form::kAny) CHECK(unsigned(x.slots) == plan.block_x);
    if (!o.weight && o.quantize.kind != ScaleKind::kDynamic) continue;
    // A head's threads meet in a warp (parts/rows.cuh).
    CHECK(code.reduce && x.heads == o.heads && x.dim == o.dim && x.slots <= 32);
    CHECK((plan.block_x & (plan.block_x - 1)) == 0);
  }
}

// A norm's sums are formed group by group of the head's elements (WarpRows).
void check_norm(const PipelineParams& p, const PipelinePlan& plan, int32_t vec) {
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    if (!o.weight) continue;
    CHECK(vec > 1 && o.dim >= 16 && o.dim % 8 == 0 && o.dim % (2 * vec) == 0);
    CHECK(!o.rotated || p.rotary_dim == o.dim);  // chunks of the first and of the second half
    CHECK(plan.operands[i].slots == o.dim / 2 / vec);
  }
}

// The number of its code; -1: the general kernel's.
template <class D>
int check_shape(Random& r, const PipelineParams& p) {
  constexpr int kElementBytes = sizeof(typename D::Storage);
  ++shape;
  const PipelinePlan plan = plan_pipeline(p, kElementBytes);
  if (plan.general) return -1;
  check_limits(p, plan);
  check_stages(p, plan);
  check_norm(p, plan, plan.code.access_bytes / kElementBytes);
  int number = -1;
  const int error = for_compiled<kPipelineCodes<kElementBytes>>(plan.code, [&](auto index) {
    check_threads<D, index.value>(r, p, plan);
    number = int(index.value);
    return 0;
  });
  CHECK(error == 0);
  return number;
}

// What the plan of so many heads of 128 elements does, by their bytes, is what the row of the list says.
void check_regime(const Regime& regime, int64_t tokens, int32_t heads, bool norm, bool codes) {
  PipelineParams p = usual_pipeline(tokens, heads);
  if (norm) add_norm(&p);
  if (codes) add_codes(&p);
  const PipelinePlan plan = plan_pipeline(p, 2);
  CHECK(!plan.general && plan.code.form == Form::kUsual && plan.code.reduce == norm && plan.code.quantised == codes);
  CHECK(plan.code.access_bytes == regime.access_bytes && plan.code.unroll == regime.unroll);
  const unsigned threads = plan.block_x * plan.block_y * plan.block_z;
  if (heads > kFewHeads) {
    CHECK(threads == unsigned(regime.threads) && plan.turns == regime.turns);
  } else {  // one block has all heads of as many tokens as it has room for the angles of
    CHECK(threads == unsigned(regime.threads) || plan.block_z * 64 == unsigned(kMaxAngles[false]));
    CHECK(plan.grid_y == 1 && plan.turns == 1);
  }
  CHECK(plan.release_early == (plan.grid_x * plan.grid_y >= 132));
}

// Each row of a list, by the smallest and the largest shape that it is for.
template <size_t kRows>
void check_regimes(const Regime (&regimes)[kRows], int32_t heads, bool norm, bool codes) {
  const int64_t token_bytes = 256 * heads;
  int64_t below = 0;
  for (const Regime& regime : regimes) {
    const int64_t first = below / token_bytes + 1, last = std::min<int64_t>(regime.max_bytes / token_bytes, 1 << 20);
    CHECK(first <= last);
    for (const int64_t tokens : {first, last}) check_regime(regime, tokens, heads, norm, codes);
    below = regime.max_bytes;
  }
  CHECK(below == INT64_MAX);
}

void check_all_regimes() {
  check_regimes(kPlain, 512, false, false);
  check_regimes(kPlainFew, 8, false, false);
  check_regimes(kQuantised, 512, false, true);
  check_regimes(kReduced, 512, true, false);
  check_regimes(kReduced, 512, true, true);
  check_regimes(kReducedFew, 8, true, false);
  // A few heads take turns where a block has room for one: 12 of 2048 elements are three groups.
  const PipelinePlan wide_heads = plan_pipeline(usual_pipeline(2000, kFewHeads, 2048), 2);
  CHECK(wide_heads.code.many && wide_heads.block_x == 128 && wide_heads.grid_y == 1 && wide_heads.turns == 3);
  // Narrow accesses would spread a head of 256 floats, whose scale is computed, over two warps.
  PipelineParams p = usual_pipeline(1, 16, 256);
  PipelineOperand& q = p.operands[0];
  q.quantize = {OutType::kE4M3, ScaleKind::kDynamic, 0.0f, 0.0f, nullptr};
  q.in_head_stride *= 2;
  q.in_token_stride *= 2;
  p.dynamic = true;
  p.rotary_dim = 128;
  const PipelinePlan wide = plan_pipeline(p, 4);
  CHECK(!wide.general && wide.code.access_bytes == kWide.access_bytes && wide.code.unroll == kWide.unroll);
  CHECK(wide.block_x == 32 && wide.block_x * wide.block_y == unsigned(kWide.threads) && wide.turns == kWide.turns);
}

// More groups than a grid has rows of blocks: an element at a time, a head takes all threads of a block.
void check_many_groups() {
  PipelineParams p = usual_pipeline(1, 3'000'000, 256);
  p.operands[0].in += 2;
  const PipelinePlan plan = plan_pipeline(p, 2);
  CHECK(!plan.general && plan.block_x == unsigned(kMaxBlock) && plan.groups / 8 > kMaxGridY);
  check_limits(p, plan);
}

// What the general kernel is for: a usual call, with a norm, and what makes it unusual.
void check_general() {
  using Change = void (*)(PipelineParams&);
  const auto is_general = [](int32_t dim, bool norm, bool codes, Change change) {
    PipelineParams p = usual_pipeline(100, 32, dim);
    if (norm) add_norm(&p);
    if (codes) add_codes(&p);
    change(p);
    return plan_pipeline(p, 2).general;
  };
  constexpr int64_t kTooFar = int64_t(INT32_MAX) + 1, kFar = kTooFar - 16;
  const Change nothing = [](PipelineParams&) {},
               far[] = {
                   [](PipelineParams& p) { p.operands[0].in_token_stride = kFar; },
                   [](PipelineParams& p) { p.operands[0].in_head_stride = kFar; },
                   [](PipelineParams& p) { p.operands[0].out_token_stride = kFar; },
                   [](PipelineParams& p) { p.operands[0].out_head_stride = kFar; },
                   [](PipelineParams& p) { p.operands[0].out_page_stride = kFar; },
                   [](PipelineParams& p) { p.operands[0].in_head_stride = -kFar - 16; },
                   [](PipelineParams& p) {
                     p.cache = {false, 16, 4, kFar / 16, &kSomething, nullptr, nullptr, nullptr, 0, nullptr};
                   },
               },
               too_far[] = {
                   [](PipelineParams& p) { p.operands[0].in_token_stride = kTooFar; },
                   [](PipelineParams& p) { p.operands[0].in_head_stride = kTooFar; },
                   [](PipelineParams& p) { p.operands[0].out_token_stride = kTooFar; },
                   [](PipelineParams& p) { p.operands[0].out_head_stride = kTooFar; },
                   [](PipelineParams& p) { p.operands[0].out_page_stride = kTooFar; },
                   [](PipelineParams& p) { p.operands[0].in_head_stride = -kTooFar - 16; },
                   [](PipelineParams& p) {
                     p.cache = {false, 16, 4, kTooFar / 16, &kSomething, nullptr, nullptr, nullptr, 0, nullptr};
                   },
               };
  for (const Change change : far) CHECK(!is_general(128, false, false, change));
  for (const Change change : too_far) CHECK(is_general(128, false, false, change));
  const Change xpos = [](PipelineParams& p) { p.operands[0].xpos_sign = -1; };
  CHECK(is_general(128, false, false, xpos));
  CHECK(is_general(128, false, false, [](PipelineParams& p) { p.rare = true; }));

  for (const bool codes : {false, true}) CHECK(!is_general(128, true, codes, nothing));
  CHECK(is_general(128, true, false, [](PipelineParams& p) { p.norm.across_heads = true; }));
  CHECK(is_general(128, true, false, [](PipelineParams& p) { p.norm.wide_weights = false; }));
  CHECK(is_general(128, true, false, [](PipelineParams& p) { p.rotary_dim = 64; }));

  // Many pairs, or an element at a time: with a norm, with codes, or neither.
  const Change one_element = [](PipelineParams& p) { ++p.operands[0].in_token_stride; };
  for (const auto& [norm, codes] : {std::pair(false, false), std::pair(true, false), std::pair(false, true)}) {
    CHECK(is_general(512, norm, codes, nothing) == (norm || codes));
    CHECK(is_general(128, norm, codes, one_element) == (norm || codes));
  }
  // 128 slots of a head, and more.
  CHECK(!is_general(256, false, false, one_element) && is_general(258, false, false, one_element));
}

}  // namespace

void test_pipeline() {
  Random r(1);
  std::set<int> met[2];
  for (int i = 0; i < 24'000; ++i) {
    const bool wide = r.chance(0.5), rotation = i % 2;
    const int element_bytes = wide ? 4 : 2;
    const PipelineParams p = rotation ? random_rotation(r, element_bytes) : random_pipeline(r, element_bytes);
    met[wide].insert(wide ? check_shape<F32>(r, p) : check_shape<BF16>(r, p));
  }
  // No kernel is compiled that no shape takes.
  for (const auto& numbers : met) CHECK(numbers.size() == 1 + std::size(kPipelineCodes<2>));
  check_all_regimes();
  check_many_groups();
  check_general();
}

}  // namespace rope::cuda::test
