// What a decode kernel is compiled for, and how its threads share the work.
//
// A block has the keys of one split of one key head of a request; each of its warps takes every kWarps-th tile of them,
// and holds a tile in registers while the next one is on its way, with no shared memory and no shuffle between loads
// and products: which element of a row a lane holds is free, as long as both factors agree. Scores are products of 16
// queries, of which 8 may be none, and 8 keys; results are transposed, of 16 elements of values and 8 queries, whose
// weights are then where scores were. g and t are a lane / 4 and % 4, as PTX names the places of a product's elements.
//   keys    key g of each 8 of a tile; of its row pieces of 16 bytes, number t of each 4
//   values  keys 2t, 2t + 1, 2t + 8, 2t + 9 of each 16; of their rows pieces, number g of each 8
#pragma once

#include "../../operations/decode.h"

namespace rope::cuda {

inline constexpr int kDecodeWarps = 4, kDecodeThreads = 32 * kDecodeWarps;

template <OutType kType, int kHeadDim_, int kRowTiles_>
struct DecodeShape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRowTiles = kRowTiles_, kRows = 8 * kRowTiles;  // queries of a block
  static constexpr int kElementBytes = kType == OutType::kSame ? 2 : 1;
  static constexpr int kRowBytes = kHeadDim * kElementBytes;
  static constexpr int kTileKeys = kRowBytes == 256 ? 16 : 32;  // 128 bytes of keys in a lane, or 64
  static constexpr int kGroups = kTileKeys / 16;
  static constexpr int kKeyPieces = kRowBytes / 64;            // of a row, in a lane
  static constexpr int kPieceSteps = 8 / (2 * kElementBytes);  // products along a piece of 16 bytes
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kValueBytes = kRowBytes / 8 < 16 ? kRowBytes / 8 : 16;  // of a piece
  static constexpr int kValuePieces = kRowBytes / 8 / kValueBytes;
  static constexpr int kValueDims = kValueBytes / kElementBytes;
};

template <OutType kType>
struct CodeOf {
  using Type = void;
};
#define ROPE_CODE_OF(Code)          \
  template <>                       \
  struct CodeOf<OutType::k##Code> { \
    using Type = Code;              \
  };
ROPE_FOR_EACH_CODE(ROPE_CODE_OF)
#undef ROPE_CODE_OF

// Which kernels are compiled.
struct DecodeCode {
  OutType type;
  int32_t head_dim, row_tiles;
};
constexpr bool operator==(const DecodeCode& a, const DecodeCode& b) {
  return a.type == b.type && a.head_dim == b.head_dim && a.row_tiles == b.row_tiles;
}
inline constexpr DecodeCode kDtypeDecodeCodes[] = {{OutType::kSame, 64, 1},
                                                   {OutType::kSame, 64, 2},
                                                   {OutType::kSame, 128, 1},
                                                   {OutType::kSame, 128, 2}};
inline constexpr DecodeCode kCodesDecodeCodes[] = {{OutType::kE4M3, 64, 1},  {OutType::kE4M3, 64, 2},
                                                   {OutType::kE4M3, 128, 1}, {OutType::kE4M3, 128, 2},
                                                   {OutType::kE5M2, 64, 1},  {OutType::kE5M2, 64, 2},
                                                   {OutType::kE5M2, 128, 1}, {OutType::kE5M2, 128, 2}};

}  // namespace rope::cuda
