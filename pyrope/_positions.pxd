# Ships in the wheel, for cimport.
from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc

cdef int read_positions(positions, offset, indptr, offsets, num_requests, rope_apply_desc* d, Call* c) except -1
cdef int read_all_positions(positions, offset, indptr, offsets, num_requests, positions_stride, positions_from,
                            rope_apply_desc* d, Call* c) except -1
