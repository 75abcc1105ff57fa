// The instruction sets that the CPU loops are built for: each is the same sources, compiled with ROPEROPE_CPU_SET = its
// name. The results are the same bits, since every operation is written out (math/).
#pragma once

#include "../operations/operations.h"

namespace rope::cpu {

struct Baseline {
  static constexpr const char* kName = "Baseline";
};
struct V3 {  // x86-64-v3: AVX2, FMA, F16C
  static constexpr const char* kName = "V3";
};
struct V4 {  // x86-64-v4: AVX-512
  static constexpr const char* kName = "V4";
};

#ifdef ROPEROPE_CPU_SET
using ThisSet = ROPEROPE_CPU_SET;
#endif

}  // namespace rope::cpu
