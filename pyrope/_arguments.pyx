# cython: language_level=3, freethreading_compatible=True
"""Arguments read into plain C values: numbers, names, flags, and memory of the shape and dtype that is asked for.

An error names the argument and says what is allowed.
"""

from operator import index

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uintptr_t

from pyrope._capi cimport *
from pyrope._view cimport (
    KIND_BFLOAT, KIND_FLOAT, KIND_INT, KIND_OPAQUE, KIND_UINT, ElementKind, View, is_array, read_pointer, read_stream,
    read_view,
)

DTYPES = {"float32": ROPE_DTYPE_F32, "float16": ROPE_DTYPE_F16, "bfloat16": ROPE_DTYPE_BF16}
LAYOUTS = {"neox": ROPE_LAYOUT_NEOX, "gptj": ROPE_LAYOUT_GPTJ}
ANGLES = {"exact": ROPE_ANGLE_EXACT, "fp32": ROPE_ANGLE_FP32}
DEVICES = {"cuda": ROPE_BACKEND_CUDA, "cpu": ROPE_BACKEND_CPU}
INDEX_DTYPES = {"int64": ROPE_INDEX_INT64, "int32": ROPE_INDEX_INT32}
POSITION_DTYPES = INDEX_DTYPES | {"float32": ROPE_INDEX_FLOAT32}

# ---- names, numbers, flags


cdef int32_t choose(str name, object value, dict allowed) except -1:
    key = value
    if not isinstance(value, str):  # also torch.bfloat16, numpy.float32, ...
        key = getattr(value, "__name__", None) or str(value).rpartition(".")[2]
    try:
        return allowed[key]
    except KeyError:
        raise ValueError(f"{name}: {value!r}, must be one of {', '.join(map(repr, allowed))}") from None


cdef int32_t choose_device(object device, int32_t* number) except -1:
    """The backend, and of "cuda:0" the number, else -1."""
    cdef str kind, colon, digits
    kind, colon, digits = str(device).partition(":")
    number[0] = -1
    if not colon:
        return choose("device", device, DEVICES)
    if kind != "cuda" or not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"device: {str(device)!r}, must be one of 'cuda', 'cpu', or 'cuda:0' and so on")
    number[0] = as_count("device", int(digits), 0, INT32_MAX)
    return ROPE_BACKEND_CUDA


cdef int refuse_unknown(str cls, str signature, dict options) except -1:
    """A keyword that is not in a constructor's signature."""
    known = [parameter.partition("=")[0].strip() for parameter in signature.strip("()").split(",")]
    for name in options:
        if name not in known:
            from difflib import get_close_matches
            near = get_close_matches(name, known, 1)
            raise TypeError(f"{name}: not an argument of {cls}" + (f"; did you mean {near[0]}?" if near else ""))
    return 0


cdef str name_of(dict names, int32_t number):
    """The name that `choose` makes the number of."""
    return next(name for name, value in names.items() if value == number)


cdef list unusual_of(object rope, dict options):
    """Those of options, which are names and defaults, that a rope has otherwise; as text."""
    return [f"{name}={getattr(rope, name)!r}" for name, usual in options.items() if getattr(rope, name) != usual]


cdef int64_t as_integer(str name, object value) except? -1:
    cdef int overflow = 0
    cdef long long number
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow == 0:
            return number
    try:
        if isinstance(value, bool):
            raise TypeError
        value = index(value)
    except TypeError:
        shown = f"{type(value).__name__}" if hasattr(value, "shape") else repr(value)
        hint = "; positions are passed as positions=" if name in ("num_tokens", "offset") else ""
        raise TypeError(f"{name}: {shown} is not an integer{hint}") from None
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{name}: {value} does not fit 64 bits")
    return value


cdef int64_t as_positive(str name, object value) except -1:
    cdef int64_t number = as_integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: {value}, must be at least 1")
    return number


cdef int32_t as_count(str name, object value, int64_t low, int64_t high) except? -1:
    cdef int64_t number = as_integer(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}: {number}, must be {low} to {high}")
    return <int32_t>number


cdef double as_real(str name, object value) except? -1:
    try:
        if not isinstance(value, bool):
            return value
    except (TypeError, OverflowError):
        pass
    raise TypeError(f"{name}: {value!r}, must be a real number")


cdef bint is_scale(object x):
    """Whether x is a number rather than memory: a float in whatever form. An integer is an address."""
    if type(x) is float:
        return True
    if type(x) is int or not hasattr(x, "__float__") or is_array(x):
        return False
    return not hasattr(x, "__index__") or getattr(getattr(x, "dtype", None), "kind", None) == "f"


cdef float as_scale(str name, object x) except? -1:
    cdef float scale = <float>as_real(name, x)
    if not 0 < scale < 3.4028236e38 or 1.0 / scale > 3.4028236e38:
        raise ValueError(f"{name}: {x!r}, must be above 0 and finite as a float32, as must its reciprocal")
    return scale


cdef int refuse_small(str name, object x) except -1:
    if isinstance(x, int) and 0 < x < 4096:
        raise TypeError(f"{name}: {x!r} is an integer, which would be an address; pass {float(x)!r}")
    return 0


cdef bint as_flag(str name, object value) except -1:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {value!r} is not a bool")
    return value


cdef int refuse(str name, object value, str reason) except -1:
    if value is not None:
        raise ValueError(f"{name}: {reason}")
    return 0


cdef int require(str name, object value, str reason) except -1:
    if value is None:
        raise TypeError(f"{name}: required {reason}")
    return 0


# ---- the shape of a Rope


cdef int set_shape(head_dim, num_q_heads, num_k_heads, rotary_dim, rotary_offset, rope_apply_desc* d) except -1:
    d.head_dim = as_count("head_dim", head_dim, 2, ROPE_MAX_HEAD_DIM)
    name = "rotary_dim"
    if rotary_dim is None:
        name, rotary_dim = "rotary_dim (default: head_dim)", head_dim
    d.rotary_dim = as_count(name, rotary_dim, 2, min(d.head_dim, ROPE_MAX_ROTARY_DIM))
    if d.rotary_dim % 2:
        raise ValueError(f"{name}: {d.rotary_dim}, must be even")
    d.rotary_offset = as_count("rotary_offset", rotary_offset, 0, d.head_dim - d.rotary_dim)
    d.num_q_heads = as_count("num_q_heads", num_q_heads, 0, ROPE_MAX_HEADS)
    d.num_k_heads = as_count("num_k_heads", num_k_heads, 0, ROPE_MAX_HEADS)
    if d.num_q_heads == 0 and d.num_k_heads == 0:
        raise ValueError("num_q_heads: 0 and num_k_heads: 0, at least one must be above 0")
    return 0


# ---- memory


cdef int begin_call(int32_t backend, object stream, object num_tokens, Call* c) except -1:
    c.backend, c.stream, c.num_tokens, c.inner_tokens, c.device = backend, NULL, -1, 0, -1
    c.sequence_length, c.placed = 0, False
    if stream is not None:
        c.stream = <void*>read_stream(stream)
        if c.stream != NULL and backend == ROPE_BACKEND_CPU:
            raise ValueError("stream: only allowed with device='cuda'")
    if num_tokens is not None:
        c.num_tokens = as_integer("num_tokens", num_tokens)
        if c.num_tokens < 0:
            raise ValueError(f"num_tokens: {num_tokens}, must be 0 to 2**31 - 1")
    return 0


cdef bint holds(View* v, int32_t element) noexcept:
    """Whether an array's elements are of that dtype, or may be."""
    if element == ONE_BYTE:
        return v.itemsize == 1
    return v.itemsize == (4 if element == ROPE_DTYPE_F32 else 2) and (
        v.kind == KIND_OPAQUE or v.kind == (KIND_BFLOAT if element == ROPE_DTYPE_BF16 else KIND_FLOAT))


cdef str element_name(int32_t element):
    return "of one byte" if element == ONE_BYTE else name_of(DTYPES, element)


cdef tuple shape_of(View* v):
    return tuple([v.shape[i] for i in range(v.ndim)])


cdef bint is_contiguous(View* v) noexcept:
    """Whether elements follow each other; true of an array without any."""
    cdef int64_t total = 1
    cdef bint contiguous = True
    cdef int i
    for i in range(v.ndim - 1, -1, -1):
        contiguous = contiguous and (v.shape[i] == 1 or v.strides[i] == total)
        total *= v.shape[i]
    return contiguous or total == 0


cdef int read_array(str name, object x, Call* c, View* v) except -1:
    """An array that the call's device can reach."""
    read_view(x, name, <uintptr_t>c.stream, v)
    if c.backend == ROPE_BACKEND_CUDA and not v.on_cuda:
        raise ValueError(f"{name}: the array is in host memory, must be on the CUDA device (device='cuda'); a Rope "
                         "for host memory is made with device='cpu'")
    if c.backend == ROPE_BACKEND_CPU and not v.on_cpu:
        raise ValueError(f"{name}: the array is on a CUDA device, must be in host memory (device='cpu')")
    if v.device >= 0:
        if c.device >= 0 and v.device != c.device:
            raise ValueError(f"{name}: on CUDA device {v.device}, must be on {c.device}, as the other arguments")
        c.device = v.device
    return 0


cdef int read_elements(str name, object x, int32_t element, Call* c, View* v) except -1:
    """An array of that dtype."""
    read_array(name, x, c, v)
    return 0 if holds(v, element) else refuse_dtype(name, x, element_name(element))


cdef int32_t index_dtype(str name, object x, View* v, bint floats=False) except -1:
    if floats and v.kind == KIND_FLOAT and v.itemsize == 4:
        return ROPE_INDEX_FLOAT32
    if v.kind != KIND_INT or v.itemsize not in (4, 8):
        refuse_dtype(name, x, "int32, int64 or float32" if floats else "int32 or int64")
    return ROPE_INDEX_INT32 if v.itemsize == 4 else ROPE_INDEX_INT64


cdef int refuse_dtype(str name, object x, str allowed) except -1:
    raise TypeError(f"{name}: dtype {getattr(x, 'dtype', 'unknown')}, must be {allowed}")


cdef int refuse_read_only(str name, View* v) except -1:
    if v.read_only:
        raise ValueError(f"{name}: the array is read-only")
    return 0


cdef int64_t stored_units(int32_t out_dtype, int64_t dim) noexcept:
    """What a row is counted in where it is stored: elements, or bytes of those that are not whole ones."""
    if out_dtype == ROPE_OUT_E2M1:
        return dim // 2
    if out_dtype == ROPE_OUT_Q8_0:
        return dim // 32 * 34
    return dim // 32 * 18 if out_dtype == ROPE_OUT_Q4_0 else dim


cdef void* read_index(str name, object x, int64_t* length, int32_t* dtype, Call* c, bint floats=False) except? NULL:
    """A pointer to `length` integers, or floats; an array's own dtype and length (where -1) replace those given."""
    if not is_array(x):
        return <void*>read_pointer(x, name, length[0] == 0)
    cdef View v
    read_array(name, x, c, &v)
    dtype[0] = index_dtype(name, x, &v, floats)
    must = f"must be contiguous [{length[0] if length[0] >= 0 else 'num_requests + 1'}]"
    if v.ndim == 1 and v.shape[0] != length[0] and length[0] >= 0:
        each = {"indptr": ", num_requests + 1", "offsets": ", one a request"}.get(
            name, ", one a token" if length[0] == c.num_tokens else "")
        raise ValueError(f"{name}: {length[0]} are needed{each}; got {v.shape[0]}")
    if v.ndim != 1:
        raise ValueError(f"{name}: shape {shape_of(&v)}, {must}")
    if v.shape[0] > 1 and v.strides[0] != 1:
        raise ValueError(f"{name}: stride {v.strides[0]}, {must} (stride 1)")
    length[0] = v.shape[0]
    return v.data


cdef void* read_memory(str name, object x, ElementKind kind, int itemsize, int64_t* count, str shape, bint written,
                       Call* c) except? NULL:
    """A pointer to `count` elements; -1 becomes what an array has."""
    if not is_array(x):
        return <void*>read_pointer(x, name, c.num_tokens == 0)
    cdef View v
    cdef int64_t total = 1
    cdef int i
    read_array(name, x, c, &v)
    if v.itemsize != itemsize or v.kind != kind:
        refuse_dtype(name, x, f"{ {KIND_INT: 'int', KIND_UINT: 'uint', KIND_FLOAT: 'float'}[kind]}{8 * itemsize}")
    for i in range(v.ndim):
        total *= v.shape[i]
    if (count[0] >= 0 and total != count[0]) or not is_contiguous(&v):
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be contiguous {shape}"
                         + (f", {count[0]} elements" if count[0] >= 0 else ""))
    if written:
        refuse_read_only(name, &v)
    count[0] = total
    return v.data
