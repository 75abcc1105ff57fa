// What fills tables on the CPU, one set per instruction set as in rotate.h.
#pragma once

#include "../build_table.h"

namespace rope::cpu {

extern const BuildTableSet kBuildTableBaseline, kBuildTableV3, kBuildTableV4;

const BuildTableSet& build_tables();  // the best that this processor runs

}  // namespace rope::cpu
