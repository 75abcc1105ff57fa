// What fills tables on CUDA devices.
#pragma once

#include "../build_table.h"

namespace rope::cuda {

extern const BuildTableSet kBuildTable;

}  // namespace rope::cuda
