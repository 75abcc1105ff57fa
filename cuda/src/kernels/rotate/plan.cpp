#include "plan.h"

#include <algorithm>
#include <utility>

#include "../parts/slot.h"

namespace rope::cuda {
namespace {

Alignment alignment(const RotateParams& p, int element_bytes, bool copies) {
  Alignment a(element_bytes);
  a.add_elements(p.rotary_dim / 2);
  a.add_elements(p.rotary_offset);
  if (copies) a.add_elements(p.head_dim);
  for (const auto& [x, heads] : {std::pair(p.q, p.num_q_heads), std::pair(p.k, p.num_k_heads)}) {
    if (heads == 0) continue;
    a.add_address(x.in);
    a.add_address(x.out);
    for (const int64_t stride : {x.in_token_stride, x.in_head_stride, x.out_token_stride, x.out_head_stride})
      a.add_bytes(stride);
  }
  return a;
}

SectionForm section_form(const Sections& s, Layout layout, int32_t vec) {
  if (!s.streams) return SectionForm::kNone;
  int32_t end = 0, ends = 0;
  for (int i = 0; i < s.streams; ++i) ends |= end += s.sizes[i];
  return layout == Layout::kNeox && !s.interleaved && ends % vec == 0 ? SectionForm::kWhole : SectionForm::kAny;
}

// Threads along the heads of a token, of at most `columns`: an equal share for every block, exact where that leaves at
// least half of the columns in use.
int32_t share_heads(int32_t head_threads, int32_t columns) {
  for (int32_t y = std::min(columns, head_threads); 2 * y >= columns; --y)
    if (head_threads % y == 0) return y;
  return divide_up(head_threads, divide_up(head_threads, columns));
}

// How work is spread, by the bytes of what is rotated or copied of all heads.
struct Regime {
  int64_t max_bytes;
  int elements;          // of one access, at most
  int unroll;            // heads in flight, at most
  int32_t head_threads;  // threads of a block over which the heads of a token are shared out
  int32_t threads;       // of a block; what the heads leave goes to more tokens
  bool loop;             // a block takes all heads of its tokens, else more blocks do
  bool prefetch, release_early;
};

// Measured on an H100 (KERNELS.md): from a few KB, where latency is all and work is spread thin, to far beyond the
// second-level cache, where a thread takes several heads with much in flight.
constexpr Regime kRegimes[] = {
    {500'000, 4, 2, 64, kMaxBlock, false, true, true},
    {9'000'000, 4, 2, 64, kMaxBlock, false, true, false},
    {40'000'000, 8, 4, 32, 64, false, false, false},
    {INT64_MAX, 8, 4, kMaxBlock, kMaxBlock, true, true, false},
};
// The same where positions may be read before the wait.
constexpr Regime kEarlyRegimes[] = {
    {1'000'000, 4, 2, 64, kMaxBlock, false, true, true},
    {9'000'000, 4, 2, 64, kMaxBlock, false, true, false},
    {15'000'000, 8, 4, 32, 64, false, false, false},
    {INT64_MAX, 8, 4, kMaxBlock, kMaxBlock, true, true, true},
};
// In place, of parts of heads that do not fill a cache line: a prefetch brings more than is wanted.
constexpr int32_t kLine = 128;
constexpr Regime kSparseRegimes[] = {
    {600'000, 4, 2, 64, kMaxBlock, false, true, true},
    {1'800'000, 4, 2, 64, kMaxBlock, false, true, false},
    {5'000'000, 8, 4, 32, 64, false, false, false},
    {10'000'000, 8, 2, kMaxBlock, kMaxBlock, true, false, false},
    {INT64_MAX, 4, 2, kMaxBlock, kMaxBlock, true, false, true},
};

// Of few heads, a thread that takes several leaves none for other blocks: from so many bytes on, the last regime is
// best.
constexpr int32_t kFewHeads = 12;
constexpr int64_t kFewHeadsLoop = 1'000'000;

}  // namespace

RotatePlan plan_rotate(const RotateParams& p, int element_bytes, bool early) {
  RotatePlan plan = {};
  RotateCode& code = plan.code;
  const Sections& sections = p.positions.sections;
  const int32_t heads = p.num_q_heads + p.num_k_heads;
  const bool apart = (p.num_q_heads && p.q.in != p.q.out) || (p.num_k_heads && p.k.in != p.k.out);
  const bool copies = apart && p.rotary_dim < p.head_dim;
  const int32_t part = (apart ? p.head_dim : p.rotary_dim) * element_bytes;
  const int64_t bytes = p.num_tokens * heads * part;
  // Several positions of a token pay early only between the bounds of the first regimes.
  const bool some = bytes > kRegimes[0].max_bytes && bytes <= kEarlyRegimes[0].max_bytes;
  early = early && p.rotary_dim <= 2 * kFewPairs && (some || !sections.streams);
  const bool sparse = part < kLine && p.rotary_dim < p.head_dim;
  const Regime* regime = sparse ? kSparseRegimes : early ? kEarlyRegimes : kRegimes;
  while (bytes > regime->max_bytes || (!regime->loop && heads <= kFewHeads && bytes > kFewHeadsLoop)) ++regime;

  // Sections that no slot shares are served by accesses of 8 bytes, copies by the widest or none.
  const Alignment aligned = alignment(p, element_bytes, copies);
  code.access_bytes = aligned.widest(copies ? 16 : regime->elements * element_bytes);
  if (!copies && code.access_bytes == 16 && section_form(sections, p.layout, 16 / element_bytes) == SectionForm::kAny)
    code.access_bytes = 8;
  if (copies && code.access_bytes == 8) code.access_bytes = element_bytes;
  const int32_t vec = code.access_bytes / element_bytes;
  code.copies = copies || vec == 1;
  code.sections = section_form(sections, p.layout, vec);
  if (code.sections == SectionForm::kWhole && code.copies) code.sections = SectionForm::kAny;
  code.unroll = code.access_bytes < 16                ? 2
                : copies                              ? 4
                : code.sections != SectionForm::kNone ? sections_unroll(element_bytes)
                : heads < 4                           ? std::min(heads, 2)
                                                      : regime->unroll;
  plan.prefetch = apart || regime->prefetch;
  plan.release_early = regime->release_early;
  plan.early = early && regime->release_early && code.has_early();
  plan.copy_slots = copies ? stored_slots_of(p.head_dim - p.rotary_dim, vec) : 0;

  const int32_t slots = p.rotary_dim / 2 / vec + plan.copy_slots;
  plan.grid_z = unsigned(divide_up(slots, kMaxBlock));
  plan.block_x = unsigned(divide_up(slots, plan.grid_z));
  const int32_t head_threads = divide_up(heads, code.unroll);
  const auto columns = [&](int32_t threads) { return std::max<int32_t>(1, threads / int32_t(plan.block_x)); };
  const int32_t y = share_heads(head_threads, columns(regime->head_threads));
  // Two tokens side by side are enough where there are heads to fill the block.
  const int32_t z = heads < 4 ? columns(kMaxBlock) / y : std::min(2, columns(regime->threads) / y);
  plan.block_y = unsigned(y);
  plan.block_z = unsigned(std::clamp<int64_t>(z, 1, std::min<int64_t>(kMaxBlockZ, p.num_tokens)));
  plan.grid_x = unsigned(divide_up(p.num_tokens, plan.block_z));
  plan.grid_y = regime->loop ? 1 : unsigned(std::min(divide_up(head_threads, y), kMaxGridY));
  return plan;
}

}  // namespace rope::cuda
