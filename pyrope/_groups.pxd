# Ships in the wheel, for cimport.
from libc.stdint cimport int64_t

from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_groups

cdef int set_groups(str x, scales, int64_t dim, rope_groups* g) except -1
cdef int read_groups(str name, object x, str tensor_name, object tensor_scale, object strides, int64_t heads,
                     int64_t dim, bint in_cache, bint heads_first, rope_groups* g, rope_apply_desc* d,
                     Call* c) except -1
