#include "rotate.h"

namespace rope::cpu {

const RotateSet& rotate_set() {
#ifdef ROPEROPE_X86_LEVELS
  static const RotateSet& best = __builtin_cpu_supports("x86-64-v4")   ? kRotateV4
                                 : __builtin_cpu_supports("x86-64-v3") ? kRotateV3
                                                                       : kRotateBaseline;
  return best;
#else
  return kRotateBaseline;
#endif
}

}  // namespace rope::cpu
