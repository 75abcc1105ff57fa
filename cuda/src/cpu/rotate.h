// What the CPU has in place of the pipeline where it is a rotation alone: rows without a copy of each head.
#pragma once

#include "sets.h"

namespace rope::cpu {

// row: bytes of a token.
template <class Set, class D>
Outcome rotate(const PipelineParams& p, int64_t row, const PairData& pairs, const Execution& e);

}  // namespace rope::cpu
