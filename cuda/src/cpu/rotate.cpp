#include "rotate.h"

#include "build_cos_sin.h"
#include "cache_rotation.h"
#include "pipeline.h"

namespace rope::cpu {
namespace {

template <class Set>
const Set& best_of([[maybe_unused]] const Set& v4, [[maybe_unused]] const Set& v3, const Set& baseline) {
#ifdef ROPEROPE_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return v4;
  if (__builtin_cpu_supports("x86-64-v3")) return v3;
#endif
  return baseline;
}

}  // namespace

#ifdef ROPEROPE_X86_LEVELS
#define ROPE_BEST_OF(set) best_of(set##V4, set##V3, set##Baseline)
#else
#define ROPE_BEST_OF(set) best_of(set##Baseline, set##Baseline, set##Baseline)
#endif

const RotateSet& rotate_set() {
  static const RotateSet& best = ROPE_BEST_OF(kRotate);
  return best;
}

const PipelineSet& pipeline_set() {
  static const PipelineSet& best = ROPE_BEST_OF(kPipeline);
  return best;
}

const BuildTableSet& build_cos_sins() {
  static const BuildTableSet& best = ROPE_BEST_OF(kBuildTable);
  return best;
}

const CacheRotationTable& cache_rotations() {
  static const CacheRotationTable& best = ROPE_BEST_OF(kCacheRotation);
  return best;
}

}  // namespace rope::cpu
