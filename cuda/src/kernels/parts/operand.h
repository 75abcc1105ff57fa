// What the plans of a pipeline ask of its operands.
#pragma once

#include <algorithm>

#include "../../operations/pipeline.h"
#include "plan.h"
#include "slot.h"

namespace rope::cuda {

// Is stored in groups or blocks, or some operand is.
inline bool is_grouped(const PipelineOperand& o) { return o.quantize.kind == ScaleKind::kGroup; }
inline bool is_grouped(const PipelineParams& p) {
  return std::any_of(p.operands, p.operands + p.num_operands, [](const auto& o) { return is_grouped(o); });
}

// Of all that is read and written.
inline Alignment alignment(const PipelineParams& p, int element_bytes) {
  Alignment a(element_bytes);
  a.add_elements(p.rotary_dim / 2);
  a.add_elements(p.rotary_offset);
  for (int i = 0; i < p.num_operands; ++i) {
    const PipelineOperand& o = p.operands[i];
    if (o.whole) a.add_elements(o.dim);
    a.add_address(o.in);
    a.add_bytes(o.in_token_stride | o.in_head_stride);
    if (is_grouped(o)) continue;  // stored byte by byte
    const int64_t stored_bytes = rope::stored_bytes(o.quantize.type, element_bytes, 1);
    a.add_bytes(reinterpret_cast<intptr_t>(o.out) | o.out_token_stride | o.out_head_stride | o.out_page_stride,
                stored_bytes);
  }
  return a;
}

// Some head must be seen as a whole: for a norm, or a scale that is computed.
inline bool reduces(const PipelineParams& p) { return p.norm.on || p.dynamic || is_grouped(p); }
inline bool reduces(const PipelineOperand& o) { return o.weight || o.quantize.kind == ScaleKind::kDynamic; }

inline int32_t rotated_of(const PipelineParams& p, const PipelineOperand& o) { return o.rotated ? p.rotary_dim : 0; }

// Slots of a head of `dim` elements: of what is stored without being rotated, and all.
inline int32_t stored_slots(const PipelineParams& p, const PipelineOperand& o, int32_t dim, int vec) {
  return o.whole ? stored_slots_of(dim - rotated_of(p, o), vec) : 0;
}

inline int32_t slots_of(const PipelineParams& p, const PipelineOperand& o, int32_t dim, int vec) {
  return rotated_of(p, o) / 2 / vec + stored_slots(p, o, dim, vec);
}

}  // namespace rope::cuda
