#include "../operations/operations.h"

namespace rope::cuda {
namespace {

template <class D>
constexpr Operations operations_of() {
  return {
#define ROPE_ENTRY(name, Params) name<D>,
      ROPE_FOR_EACH_OPERATION(ROPE_ENTRY)
#undef ROPE_ENTRY
  };
}

constexpr Operations kOperations[kNumDtypes] = {
#define ROPE_ENTRY(D) operations_of<D>(),
    ROPE_FOR_EACH_DTYPE(ROPE_ENTRY)
#undef ROPE_ENTRY
};

}  // namespace

const Operations* operations(Dtype dtype) { return &kOperations[int(dtype)]; }

}  // namespace rope::cuda
