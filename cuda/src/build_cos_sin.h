// What fills a table of cos and sin, the one that Angle::kCosSin reads (pipeline.h): its parameters, validated, and the
// list of what is compiled.
#pragma once

#include "instances.h"

namespace rope {

struct CosSinParams {
  char *cos, *sin;               // [num_rows, pairs]
  int64_t num_rows, row_stride;  // row_stride: bytes
  int32_t pairs;
  float scale;  // magnitude
  Positions positions;
};

using CosSinFn = int (*)(const CosSinParams& params, const uint64_t* table, const Execution& execution);

// By dtype and angle.
struct BuildTableSet {
  CosSinFn entries[kNumDtypes][kNumAngles];
};

template <template <class D, Angle> class Instance>
constexpr BuildTableSet build_cos_sin_set() {
  return {{
#define ROPE_ENTRIES(D) {Instance<D, Angle::kExact>::run, Instance<D, Angle::kFp32>::run},
      ROPE_FOR_EACH_DTYPE(ROPE_ENTRIES)
#undef ROPE_ENTRIES
  }};
}

}  // namespace rope
