#include "../rotate.h"
#include "../rotate_launch.cuh"

namespace rope::cuda {

template <Layout kLayout, Angle kAngle>
using Instance = RotateInstance<F32, kLayout, kAngle>;

extern const RotateTable kRotateF32 = rotate_table<Instance>();

}  // namespace rope::cuda
