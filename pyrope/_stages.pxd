from libc.stdint cimport int64_t

from pyrope._capi cimport rope_apply_desc, rope_cache_tensor, rope_quantize
from pyrope._view cimport ElementKind

cdef int refuse(str name, object value, str reason) except -1
cdef int require(str name, object value, str reason) except -1
cdef void* read_memory(str name, object x, ElementKind kind, int itemsize, int64_t* count, str shape, bint written,
                       rope_apply_desc* d) except? NULL
cdef void* read_weight(str name, object x, int64_t heads, rope_apply_desc* d) except? NULL
cdef int read_scale(str name, object x, rope_quantize* z, str kind, int64_t heads, bint in_cache,
                    rope_apply_desc* d) except -1
cdef int read_pages(str name, object x, int64_t heads, int64_t dim, bint quantised, bint heads_first,
                    rope_apply_desc* d, rope_cache_tensor* pages) except -1
cdef int read_page_table(page_table, page_indptr, page_table_stride, rope_apply_desc* d) except -1
cdef int read_cos_sin(cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped, rope_apply_desc* d) except -1
cdef int read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from,
                     rope_apply_desc* d) except -1
