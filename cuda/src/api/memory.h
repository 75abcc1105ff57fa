// Where a tensor's rows lie, and whether two tensors share memory.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "roperope/roperope.h"

namespace rope::api {

// Counts above 0, strides in bytes: 0 where it is never taken, or where all are one.
struct Dim {
  int64_t count, stride;
};

// Rows of `row` bytes at data + the sum of an index times the stride of each dimension. Where the elements of a head
// are neighbours, they are one row and `element` has a count of 1; else each is.
struct Rows {
  const char* data;
  Dim sequence, token, head, element;
  int64_t row;
  int64_t low, high;  // [low, high): bytes that the rows span, relative to data

  Rows() = default;
  Rows(const void* data, Dim sequence, Dim token, Dim head, Dim element, int64_t row)
      : data(static_cast<const char*>(data)),
        sequence(sequence),
        token(token),
        head(head),
        element(element),
        row(row),
        low(0),
        high(row) {
    for (const Dim& dim : {sequence, token, head, element}) {
      const int64_t far = (dim.count - 1) * dim.stride;
      (far < 0 ? low : high) += far;
    }
  }
};

// What a tensor's dimensions count.
struct Shape {
  int64_t sequences, tokens, heads, dim;  // tokens: of a sequence
};

// A stride, above 0, that is taken so often does not leave what is addressable.
inline bool is_addressable(int64_t stride, int64_t count) {
  int64_t extent;
  return !__builtin_mul_overflow(stride, count, &extent) && extent <= INT64_MAX / 64;
}

// Fails, naming the field as `name`, on what cannot be an address of elements of that size, which is a power of two.
rope_status check_address(const char* name, const void* pointer, int64_t element_bytes);

// Byte strides of a public tensor, defaults filled in. Fails on a bad address, and on strides whose extent is not
// addressable.
rope_status read_rows(const char* name, const rope_tensor& x, const rope_steps& steps, const Shape& shape,
                      int64_t element_bytes, Rows* rows);

// No two rows share a byte. Decided by nesting the strides: the smallest must clear a row, each other one the whole
// extent of the smaller ones. (Layouts that interleave rows in any other way do not occur.)
bool rows_are_distinct(const Rows& x);

// The same as are_apart, of what lies in each other's range.
bool are_interleaved(const Rows& x, const Rows& y);
bool are_interleaved(const Rows& x, const void* data, int64_t bytes);

// x and y share no byte. Exact where their ranges are apart or their strides equal (one that is never taken, of a
// single head or token, equals any); false where it cannot be told.
inline bool are_apart(const Rows& x, const Rows& y) {
  const int64_t delta = y.data - x.data;
  return delta + y.low >= x.high || delta + y.high <= x.low || are_interleaved(x, y);
}

// No row of x, which are distinct, has one of the `bytes` at data.
inline bool are_apart(const Rows& x, const void* data, int64_t bytes) {
  const int64_t delta = static_cast<const char*>(data) - x.data;
  return delta >= x.high || delta + bytes <= x.low || are_interleaved(x, data, bytes);
}

inline bool same_rows(const Rows& x, const Rows& y) {
  return x.data == y.data && x.token.stride == y.token.stride && x.head.stride == y.head.stride &&
         x.sequence.stride == y.sequence.stride && x.element.stride == y.element.stride;
}

}  // namespace rope::api
