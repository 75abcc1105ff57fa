# Ships in the wheel, for cimport.
from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc

cdef int read_positions(positions, offset, indptr, offsets, num_requests, rope_apply_desc* d, Call* c) except -1
cdef int read_streams(positions, positions_stride, indptr, offset, rope_apply_desc* d, Call* c) except -1
cdef int read_positions_from(positions_from, positions, rope_apply_desc* d, Call* c) except -1
