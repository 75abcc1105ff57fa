// Attention of the last queries of requests over their keys and values in a paged cache: what a call is, validated.
//   o = softmax(scale R(q) k^T) v    row by row, over the keys that a query sees
//   lse = log(sum(exp(scale R(q) k^T)))
#pragma once

#include "attention.h"
#include "token.h"

namespace rope {

// Element [token, head, i] at data + token * token_stride + head * head_stride; strides are bytes.
struct DecodeTensor {
  char* data;
  int64_t token_stride, head_stride;
};

// Element [page, entry, head, i] likewise. A number is what is stored times the scale.
struct DecodePages {
  const char* data;
  int64_t page_stride, entry_stride, head_stride;
  const float* scales;  // [1]; null: scale
  float scale;
};

struct DecodeTurn {
  int32_t rotary_dim, rotary_offset;  // rotary_dim 0: q is rotated already
  Layout layout;
  Angle angle;  // kExact or kFp32
  float factor;
  Positions positions;  // of tokens of q; kOffset: of keys
};

struct DecodeParams {
  DecodeTensor q, o;  // [requests * q_tokens, q_heads, head_dim]
  DecodePages k, v;
  OutType type;  // of what is stored: kSame, or codes with one scale
  CacheMap cache;
  const int32_t* lengths;  // [requests]
  int32_t max_length;
  float* lse;          // [requests, q_heads, q_tokens]; null: not written
  const float* sinks;  // [q_heads]; null: none
  int32_t requests, q_tokens;
  int32_t q_heads, k_heads;  // q_heads is a multiple
  int32_t head_dim;
  int32_t window_left;  // kNoWindow: no limit
  float scale, softcap;
  DecodeTurn turn;
  int32_t split;  // keys, a multiple of kDecodeSplit; 0: chosen. CUDA
  void* workspace;
  int64_t workspace_bytes;
  int64_t* needs;  // not null: nothing is done but to say how many bytes of workspace are needed; CUDA
};

inline constexpr int32_t kMaxDecodeTokens = 16, kDecodeSplit = 256, kMaxDecodeLength = 1 << 30;

// Keys that a query sees, [low, high).
struct SeenKeys {
  int32_t low, high;
};

// token: of the request.
ROPE_INLINE SeenKeys seen_keys(const DecodeParams& p, int32_t length, int32_t token) {
  const int32_t place = length - p.q_tokens + token;
  const int32_t low = p.window_left == kNoWindow || place < p.window_left ? 0 : place - p.window_left;
  return {low, place < 0 ? 0 : place + 1};
}

// Where token number `row` of all, the one at key `place`, turns to. False: it stays as it is.
ROPE_INLINE bool decode_position(const DecodeTurn& t, int64_t row, int32_t place, int64_t* position) {
  return position_of(t.positions, t.positions.kind == PositionKind::kOffset ? place : row, position);
}

ROPE_INLINE CosSin decode_angle(const DecodeTurn& t, const uint64_t* words, int64_t position, int32_t pair) {
  return scaled_angle(phase_at(t.angle, position, words[pair]), t.factor, t.factor);
}

}  // namespace rope
