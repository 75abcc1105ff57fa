// The rotations compiled for the CPU: one set per instruction set, the best one chosen at run time.
#pragma once

#include "../instances.h"

namespace rope::cpu {

struct RotateSet {
  const char* name;  // of the instruction set
  RotateTable tables[kNumDtypes];
};

// Each is the same source, rotate_loops.cpp, built for another instruction set.
extern const RotateSet kRotateBaseline, kRotateV3, kRotateV4;

const RotateSet& rotate_set();  // the best that this processor runs

}  // namespace rope::cpu
