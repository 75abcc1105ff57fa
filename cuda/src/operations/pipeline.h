// The pipeline's parameters, validated: load -> [RMS norm] -> rotate -> [quantise] -> store or append. What all of it
// is for one token is in token.h. A rotation is a pipeline of nothing else, a rotation of keys in a cache one of one
// operand that reads where it writes.
#pragma once

#include "../math/groups.h"
#include "call.h"

namespace rope {

inline constexpr int kMaxOperands = 4;        // q, k, v, the nope part of q
inline constexpr int kMaxPipelineDim = 4096;  // of a head
inline constexpr int kMaxNormHeads = 1024;    // that are normalised together

enum class ScaleKind : int32_t { kHost = 0, kTensor = 1, kHead = 2, kToken = 3, kDynamic = 4, kGroup = 5 };

struct Quantize {
  OutType type;
  ScaleKind kind;       // kGroup: of blocks too
  float factor, scale;  // kHost: 1 / scale, scale
  float* scales;
};

// A tensor on its way. Strides in bytes. In a cache the out strides are those of an entry of a page.
struct PipelineOperand {
  const char* in;  // null: in the cache
  char* out;
  int64_t in_token_stride, in_head_stride;
  int64_t out_token_stride, out_head_stride, out_page_stride;
  const void* weight;  // of the norm, or null
  Quantize quantize;
  int32_t heads, dim;
  bool rotated, cached;
  bool whole;        // elements that are not rotated are stored too: not in place, normalised, or under a new scale
  int8_t xpos_sign;  // of the exponent of xPos: 1 for q, -1 for k; 0: no xPos
};

struct CacheMap {
  bool index_is_int32;
  int32_t page_size, page_shift;  // page_shift: log2 of the page size, or -1 if it is no power of two
  int64_t num_pages;
  const void* indices;  // of a token: its slot, or with a page table its position in its request; null: no cache
  const int32_t *page_table, *page_indptr, *request_ids;
  int64_t page_table_stride;
  int64_t* num_skipped;
};

struct CosSinRows {
  const void *cos, *sin;
  Dtype dtype;
  int64_t rows, stride;
  int64_t* num_skipped;
};

struct FrequencySets {
  const uint64_t* words;  // null: the one in the call
  const float* factors;
  const int32_t *ids, *ids_from;
  int32_t count;
};

struct Norm {
  bool on, after, weight_is_f32;
  bool wide_weights;  // on a multiple of 16 bytes
  bool across_heads;  // one norm for all heads of a token, with weights for each
  float eps, weight_bias, inverse_dim;
};

// What all operands of a token share.
struct TokenParams {
  CacheMap cache = {};  // first: see PipelineArgs
  CosSinRows cos_sin = {};
  int32_t rotary_dim = 0, rotary_offset = 0;
  float cos_scale = 0, sin_scale = 0;
  Layout layout = Layout::kNeox;
  Angle angle = Angle::kExact;
  Positions positions = {};
  const void* positions_from = nullptr;
  FrequencySets sets = {};
  Norm norm = {};
  bool dynamic = false;  // a scale is computed
};

struct PipelineParams : TokenParams {
  PipelineOperand operands[kMaxOperands];  // of which num_operands are set
  int32_t num_operands = 0;
  int64_t num_tokens = 0;
  bool copies = false;  // a token that is left alone is copied, of operands that are not rotated in place
  bool rare = false;    // what the pipeline kernel does not know: of PipelineCall, or kFloat32, or streams in no order
};

// Where the positions of tokens lie, in sequences of equal length.
struct PositionPlaces {
  int64_t sequence_length;          // 0: all tokens are one
  int64_t stride, sequence_stride;  // elements between tokens, and between sequences; 0: they share theirs
};

// What rows of kCosSin hold beside cosines and sines of pairs.
struct TableForm {
  bool radians;     // float32 angles, in the place of the cosines
  bool elements;    // a column for each element of the rotated part
  bool transposed;  // elements: the rotation is
};

// What few calls ask of a tensor; all zero: nothing. Strides and gaps in bytes.
struct OperandExtras {
  int64_t in_sequence_stride, out_sequence_stride;
  int64_t in_gap, out_gap;  // between the elements of a head
  // Where an operand of a cache is stored too, in the call's dtype; null: nowhere.
  char* kept;
  int64_t kept_sequence_stride, kept_token_stride, kept_head_stride, kept_gap;
  bool kept_whole;  // as PipelineOperand's
  bool copies;      // a token that is left alone is copied to `kept` or `out`
  bool twin;        // of the call's dtype's twin: what is read and written, and the weights
};

// Of a norm across heads of several ranks: the sums of squares of tokens.
struct NormSums {
  float* of_tokens;  // null: the operand's heads are all
  float heads;       // of all ranks
};

// What is rare, behind what is not: the pipeline kernel's argument has none of it.
struct PipelineCall : PipelineParams {
  PositionPlaces places = {0, 1, 0};
  TableForm table = {};
  CosSinRows k_rows = {};  // of k, if it has its own; cos null: as the others
  int32_t k_operand = 0;
  int32_t blocks = 1;  // of the rotated part, which have their pairs in themselves; 1 where pairs are neighbours
  Layout out_layout = Layout::kNeox;  // of what is stored
  Skip skip = kUsualSkip;
  bool slot_skips = false;             // a token with a negative slot is left alone as a whole
  int32_t sequence_length = 0;         // of operands with a stride between sequences; 0: none has
  OperandExtras extras[kMaxOperands];  // as operands
  Groups groups[kMaxOperands];
  NormSums sums[kMaxOperands] = {};
  bool writes_sums = false;  // and nothing else

  ROPE_INLINE_MEMBER const Groups& groups_of(const PipelineOperand& o) const { return groups[&o - operands]; }
};

// Whether q and k are rotated, by the call's own frequencies, and nothing else is done.
inline bool is_rotation(const PipelineParams& p) {
  bool plain =
      !p.rare && p.angle != Angle::kCosSin && !p.positions_from && !p.sets.words && !p.norm.on && !p.cache.indices;
  for (int32_t i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    plain &= o.rotated && o.quantize.type == OutType::kSame && o.xpos_sign == 0;
  }
  return plain;
}

}  // namespace rope
