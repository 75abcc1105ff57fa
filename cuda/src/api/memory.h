// Where a tensor's rows lie, and whether two tensors share memory.
#pragma once

#include <cstdint>

#include "roperope/roperope.h"

namespace rope::api {

// Rows of `row` bytes at data + token * token_stride + head * head_stride. Strides in bytes, counts above 0.
struct Rows {
  const char* data;
  int64_t tokens, heads, token_stride, head_stride, row;
};

// Fails, naming the field as `name`, on what cannot be an address of elements of that size.
rope_status check_address(const char* name, const void* pointer, int64_t element_bytes);

// Byte strides of a public tensor, defaults filled in. Fails on a bad address, and on strides whose extent is not
// addressable.
rope_status read_rows(const char* name, const rope_tensor& x, int64_t tokens, int64_t heads, int64_t head_dim,
                      int64_t element_bytes, Rows* rows);

// No two rows share a byte. Decided by nesting the strides: the smaller one must clear a row, the larger one the whole
// extent of the smaller. (Layouts that interleave rows in any other way do not occur.)
bool rows_are_distinct(const Rows& x);

// x and y share no byte. Exact where their ranges are apart or their strides equal (one that is never taken, of a
// single head or token, equals any); false where it cannot be told.
bool are_apart(Rows x, Rows y);

// No row of x, which are distinct, has one of the `bytes` at data.
bool are_apart(const Rows& x, const void* data, int64_t bytes);

inline bool same_rows(const Rows& x, const Rows& y) {
  return x.data == y.data && x.token_stride == y.token_stride && x.head_stride == y.head_stride;
}

}  // namespace rope::api
