#include "groups.h"

#include <cmath>

namespace rope::api {
namespace {

// Elements that a type stores together, in one block or byte.
int32_t elements_together(int32_t out_dtype) {
  int32_t elements = out_dtype == ROPE_OUT_E2M1 ? 2 : 1;
  for_block(OutType(out_dtype), [&](auto block) { elements = block.kElements; });
  return elements;
}

bool is_block(int32_t out_dtype) { return elements_together(out_dtype) > 2; }

int64_t scale_bytes(ScaleType type) {
  int64_t bytes = 0;
  for_scale(type, [&](auto scale) { bytes = scale.kBytes; });
  return bytes;
}

rope_status read_tensor_scale(const rope_apply_desc& d, const GroupedTensor& x, Groups* g) {
  const rope_groups& from = x.groups;
  g->tensor_scale = from.tensor_scale == 0 ? 1.0f : from.tensor_scale;
  g->tensor_scales = from.tensor_scales;
  if (from.scale_dtype != ROPE_GROUP_SCALE_E4M3 && (from.tensor_scales || from.tensor_scale != 0))
    return fail(ROPE_ERR_INVALID_ARG, "%s.tensor_scale: only allowed with ROPE_GROUP_SCALE_E4M3 (2)", x.name);
  if (from.tensor_scales && from.tensor_scale != 0)
    return fail(ROPE_ERR_INVALID_ARG, "%s.tensor_scale: not allowed together with tensor_scales", x.name);
  if (!(g->tensor_scale > 0) || !std::isfinite(g->tensor_scale) || !std::isfinite(1 / g->tensor_scale))
    return fail(ROPE_ERR_INVALID_ARG, "%s.tensor_scale: %g, must be above 0 and finite, as must its reciprocal", x.name,
                double(from.tensor_scale));
  return check_pointer(d.backend, x.name, from.tensor_scales, 4);
}

// Dense where they are 0; else no two rows may share a scale.
rope_status read_scale_strides(const rope_apply_desc& d, const GroupedTensor& x, Groups* g) {
  const rope_groups& from = x.groups;
  const int64_t row = x.dim / from.size, bytes = scale_bytes(g->scale_type);
  const int64_t head_stride = from.head_stride ? from.head_stride : row;
  const int64_t row_stride = from.row_stride ? from.row_stride : x.heads * head_stride;
  const int64_t page_stride = from.page_stride || !x.cached || row_stride > INT64_MAX / 64 / ROPE_MAX_PAGE_SIZE
                                  ? from.page_stride
                                  : d.cache.page_size * row_stride;
  const struct {
    const char* what;
    int64_t stride, count;
  } dims[] = {{"page", page_stride, x.cached ? d.cache.num_pages : 1},
              {"row", row_stride, x.cached ? d.cache.page_size : d.num_tokens},
              {"head", head_stride, x.heads}};
  for (const auto& dim : dims)
    if (dim.count > 1 && (dim.stride < row || !is_addressable(dim.stride, dim.count)))
      return fail(ROPE_ERR_INVALID_ARG, "%s.%s_stride: %lld, must be at least the groups of a row, %lld", x.name,
                  dim.what, static_cast<long long>(dim.stride), static_cast<long long>(row));
  g->page_stride = page_stride * bytes;
  g->row_stride = row_stride * bytes;
  g->head_stride = head_stride * bytes;
  return ROPE_OK;
}

}  // namespace

rope_status check_out_dtype(const char* name, int32_t value) {
  return check_range(name, value, ROPE_OUT_SAME, ROPE_OUT_Q4_0);
}

bool has_groups(const rope_quantize& q) { return q.scale_kind == ROPE_SCALE_GROUP || is_block(q.out_dtype); }

rope_status read_groups(const rope_apply_desc& d, const GroupedTensor& x, Groups* g) {
  const rope_groups& from = x.groups;
  const int32_t together = elements_together(x.quantize.out_dtype);
  if (x.dim % together)
    return fail(ROPE_ERR_INVALID_ARG, "%s: a row of %d elements, must be a multiple of %d with this out_dtype",
                x.quantize_name, x.dim, together);
  if (x.quantize.scale_kind != ROPE_SCALE_GROUP) {
    if (from.size || from.scale_dtype || from.scales || from.page_stride || from.row_stride || from.head_stride ||
        from.tensor_scales || from.tensor_scale != 0)
      return fail(ROPE_ERR_INVALID_ARG, "%s: only allowed with ROPE_SCALE_GROUP", x.name);
    if (x.quantize.out_dtype == ROPE_OUT_E2M1 || (is_block(x.quantize.out_dtype) && x.quantize.scale_kind))
      return fail(ROPE_ERR_INVALID_ARG, "%s: scale_kind %d, must be %s with this out_dtype", x.quantize_name,
                  x.quantize.scale_kind, is_block(x.quantize.out_dtype) ? "0" : "ROPE_SCALE_GROUP (5)");
    if (is_block(x.quantize.out_dtype)) g->size = together;
    return ROPE_OK;
  }
  if (is_block(x.quantize.out_dtype))
    return fail(ROPE_ERR_INVALID_ARG, "%s: scale_kind %d, must be 0 with this out_dtype", x.quantize_name,
                x.quantize.scale_kind);
  const int32_t size = from.size;
  if ((size != 16 && size != 32 && size != 64 && size != 128) || x.dim % size)
    return fail(ROPE_ERR_INVALID_ARG, "%s.size: %d, must be 16, 32, 64 or 128 and divide a row of %d elements", x.name,
                size, x.dim);
  ROPE_TRY(check_range(x.name, from.scale_dtype, ROPE_GROUP_SCALE_F32, ROPE_GROUP_SCALE_E4M3));
  ROPE_TRY(check_range("reserved", from.reserved, 0, 0));
  g->size = size;
  g->scale_type = ScaleType(from.scale_dtype);
  ROPE_TRY(require_pointer(d.backend, x.name, from.scales, scale_bytes(g->scale_type), "as scales of groups"));
  g->scales = static_cast<char*>(from.scales);
  ROPE_TRY(read_tensor_scale(d, x, g));
  return read_scale_strides(d, x, g);
}

int64_t scale_row_bytes(const GroupedTensor& x, const Groups& g) { return x.dim / g.size * scale_bytes(g.scale_type); }

Rows scale_rows(const rope_apply_desc& d, const GroupedTensor& x, const Groups& g) {
  const int64_t row = scale_row_bytes(x, g);
  if (!x.cached) return {g.scales, {1, 0}, {d.num_tokens, g.row_stride}, {x.heads, g.head_stride}, {1, 0}, row};
  const int64_t end = (d.cache.num_pages - 1) * g.page_stride + (d.cache.page_size - 1) * g.row_stride +
                      (x.heads - 1) * g.head_stride + row;
  return {g.scales, {1, 0}, {1, 0}, {1, 0}, {1, 0}, end};
}

}  // namespace rope::api
