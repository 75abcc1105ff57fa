// Tables of cos and sin on the CPU, built for several instruction sets as rotate_loops.cpp.
#include "build_cos_sin.h"
#include "parallel.h"
#include "set_name.h"

namespace rope::cpu {
namespace {

struct Job {
  const CosSinParams& params;
  const uint64_t* table;
};

template <class D, Angle kAngle>
void build_rows(const void* context, int64_t begin, int64_t end) {
  using Storage = typename D::Storage;
  const auto& [p, table] = *static_cast<const Job*>(context);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = simple_position(p.positions, row);
    auto* cos = reinterpret_cast<Storage*>(p.cos + row * p.row_stride);
    auto* sin = reinterpret_cast<Storage*>(p.sin + row * p.row_stride);
#pragma GCC ivdep  // cos, sin and the words are apart
    for (int32_t i = 0; i < p.pairs; ++i) {
      const CosSin a = scaled_angle(phase_at<kAngle>(position, table[i]), p.scale, p.scale);
      cos[i] = D::narrow(a.cos);
      sin[i] = D::narrow(a.sin);
    }
  }
}

template <class D, Angle kAngle>
struct Instance {
  static int run(const CosSinParams& p, const uint64_t* table, const Execution& e) {
    const Job job{p, table};
    for_token_ranges(p.num_rows, 2 * p.pairs * int64_t(sizeof(typename D::Storage)), e.num_threads,
                     build_rows<D, kAngle>, &job);
    return 0;
  }
};

}  // namespace

extern const BuildTableSet ROPE_CONCAT(kBuildTable, ROPEROPE_CPU_SET) = build_cos_sin_set<Instance>();

}  // namespace rope::cpu
