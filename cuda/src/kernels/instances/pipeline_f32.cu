#include "../pipeline.h"
#include "../pipeline_launch.cuh"

namespace rope::cuda {

template <Layout kLayout>
using Instance = PipelineInstance<F32, kLayout>;

extern const PipelineTable kPipelineF32 = pipeline_table<Instance>();

}  // namespace rope::cuda
