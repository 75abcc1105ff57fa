from libc.stdint cimport int64_t

from pyrope._view cimport View

cdef int check_rows(str name, View* v, int64_t width, int64_t least, int64_t* rows, int64_t* stride) except -1
