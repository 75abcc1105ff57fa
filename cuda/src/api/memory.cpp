#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "status.h"

namespace rope::api {
namespace {

constexpr int64_t kMaxStrideBytes = int64_t(1) << 62;
constexpr uintptr_t kLowestAddress = 1 << 16;  // Linux maps nothing below (vm.mmap_min_addr)

// [low, high): bytes that the rows span, relative to data. The extents were checked to fit.
std::pair<int64_t, int64_t> span(const Rows& x) {
  const int64_t t = (x.tokens - 1) * x.token_stride, h = (x.heads - 1) * x.head_stride;
  return {std::min<int64_t>(t, 0) + std::min<int64_t>(h, 0), std::max<int64_t>(t, 0) + std::max<int64_t>(h, 0) + x.row};
}

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// Some row of x and some row of y, with equal strides that are nested in both, share a byte:
// delta = i * outer + j * inner + k with -y.row < k < x.row for a difference (i, j) of indices that occurs. Rounding
// delta towards the nearest multiples leaves two candidates a level.
bool rows_meet(const Rows& x, const Rows& y, int64_t delta) {
  int64_t outer = x.token_stride, inner = x.head_stride;
  int64_t outer_x = x.tokens, outer_y = y.tokens, inner_x = x.heads, inner_y = y.heads;
  if (std::llabs(outer) < std::llabs(inner)) {
    std::swap(outer, inner);
    std::swap(outer_x, inner_x);
    std::swap(outer_y, inner_y);
  }
  // Without a second row a stride means nothing.
  if (outer_x == 1 && outer_y == 1) outer = kMaxStrideBytes;
  if (inner_x == 1 && inner_y == 1) inner = kMaxStrideBytes;
  const int64_t i0 = floor_divide(delta, outer);
  for (int64_t i = i0; i <= i0 + 1; ++i) {
    if (i <= -outer_y || i >= outer_x) continue;
    const int64_t rest = delta - i * outer;
    const int64_t j0 = floor_divide(rest, inner);
    for (int64_t j = j0; j <= j0 + 1; ++j) {
      if (j <= -inner_y || j >= inner_x) continue;
      const int64_t ahead = rest - j * inner;  // of the row of y
      if (ahead < x.row && -ahead < y.row) return true;
    }
  }
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

rope_status read_rows(const char* name, const rope_tensor& x, int64_t tokens, int64_t heads, int64_t head_dim,
                      int64_t element_bytes, Rows* rows) {
  ROPE_TRY(check_address(name, x.data, element_bytes));
  const int64_t head_stride = x.head_stride ? x.head_stride : head_dim;
  const __int128 token_stride = x.token_stride ? x.token_stride : __int128(head_stride) * heads;
  const auto magnitude = [](__int128 v) { return v < 0 ? -v : v; };
  const __int128 extent =
      (magnitude(token_stride) * tokens + magnitude(head_stride) * heads + head_dim) * element_bytes;
  if (extent >= kMaxStrideBytes)
    return fail(ROPE_ERR_INVALID_ARG, "%s: strides (token %lld, head %lld elements) reach beyond 2^62 bytes", name,
                static_cast<long long>(x.token_stride), static_cast<long long>(head_stride));
  // Without a second row a stride means nothing.
  const int64_t head_step = heads == 1 ? head_dim : head_stride;
  const int64_t token_step = tokens == 1 ? head_step * heads : int64_t(token_stride);
  *rows = {static_cast<const char*>(x.data), tokens, heads, token_step * element_bytes, head_step * element_bytes,
           head_dim * element_bytes};
  return ROPE_OK;
}

bool rows_are_distinct(const Rows& x) {
  struct {
    int64_t count, stride;
  } inner = {x.heads, std::llabs(x.head_stride)}, outer = {x.tokens, std::llabs(x.token_stride)};
  if (inner.count == 1 || (outer.count > 1 && outer.stride < inner.stride)) std::swap(inner, outer);
  int64_t extent = x.row;
  for (const auto& dim : {inner, outer}) {
    if (dim.count == 1) continue;
    if (dim.stride < extent) return false;
    extent += (dim.count - 1) * dim.stride;
  }
  return true;
}

bool are_apart(Rows x, Rows y) {
  if (x.heads == 1) x.head_stride = y.head_stride;
  if (y.heads == 1) y.head_stride = x.head_stride;
  if (x.tokens == 1 && y.tokens == 1) x.token_stride = y.token_stride;
  const auto [x_low, x_high] = span(x);
  const auto [y_low, y_high] = span(y);
  const int64_t delta = y.data - x.data;
  if (delta + y_low >= x_high || delta + y_high <= x_low) return true;
  const bool same_strides = x.token_stride == y.token_stride && x.head_stride == y.head_stride;
  return same_strides && rows_are_distinct(x) && rows_are_distinct(y) && !rows_meet(x, y, delta);
}

bool are_apart(const Rows& x, const void* data, int64_t bytes) {
  const auto [low, high] = span(x);
  const int64_t extent = high - low, at = static_cast<const char*>(data) - (x.data + low);
  if (at >= extent || at + bytes <= 0) return true;
  // From the lowest row upwards: the first one that ends behind `at`.
  // A stride of 0 is one that is never taken.
  int64_t outer = std::max<int64_t>(std::llabs(x.token_stride), 1), inner_count = x.heads,
          inner = std::max<int64_t>(std::llabs(x.head_stride), 1);
  if (x.heads > 1 && x.tokens > 1 && outer < inner) {
    std::swap(outer, inner);
    inner_count = x.tokens;
  }
  const int64_t block = (inner_count - 1) * inner + x.row;
  const int64_t i = std::max<int64_t>(floor_divide(at - block, outer) + 1, 0) * outer;
  const int64_t j = std::max<int64_t>(floor_divide(at - i - x.row, inner) + 1, 0) * inner;
  return i + j >= at + bytes;
}

}  // namespace rope::api
