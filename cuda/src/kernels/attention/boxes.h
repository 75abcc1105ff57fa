// A tensor that TMA copies boxes of, as a kernel's argument describes it.
#pragma once

#include <cstdint>

namespace rope::cuda {

// Of elements of 16 bits; dimensions from the innermost, whose elements are neighbours. A box is 64 columns (128 bytes,
// swizzled) of `rows` rows, dimension 1; what of it lies outside is loaded as zeros and not stored.
struct BoxedTensor {
  char* data;         // a multiple of 16 bytes
  int64_t extent[4];  // at least 1
  int64_t stride[3];  // bytes, of dimensions 1 to 3: multiples of 16
  int rows;
};

}  // namespace rope::cuda
