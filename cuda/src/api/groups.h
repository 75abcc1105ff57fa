// Scales of groups of a row's elements, and blocks that hold theirs.
#pragma once

#include "checks.h"

namespace rope::api {

// A tensor that may be stored in them: what its fields are called, and its shape.
struct GroupedTensor {
  const char *quantize_name, *name;
  const rope_quantize& quantize;
  const rope_groups& groups;
  int32_t heads, dim;
  bool cached;
};

rope_status check_out_dtype(const char* name, int32_t value);
bool has_groups(const rope_quantize& q);  // or blocks

// Zero before; stays so where there are none.
rope_status read_groups(const rope_apply_desc& d, const GroupedTensor& x, Groups* g);

int64_t scale_row_bytes(const GroupedTensor& x, const Groups& g);

// Where scales are written: of a cache as one row with all that lies between them.
Rows scale_rows(const rope_apply_desc& d, const GroupedTensor& x, const Groups& g);

}  // namespace rope::api
