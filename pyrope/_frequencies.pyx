# cython: language_level=3, freethreading_compatible=True
"""theta, a pyrope.Scaling or a user's own numbers, to one word of frequency for each pair."""

from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from pyrope._arguments cimport as_flag, as_integer, as_real
from pyrope._capi cimport *
from pyrope._library cimport check

from pyrope import scaling as _scaling

_KINDS = {
    _scaling.Linear: ROPE_SCALING_LINEAR,
    _scaling.Llama3: ROPE_SCALING_LLAMA3,
    _scaling.NTK: ROPE_SCALING_NTK,
    _scaling.DynamicNTK: ROPE_SCALING_DYNAMIC_NTK,
    _scaling.YaRN: ROPE_SCALING_YARN,
    _scaling.LongRoPE: ROPE_SCALING_LONGROPE,
    _scaling.PairFactors: ROPE_SCALING_PAIR_FACTORS,
    _scaling.Proportional: ROPE_SCALING_PROPORTIONAL,
}

# Attributes of a pyrope.Scaling and where the descriptor has them, in bytes.
cdef rope_frequencies_desc _f
_REALS = {
    "factor": <uintptr_t>&_f.factor - <uintptr_t>&_f,
    "low_freq_factor": <uintptr_t>&_f.low_freq_factor - <uintptr_t>&_f,
    "high_freq_factor": <uintptr_t>&_f.high_freq_factor - <uintptr_t>&_f,
    "beta_fast": <uintptr_t>&_f.beta_fast - <uintptr_t>&_f,
    "beta_slow": <uintptr_t>&_f.beta_slow - <uintptr_t>&_f,
    "mscale": <uintptr_t>&_f.mscale - <uintptr_t>&_f,
    "mscale_all_dim": <uintptr_t>&_f.mscale_all_dim - <uintptr_t>&_f,
    "proportion": <uintptr_t>&_f.proportion - <uintptr_t>&_f,
}
_INTEGERS = {
    "original_max_position": <uintptr_t>&_f.original_max_position - <uintptr_t>&_f,
    "seq_len": <uintptr_t>&_f.seq_len - <uintptr_t>&_f,
}
_LISTS = {
    "pair_factors": <uintptr_t>&_f.pair_factors - <uintptr_t>&_f,
    "short_factors": <uintptr_t>&_f.short_factors - <uintptr_t>&_f,
    "long_factors": <uintptr_t>&_f.long_factors - <uintptr_t>&_f,
}


cdef tuple make_frequencies(object theta, object scaling, object inv_freq, int32_t angle, int32_t rotary_dim,
                            uint64_t* words, double* attention_factor):
    """Fills words, [2, rotary_dim / 2], and the factor; the frequencies in radians per position."""
    cdef rope_frequencies_desc f
    cdef int pairs = rotary_dim // 2, i
    rope_frequencies_desc_init(&f)
    f.angle, f.rotary_dim, f.position_dtype = angle, rotary_dim, ROPE_INDEX_FLOAT32
    cdef double* out = <double*>malloc((1 + len(_LISTS)) * pairs * sizeof(double))
    cdef double* lists = out + pairs
    if out == NULL:
        raise MemoryError
    try:
        if inv_freq is not None:
            if scaling is not None or theta != 10000.0:
                raise ValueError("inv_freq: not allowed together with theta or scaling")
            read_numbers("inv_freq", inv_freq, pairs, lists)
            f.scaling, f.inv_freq = ROPE_SCALING_CUSTOM, lists
        else:
            f.theta = as_real("theta", theta)
            if not f.theta > 0:
                raise ValueError(f"theta: {theta}, must be a finite number above 0")
            if scaling is not None:
                read_scaling(scaling, lists, &f)
        check(rope_frequencies(&f, words, out, attention_factor))
        return tuple([out[i] for i in range(pairs)])
    finally:
        free(out)


cdef int read_scaling(object scaling, double* lists, rope_frequencies_desc* f) except -1:
    """lists: [len(_LISTS), rotary_dim / 2], where the descriptor's lists go."""
    kind = next((_KINDS[base] for base in type(scaling).__mro__ if base in _KINDS), None)
    if kind is None:
        raise TypeError(f"scaling: {scaling!r} is not a pyrope.Scaling such as pyrope.Llama3(factor=8.0)")
    cdef char* fields = <char*>f
    cdef size_t at
    f.scaling = kind
    for name, value in vars(scaling).items():
        if value is None:
            continue
        if name in _LISTS:
            at = _LISTS[name]
            read_numbers(name, value, f.rotary_dim // 2, lists)
            (<double**>(fields + at))[0] = lists
            lists += f.rotary_dim // 2
        elif name == "truncate":
            f.no_truncate = not as_flag(name, value)
        elif value == 0:  # zero is the descriptor's word for "default"
            raise ValueError(f"{name}: {value}, must be above 0")
        elif name in _REALS:
            at = _REALS[name]
            (<double*>(fields + at))[0] = as_real(name, value)
        else:
            at = _INTEGERS[name]
            (<int64_t*>(fields + at))[0] = as_integer(name, value)
    return 0


cdef int read_numbers(str name, object values, int count, double* out) except -1:
    if not hasattr(values, "__len__") or not hasattr(values, "__getitem__") or isinstance(values, dict):
        raise TypeError(f"{name}: {values!r} is not a sequence of numbers")
    values = tuple(values)  # what it holds, whatever its __len__ says
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} values, must be rotary_dim / 2 = {count}")
    for i, value in enumerate(values):
        out[i] = as_real(name, value)
    return 0
