// From a plan to the kernel that carries it out.
#pragma once

#include "../../operations/operations.h"
#include "../parts/compiled.h"
#include "../parts/words.h"
#include "kernel.cuh"
#include "plan.h"

namespace rope::cuda {

inline void fill_args(const DecodeParams& p, const DecodePlan& plan, const PairData& pairs, Dtype dtype,
                      DecodeArgs* args) {
  constexpr float kLog2E = 1.44269504f;
  args->params = p;
  args->dtype = dtype;
  args->row_blocks = plan.row_blocks;
  args->split = plan.split;
  args->splits = plan.splits;
  args->counters = static_cast<int32_t*>(p.workspace);
  args->sums = reinterpret_cast<float*>(args->counters + kDecodeCounters);
  args->partial = args->sums + plan.units * plan.splits * 8 * plan.code.row_tiles * 2;
  args->score_scale = kLog2E * (p.softcap > 0 ? 2 * p.scale / p.softcap : p.scale);
  args->softcap_log2 = kLog2E * p.softcap;
  copy_words(pairs, p.turn.rotary_dim / 2, args->words);
}

// M: what products are of, in a cache of dtypes that of q. kCodes: all that are compiled for it.
template <class M, const auto& kCodes>
Outcome launch_decode(const DecodeParams& p, const PairData& pairs, const Execution& e, Dtype dtype) {
  const DecodePlan plan = plan_decode(p, multiprocessors(), !p.needs);
  if (plan.unsupported) return {0, plan.unsupported};
  if (p.needs) {
    *p.needs = plan.workspace_bytes;
    return {};
  }
  DecodeArgs args;
  fill_args(p, plan, pairs, dtype, &args);
  const auto launch_code = [&](auto index) {
    constexpr DecodeCode kCode = kCodes[index.value];
    using Shape = DecodeShape<kCode.type, kCode.head_dim, kCode.row_tiles>;
    using D = std::conditional_t<kCode.type == OutType::kSame, M, AnyHalf>;
    return launch<true>(decode_kernel<Shape, D, M, typename CodeOf<kCode.type>::Type>,
                        dim3{unsigned(plan.units), unsigned(plan.splits), 1}, dim3{kDecodeThreads, 1, 1}, args,
                        e.stream, e.dependent);
  };
  return {for_compiled<kCodes>(plan.code, launch_code), nullptr};
}

// A cache of codes, with queries of either dtype.
Outcome decode_codes(const DecodeParams& p, const PairData& pairs, const Execution& e, Dtype dtype);

template <class D>
Outcome decode(const DecodeParams& p, const PairData& pairs, const Execution& e) {
  return p.type == OutType::kSame ? launch_decode<D, kDtypeDecodeCodes>(p, pairs, e, D::kDtype)
                                  : decode_codes(p, pairs, e, D::kDtype);
}

}  // namespace rope::cuda
