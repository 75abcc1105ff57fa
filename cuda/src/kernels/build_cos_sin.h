// What fills tables on CUDA devices.
#pragma once

#include "../build_cos_sin.h"

namespace rope::cuda {

extern const BuildTableSet kBuildTable;

}  // namespace rope::cuda
