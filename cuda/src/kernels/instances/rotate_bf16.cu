#include "../rotate.h"
#include "../rotate_launch.cuh"

namespace rope::cuda {

template <Layout kLayout, Angle kAngle>
using Instance = RotateInstance<BF16, kLayout, kAngle>;

extern const RotateTable kRotateBF16 = rotate_table<Instance>();

}  // namespace rope::cuda
