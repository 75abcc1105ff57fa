// The position of a token.
#pragma once

#include "annotate.h"

namespace rope {

enum class PositionKind : int32_t { kOffset, kIds32, kIds64, kRagged32, kRagged64 };

struct Positions {
  PositionKind kind;
  int32_t num_requests;  // ragged
  int64_t offset;        // kOffset: position of token 0
  const void* ids;       // kIds: [num_tokens]; ragged: indptr [num_requests + 1]
  const void* offsets;   // ragged: [num_requests], or null for zeros
};

namespace detail {

template <class Index>
ROPE_INLINE bool ragged_position(const Positions& p, int64_t token, int64_t* position) {
  const Index* indptr = static_cast<const Index*>(p.ids);
  int32_t low = 0, high = p.num_requests;  // the request is the last one that starts at or before the token
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (indptr[middle] <= token ? low : high) = middle;
  }
  const int64_t start = indptr[low];
  if (token < start || token >= indptr[low + 1]) return false;
  const int64_t offset = p.offsets ? static_cast<const Index*>(p.offsets)[low] : 0;
  *position = int64_t(uint64_t(offset) + uint64_t(token) - uint64_t(start));
  return true;
}

}  // namespace detail

// False: the token is to be left alone. Position arithmetic wraps, as phases do.
ROPE_INLINE bool position_of(const Positions& p, int64_t token, int64_t* position) {
  switch (p.kind) {
    case PositionKind::kOffset: *position = int64_t(uint64_t(p.offset) + uint64_t(token)); return true;
    case PositionKind::kIds32: *position = static_cast<const int32_t*>(p.ids)[token]; return *position != -1;
    case PositionKind::kIds64: *position = static_cast<const int64_t*>(p.ids)[token]; return *position != -1;
    case PositionKind::kRagged32: return detail::ragged_position<int32_t>(p, token, position);
    case PositionKind::kRagged64: return detail::ragged_position<int64_t>(p, token, position);
  }
  return false;
}

}  // namespace rope
