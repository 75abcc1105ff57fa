// The list of what is compiled, and where it is found.
//
// A dtype needs its traits (math/dtype.h) and its place in the first list; an operation its parameters and its line in
// the second. Each is then a function template in kernels/ and in cpu/, instantiated there, and an entry of Operations,
// which api/ and the support query read.
#pragma once

#include "attention.h"
#include "cos_sin.h"
#include "decode.h"
#include "pipeline.h"

#define ROPE_FOR_EACH_DTYPE(X) X(F32) X(F16) X(BF16)

#define ROPE_FOR_EACH_OPERATION(X)               \
  X(pipeline, PipelineCall)                      \
  X(rotate_cache, PipelineCall)                  \
  X(build_cos_sin, CosSinParams)                 \
  X(attention, AttentionParams)                  \
  X(attention_backward, AttentionBackwardParams) \
  X(decode, DecodeParams)

namespace rope {

inline constexpr int kNumDtypes = 3;

template <class Params>
using Operation = Outcome (*)(const Params& params, const PairData& pairs, const Execution& execution);

// What a backend has for one dtype.
struct Operations {
#define ROPE_MEMBER(name, Params) Operation<Params> name;
  ROPE_FOR_EACH_OPERATION(ROPE_MEMBER)
#undef ROPE_MEMBER
};

namespace cuda {

#define ROPE_DECLARE(name, Params) \
  template <class D>               \
  Outcome name(const Params& params, const PairData& pairs, const Execution& execution);
ROPE_FOR_EACH_OPERATION(ROPE_DECLARE)
#undef ROPE_DECLARE

const Operations* operations(Dtype dtype);  // null: built without CUDA

}  // namespace cuda

namespace cpu {

// Set: an instruction set that the loops are compiled for (cpu/sets.h).
#define ROPE_DECLARE(name, Params) \
  template <class Set, class D>    \
  Outcome name(const Params& params, const PairData& pairs, const Execution& execution);
ROPE_FOR_EACH_OPERATION(ROPE_DECLARE)
#undef ROPE_DECLARE

const Operations* operations(Dtype dtype);  // of the best set that this processor runs
const char* set_name();

}  // namespace cpu

}  // namespace rope
