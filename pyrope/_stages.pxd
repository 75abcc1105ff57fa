# Ships in the wheel, for cimport.
from libc.stdint cimport int64_t, uint8_t

from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_groups, rope_quantize

cdef tuple set_quantize(str x, out_dtype, scale_kind, int64_t dim, rope_apply_desc* d)
cdef int set_still(dict options, rope_apply_desc* d) except -1
cdef tuple set_sections(sections, bint interleaved, pair_streams, uint8_t* streams, rope_apply_desc* d)
cdef int set_xpos(xpos, rope_apply_desc* d) except -1
cdef int set_norm(norm, str dtype, rope_apply_desc* d) except -1

cdef int read_weights(q, k, q_weight, k_weight, norm, rope_apply_desc* d, Call* c) except -1
cdef int read_sums(q_sums, k_sums, write_sums, rope_apply_desc* d, Call* c) except -1
cdef int read_scale(str name, object x, str tensor_name, object tensor_scale, object kind, int64_t heads, int64_t dim,
                    bint heads_first, rope_quantize* z, rope_groups* g, rope_apply_desc* d, Call* c) except -1
cdef int read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from,
                             rope_apply_desc* d, Call* c) except -1
