// What fills tables on the CPU, one set per instruction set as in rotate.h.
#pragma once

#include "../build_cos_sin.h"

namespace rope::cpu {

extern const BuildTableSet kBuildTableBaseline, kBuildTableV3, kBuildTableV4;

const BuildTableSet& build_cos_sins();  // the best that this processor runs

}  // namespace rope::cpu
