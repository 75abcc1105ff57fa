from pyrope._capi cimport rope_apply_desc

cdef int rotate(rope_apply_desc* d) except -1
