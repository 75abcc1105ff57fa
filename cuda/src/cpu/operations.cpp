#include "../operations/operations.h"

#include "sets.h"

namespace rope::cpu {
namespace {

struct OperationSet {
  const char* name;
  Operations of[kNumDtypes];
};

template <class Set, class D>
constexpr Operations operations_of() {
  return {
#define ROPE_ENTRY(name, Params) name<Set, D>,
      ROPE_FOR_EACH_OPERATION(ROPE_ENTRY)
#undef ROPE_ENTRY
  };
}

template <class Set>
constexpr OperationSet kSet = {Set::kName,
                               {
#define ROPE_ENTRY(D) operations_of<Set, D>(),
                                   ROPE_FOR_EACH_DTYPE(ROPE_ENTRY)
#undef ROPE_ENTRY
                               }};

const OperationSet& best_set() {
#ifdef ROPEROPE_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return kSet<V4>;
  if (__builtin_cpu_supports("x86-64-v3")) return kSet<V3>;
#endif
  return kSet<Baseline>;
}

const OperationSet& set() {
  static const OperationSet& best = best_set();
  return best;
}

}  // namespace

const Operations* operations(Dtype dtype) { return &set().of[int(dtype)]; }
const char* set_name() { return set().name; }

}  // namespace rope::cpu
