# Ships in the wheel, for cimport.
from libc.stdint cimport int32_t

from pyrope._capi cimport rope_status

cdef int check(rope_status status) except -1
cdef int check_device(int32_t number) except -1
cdef bint is_compiled(int32_t backend, int32_t dtype, int32_t layout, int32_t angle) except -1
