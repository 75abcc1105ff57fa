#include "rotate_plan.h"

#include <algorithm>
#include <utility>

namespace rope::cuda {
namespace {

// Limits of every CUDA device.
constexpr int32_t kMaxBlockZ = 64, kMaxGridY = 65535;

// Every address that the kernel forms with chunks of `bytes` is a multiple of `bytes`.
bool aligned(const RotateParams& p, int element_bytes, int bytes) {
  const int64_t half = int64_t(p.rotary_dim) / 2 * element_bytes;
  const int64_t offset = int64_t(p.rotary_offset) * element_bytes, row = int64_t(p.head_dim) * element_bytes;
  int64_t bits = half | offset;
  bool copies = false;
  for (const auto& [x, heads] : {std::pair(p.q, p.num_q_heads), std::pair(p.k, p.num_k_heads)}) {
    if (heads == 0) continue;
    bits |= reinterpret_cast<int64_t>(x.in) | reinterpret_cast<int64_t>(x.out);
    bits |= x.in_token_stride | x.in_head_stride | x.out_token_stride | x.out_head_stride;
    copies |= x.in != x.out;
  }
  if (copies) bits |= row;
  return (bits & (bytes - 1)) == 0;
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

RotatePlan plan_rotate(const RotateParams& p, Layout layout, int element_bytes, bool early) {
  RotatePlan plan = {};
  const int32_t heads = p.num_q_heads + p.num_k_heads;
  const bool apart = (p.num_q_heads && p.q.in != p.q.out) || (p.num_k_heads && p.k.in != p.k.out);
  const bool copies = apart && p.rotary_dim < p.head_dim;
  const int32_t part = (apart ? p.head_dim : p.rotary_dim) * element_bytes;
  const int64_t bytes = p.num_tokens * heads * part;
  // Several positions of a token pay early only between the bounds of the first regimes.
  const bool some = bytes > kRegimes[0].max_bytes && bytes <= kEarlyRegimes[0].max_bytes;
  early = early && p.rotary_dim <= 2 * kFewPairs && (some || !p.positions.sections.streams);
  const bool sparse = part < kLine && p.rotary_dim < p.head_dim;
  const Regime* regime = sparse ? kSparseRegimes : early ? kEarlyRegimes : kRegimes;
  while (bytes > regime->max_bytes || (!regime->loop && heads <= kFewHeads && bytes > kFewHeadsLoop)) ++regime;

  plan.access_bytes = element_bytes;
  for (const int access : {16, 8}) {
    const auto form = section_form(p.positions.sections, layout, access / element_bytes);
    const bool compiled = copies ? access == 16 : access == 8 || form != SectionForm::kAny;
    if (compiled && (access <= regime->elements * element_bytes || copies) && aligned(p, element_bytes, access)) {
      plan.access_bytes = access;
      break;
    }
  }
  plan.prefetch = apart || regime->prefetch;
  plan.release_early = regime->release_early;
  const int32_t vec = plan.access_bytes / element_bytes;
  plan.sections = section_form(p.positions.sections, layout, vec);
  if (plan.sections == SectionForm::kWhole && (copies || vec == 1)) plan.sections = SectionForm::kAny;
  plan.copy_slots = copies ? divide_up((p.head_dim - p.rotary_dim) / vec, 2) : 0;
  plan.unroll = plan.access_bytes < 16                ? 2
                : copies                              ? 4
                : plan.sections != SectionForm::kNone ? sections_unroll(element_bytes)
                : heads < 4                           ? std::min(heads, 2)
                                                      : regime->unroll;
  plan.early = early && regime->release_early && has_early(plan.access_bytes, plan.unroll, copies, plan.sections);

  const int32_t slots = p.rotary_dim / 2 / vec + plan.copy_slots;
  plan.grid_z = unsigned(divide_up(slots, kMaxBlock));
  plan.block_x = unsigned(divide_up(slots, plan.grid_z));
  const int32_t head_threads = divide_up(heads, plan.unroll);
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
