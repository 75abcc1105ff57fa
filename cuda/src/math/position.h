// The position of a token.
#pragma once

#include "annotate.h"

namespace rope {

// kFloat32: ids that are float32, which operations/general.h reads.
enum class PositionKind : int32_t { kOffset, kIds32, kIds64, kRagged32, kRagged64, kFloat32 };

inline constexpr int kMaxStreams = 4;      // that have sizes
inline constexpr int kMaxPairStreams = 8;  // of which each pair has its own

// M-RoPE (arXiv:2409.12191): which of a token's positions a pair turns by.
struct Sections {
  int32_t streams;  // 0: a token has one position
  bool interleaved;
  int32_t sizes[kMaxStreams];
  int64_t stride;  // elements between streams
};

struct Positions {
  PositionKind kind;
  int32_t num_requests;  // ragged
  int64_t offset;        // kOffset: position of token 0
  const void* ids;       // kIds: [num_tokens], or of several streams; ragged: indptr [num_requests + 1]
  const void* offsets;   // ragged: [num_requests], or null for zeros
  Sections sections;     // kIds
  uint32_t period;       // kOffset, kIds: after so many tokens, of less than 2^32, positions begin again; 0: never
};

// Which of the positions is a token's.
ROPE_INLINE int64_t position_place(const Positions& p, int64_t token) {
  return p.period ? uint32_t(token) % p.period : token;
}

// Which of the ids leaves its token alone, where that is the caller's choice.
struct Skip {
  bool none;
  int64_t position;

  ROPE_INLINE_MEMBER bool is(int64_t other) const { return !none && other == position; }
  ROPE_INLINE_MEMBER bool operator==(const Skip& x) const { return none == x.none && position == x.position; }
  ROPE_INLINE_MEMBER bool operator!=(const Skip& x) const { return !(*this == x); }
};

inline constexpr Skip kUsualSkip = {false, -1};

ROPE_INLINE int64_t index_at(const void* indices, bool is_int32, int64_t i) {
#ifdef __CUDA_ARCH__
  // Word by word, without a branch: ptxas would extend the sign, and so wait, before it issues the loads that follow.
  const auto* words = static_cast<const int32_t*>(indices) + (is_int32 ? i : 2 * i);
  const int32_t low = words[0], high = words[is_int32 ? 0 : 1];
  return int64_t(uint64_t(is_int32 ? high >> 31 : high) << 32 | uint32_t(low));
#else
  return is_int32 ? static_cast<const int32_t*>(indices)[i] : static_cast<const int64_t*>(indices)[i];
#endif
}

ROPE_INLINE bool positions_are_int32(const Positions& p) {
  return p.kind == PositionKind::kIds32 || p.kind == PositionKind::kRagged32;
}

ROPE_INLINE int32_t stream_of(const Sections& s, int32_t pair) {
  if (s.interleaved) {
    const int32_t stream = pair % s.streams;
    return pair < s.streams * s.sizes[stream] ? stream : 0;
  }
  int32_t stream = 0;
  for (int32_t end = s.sizes[0]; stream + 1 < s.streams && pair >= end; end += s.sizes[stream]) ++stream;
  return stream;
}

// A token's position by an offset or ids.
ROPE_INLINE int64_t simple_position(const Positions& p, int64_t token) {
  const int64_t place = position_place(p, token);
  if (p.kind == PositionKind::kOffset) return int64_t(uint64_t(p.offset) + uint64_t(place));
  return index_at(p.ids, p.kind == PositionKind::kIds32, place);
}

// A token's position in a stream.
ROPE_INLINE int64_t stream_position(const Positions& p, int64_t token, int32_t stream) {
  return index_at(p.ids, positions_are_int32(p), stream * p.sections.stride + position_place(p, token));
}

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

// The position, with sections that of the first stream. False: the token is to be left alone. Position arithmetic
// wraps, as phases do.
ROPE_INLINE bool position_of(const Positions& p, int64_t token, int64_t* position) {
  switch (p.kind) {
    case PositionKind::kOffset: *position = simple_position(p, token); return true;
    case PositionKind::kIds32:
    case PositionKind::kIds64: *position = simple_position(p, token); return *position != -1;
    case PositionKind::kRagged32: return detail::ragged_position<int32_t>(p, token, position);
    case PositionKind::kRagged64: return detail::ragged_position<int64_t>(p, token, position);
    case PositionKind::kFloat32: break;
  }
  return false;
}

}  // namespace rope
