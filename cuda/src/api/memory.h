// Where a tensor's rows lie, and whether two tensors share memory.
#pragma once

#include <cstdint>

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
};

// What a tensor's dimensions count.
struct Shape {
  int64_t sequences, tokens, heads, dim;  // tokens: of a sequence
};

// Fails, naming the field as `name`, on what cannot be an address of elements of that size.
rope_status check_address(const char* name, const void* pointer, int64_t element_bytes);

// Byte strides of a public tensor, defaults filled in. Fails on a bad address, and on strides whose extent is not
// addressable.
rope_status read_rows(const char* name, const rope_tensor& x, const rope_steps& steps, const Shape& shape,
                      int64_t element_bytes, Rows* rows);

// No two rows share a byte. Decided by nesting the strides: the smallest must clear a row, each other one the whole
// extent of the smaller ones. (Layouts that interleave rows in any other way do not occur.)
bool rows_are_distinct(const Rows& x);

// x and y share no byte. Exact where their ranges are apart or their strides equal (one that is never taken, of a
// single head or token, equals any); false where it cannot be told.
bool are_apart(const Rows& x, const Rows& y);

// No row of x, which are distinct, has one of the `bytes` at data.
bool are_apart(const Rows& x, const void* data, int64_t bytes);

inline bool same_rows(const Rows& x, const Rows& y) {
  return x.data == y.data && x.token.stride == y.token.stride && x.head.stride == y.head.stride &&
         x.sequence.stride == y.sequence.stride && x.element.stride == y.element.stride;
}

}  // namespace rope::api
