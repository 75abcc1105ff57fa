#include "../pipeline.h"
#include "../pipeline_launch.cuh"

namespace rope::cuda {

template <Layout kLayout>
using Instance = PipelineInstance<F16, kLayout>;

extern const PipelineTable kPipelineF16 = pipeline_table<Instance>();

}  // namespace rope::cuda
