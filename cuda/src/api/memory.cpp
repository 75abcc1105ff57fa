#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "status.h"

namespace rope::api {
namespace {

constexpr int64_t kMaxStrideBytes = int64_t(1) << 62;
constexpr uintptr_t kLowestAddress = 1 << 16;  // Linux maps nothing below (vm.mmap_min_addr)

constexpr Dim Rows::* const kDims[] = {&Rows::sequence, &Rows::token, &Rows::head, &Rows::element};

// [low, high): bytes that the rows span, relative to data. The extents were checked to fit.
std::pair<int64_t, int64_t> span(const Rows& x) {
  std::pair<int64_t, int64_t> ends = {0, x.row};
  for (const auto dim : kDims) {
    const int64_t far = ((x.*dim).count - 1) * (x.*dim).stride;
    (far < 0 ? ends.first : ends.second) += far;
  }
  return ends;
}

// The dimensions that are taken, the largest steps first.
struct Levels {
  static constexpr int kMost = int(std::size(kDims));

  const Dim Rows::* which[kMost];
  Dim dims[kMost];
  int count = 0;

  explicit Levels(const Rows& x) {
    for (const auto dim : kDims) {
      const Dim& taken = x.*dim;
      if (taken.count == 1) continue;
      int at = count++;
      for (; at > 0 && std::llabs(dims[at - 1].stride) < std::llabs(taken.stride); --at) {
        dims[at] = dims[at - 1];
        which[at] = which[at - 1];
      }
      dims[at] = taken;
      which[at] = dim;
    }
  }

  bool nested(int64_t row) const {
    for (int i = count - 1; i >= 0; --i) {
      const int64_t stride = std::llabs(dims[i].stride);
      if (stride < row) return false;
      row += (dims[i].count - 1) * stride;
    }
    return true;
  }
};

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// Some row of x and some row of y share a byte, both of whose strides are those of `levels`: delta, from a row of x to
// one of y, is the sum of i * stride over the levels, for differences i of indices that occur, and of a k with
// -y.row < k < x.row. Rounding delta towards the nearest multiples leaves two candidates a level.
bool rows_meet(const Rows& x, const Rows& y, const Levels& levels, int level, int64_t delta) {
  if (level == levels.count || level == Levels::kMost) return delta < x.row && -delta < y.row;
  const auto dim = levels.which[level];
  const int64_t stride = levels.dims[level].stride, nearest = floor_divide(delta, stride);
  for (int64_t i = nearest; i <= nearest + 1; ++i)
    if (i > -(y.*dim).count && i < (x.*dim).count && rows_meet(x, y, levels, level + 1, delta - i * stride))
      return true;
  return false;
}

}  // namespace

rope_status check_address(const char* name, const void* pointer, int64_t element_bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address < kLowestAddress)
    return fail(ROPE_ERR_INVALID_ARG, "%s: %#zx is not the address of any memory", name, size_t(address));
  if (address % uintptr_t(element_bytes))
    return fail(ROPE_ERR_INVALID_ARG, "%s: pointer %p is misaligned, must be a multiple of %d bytes", name, pointer,
                int(element_bytes));
  return ROPE_OK;
}

rope_status read_rows(const char* name, const rope_tensor& x, const rope_steps& steps, const Shape& shape,
                      int64_t element_bytes, Rows* rows) {
  ROPE_TRY(check_address(name, x.data, element_bytes));
  const auto stride_of = [](int64_t given, __int128 usual) {
    return given == ROPE_BROADCAST ? 0 : given ? __int128(given) : usual;
  };
  const __int128 element = stride_of(steps.element, 1), head = stride_of(x.head_stride, shape.dim * element),
                 token = stride_of(x.token_stride, head * shape.heads),
                 sequence = stride_of(steps.sequence, token * shape.tokens);
  const auto magnitude = [](__int128 v) { return v < 0 ? -v : v; };
  const __int128 extent = (magnitude(sequence) * shape.sequences + magnitude(token) * shape.tokens +
                           magnitude(head) * shape.heads + magnitude(element) * shape.dim) *
                          element_bytes;
  if (extent >= kMaxStrideBytes)
    return fail(ROPE_ERR_INVALID_ARG, "%s: strides (token %lld, head %lld elements) reach beyond 2^62 bytes", name,
                static_cast<long long>(x.token_stride), static_cast<long long>(head));
  // Without a second row a stride means nothing.
  const int64_t head_step = shape.heads == 1 ? shape.dim : int64_t(head);
  const int64_t token_step = shape.tokens == 1 ? head_step * shape.heads : int64_t(token);
  const int64_t sequence_step = shape.sequences == 1 ? 0 : int64_t(sequence);
  const bool gaps = element != 1 && shape.dim > 1;
  *rows = {static_cast<const char*>(x.data),
           {shape.sequences, sequence_step * element_bytes},
           {shape.tokens, token_step * element_bytes},
           {shape.heads, head_step * element_bytes},
           {gaps ? shape.dim : 1, gaps ? int64_t(element) * element_bytes : 0},
           gaps ? element_bytes : shape.dim * element_bytes};
  return ROPE_OK;
}

bool rows_are_distinct(const Rows& x) { return Levels(x).nested(x.row); }

bool are_apart(const Rows& x, const Rows& y) {
  const auto [x_low, x_high] = span(x);
  const auto [y_low, y_high] = span(y);
  const int64_t delta = y.data - x.data;
  if (delta + y_low >= x_high || delta + y_high <= x_low) return true;
  Rows both = x;  // as large as either; a stride that is taken in one of them alone is the other's too
  both.row = std::max(x.row, y.row);
  for (const auto dim : kDims) {
    const Dim &a = x.*dim, &b = y.*dim;
    if (a.count > 1 && b.count > 1 && a.stride != b.stride) return false;
    both.*dim = {std::max(a.count, b.count), a.count > 1 ? a.stride : b.stride};
  }
  const Levels levels(both);
  return levels.nested(both.row) && !rows_meet(x, y, levels, 0, delta);
}

bool are_apart(const Rows& x, const void* data, int64_t bytes) {
  const auto [low, high] = span(x);
  const int64_t extent = high - low, at = static_cast<const char*>(data) - (x.data + low);
  if (at >= extent || at + bytes <= 0) return true;
  // From the lowest row upwards: the first one that ends behind `at`.
  const Levels levels(x);
  int64_t start = 0, block = extent;
  for (int i = 0; i < levels.count; ++i) {
    const int64_t stride = std::llabs(levels.dims[i].stride);
    block -= (levels.dims[i].count - 1) * stride;
    start += std::max<int64_t>(floor_divide(at - start - block, stride) + 1, 0) * stride;
  }
  return start >= at + bytes;
}

}  // namespace rope::api
