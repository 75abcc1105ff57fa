#include "../pipeline.h"
#include "../pipeline_launch.cuh"

namespace rope::cuda {

template <Layout kLayout>
using Instance = PipelineInstance<BF16, kLayout>;

extern const PipelineTable kPipelineBF16 = pipeline_table<Instance>();

}  // namespace rope::cuda
