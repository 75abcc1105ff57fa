# Ships in the wheel, for cimport.
from pyrope._arguments cimport Call
from pyrope._capi cimport rope_apply_desc, rope_build_cos_sin_desc

cdef int build_rows(cos, sin, num_rows, offset, positions, dtype, row_stride, stream,
                    rope_build_cos_sin_desc* d) except -1
cdef str choose_angle(angle, theta, scaling, inv_freq)
cdef tuple set_table(dtype, columns, str angle, rope_apply_desc* d)
cdef int read_cos_sin(cos, sin, angles, k_cos, k_sin, k_angles, cos_sin_rows, cos_sin_stride, cos_sin_skipped,
                      rope_apply_desc* d, Call* c) except -1
