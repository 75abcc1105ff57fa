#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "status.h"

namespace rope::api {
namespace {

constexpr int64_t kMaxStrideBytes = int64_t(1) << 62;
constexpr uintptr_t kLowestAddress = 1 << 16;  // Linux maps nothing below (vm.mmap_min_addr)

constexpr Dim Rows::* const kDims[] = {&Rows::sequence, &Rows::token, &Rows::head, &Rows::element};

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
  if (address & uintptr_t(element_bytes - 1))
    return fail(ROPE_ERR_INVALID_ARG, "%s: pointer %p is misaligned, must be a multiple of %d bytes", name, pointer,
                int(element_bytes));
  return ROPE_OK;
}

rope_status read_rows(const char* name, const rope_tensor& x, const rope_steps& steps, const Shape& shape,
                      int64_t element_bytes, Rows* rows) {
  ROPE_TRY(check_address(name, x.data, element_bytes));
  bool fits = true;
  const auto times = [&](int64_t a, int64_t b) {
    int64_t product;
    fits &= !__builtin_mul_overflow(a, b, &product);
    return product;
  };
  const auto stride_of = [](int64_t given, int64_t usual) {
    return given == ROPE_BROADCAST ? 0 : given ? given : usual;
  };
  const int64_t element = stride_of(steps.element, 1), head = stride_of(x.head_stride, times(shape.dim, element)),
                token = stride_of(x.token_stride, times(head, shape.heads)),
                sequence = stride_of(steps.sequence, times(token, shape.tokens));
  const auto reach = [&](int64_t stride, int64_t count) {
    return times(stride < 0 ? times(stride, -1) : stride, count);
  };
  int64_t extent = reach(sequence, shape.sequences);
  for (const int64_t more : {reach(token, shape.tokens), reach(head, shape.heads), reach(element, shape.dim)})
    fits &= !__builtin_add_overflow(extent, more, &extent);
  if (times(extent, element_bytes) >= kMaxStrideBytes || !fits)
    return fail(ROPE_ERR_INVALID_ARG, "%s: strides (token %lld, head %lld elements) reach beyond 2^62 bytes", name,
                static_cast<long long>(x.token_stride), static_cast<long long>(head));
  // Without a second row a stride means nothing.
  const int64_t head_step = shape.heads == 1 ? shape.dim : head;
  const int64_t token_step = shape.tokens == 1 ? head_step * shape.heads : token;
  const int64_t sequence_step = shape.sequences == 1 ? 0 : sequence;
  const bool gaps = element != 1 && shape.dim > 1;
  *rows = {x.data,
           {shape.sequences, sequence_step * element_bytes},
           {shape.tokens, token_step * element_bytes},
           {shape.heads, head_step * element_bytes},
           {gaps ? shape.dim : 1, gaps ? element * element_bytes : 0},
           gaps ? element_bytes : shape.dim * element_bytes};
  return ROPE_OK;
}

bool rows_are_distinct(const Rows& x) { return Levels(x).nested(x.row); }

bool are_interleaved(const Rows& x, const Rows& y) {
  Rows both = x;  // as large as either; a stride that is taken in one of them alone is the other's too
  both.row = std::max(x.row, y.row);
  for (const auto dim : kDims) {
    const Dim &a = x.*dim, &b = y.*dim;
    if (a.count > 1 && b.count > 1 && a.stride != b.stride) return false;
    both.*dim = {std::max(a.count, b.count), a.count > 1 ? a.stride : b.stride};
  }
  const Levels levels(both);
  return levels.nested(both.row) && !rows_meet(x, y, levels, 0, y.data - x.data);
}

bool are_interleaved(const Rows& x, const void* data, int64_t bytes) {
  const int64_t at = static_cast<const char*>(data) - (x.data + x.low);
  // From the lowest row upwards: the first one that ends behind `at`.
  const Levels levels(x);
  int64_t start = 0, block = x.high - x.low;
  for (int i = 0; i < levels.count; ++i) {
    const int64_t stride = std::llabs(levels.dims[i].stride);
    block -= (levels.dims[i].count - 1) * stride;
    start += std::max<int64_t>(floor_divide(at - start - block, stride) + 1, 0) * stride;
  }
  return start >= at + bytes;
}

}  // namespace rope::api
