from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc

cdef int read_rotated(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, rope_apply_desc* d,
                      Call* c) except -1
cdef int rotate(rope_apply_desc* d) except -1
