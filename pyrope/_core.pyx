# cython: language_level=3, freethreading_compatible=True
"""pyrope.Rope: Cython over roperope.h, and nothing else."""

from operator import index

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from pyrope._capi cimport *
from pyrope._view cimport (
    KIND_BFLOAT, KIND_FLOAT, KIND_INT, KIND_OPAQUE, View, is_array, is_immutable, read_pointer, read_stream,
    read_view,
)

from pyrope.errors import CudaError, RopeError, UnsupportedError
from pyrope.scaling import Scaling

_DTYPES = {"float32": ROPE_DTYPE_F32, "float16": ROPE_DTYPE_F16, "bfloat16": ROPE_DTYPE_BF16}
_LAYOUTS = {"neox": ROPE_LAYOUT_NEOX, "gptj": ROPE_LAYOUT_GPTJ}
_ANGLES = {"exact": ROPE_ANGLE_EXACT, "fp32": ROPE_ANGLE_FP32}
_DEVICES = {"cuda": ROPE_BACKEND_CUDA, "cpu": ROPE_BACKEND_CPU}
_INDEX_DTYPES = {"int64": ROPE_INDEX_INT64, "int32": ROPE_INDEX_INT32}

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


cdef int check(rope_status status) except -1:
    if status == ROPE_OK:
        return 0
    text = rope_last_error().decode()
    if status == ROPE_ERR_INVALID_ARG:
        raise ValueError(text)
    if status == ROPE_ERR_UNSUPPORTED or status == ROPE_ERR_VERSION:
        raise UnsupportedError(text)
    if status == ROPE_ERR_NO_DEVICE:
        raise CudaError(f"no CUDA device: {text}")
    raise (CudaError if status == ROPE_ERR_CUDA else RopeError)(text)


cdef int32_t choose(str name, object value, dict allowed) except -1:
    key = value
    if not isinstance(value, str):  # also torch.bfloat16, numpy.float32, ...
        key = getattr(value, "__name__", None) or str(value).rpartition(".")[2]
    try:
        return allowed[key]
    except KeyError:
        raise ValueError(f"{name}: {value!r}, must be one of {', '.join(map(repr, allowed))}") from None


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


cdef double as_real(str name, object value) except? -1:
    try:
        if not isinstance(value, bool):
            return value
    except (TypeError, OverflowError):
        pass
    raise TypeError(f"{name}: {value!r}, must be a real number")


cdef int read_numbers(str name, object values, int count, double* out) except -1:
    if not hasattr(values, "__len__") or not hasattr(values, "__getitem__") or isinstance(values, dict):
        raise TypeError(f"{name}: {values!r} is not a sequence of numbers")
    values = tuple(values)  # what it holds, whatever its __len__ says
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} values, must be rotary_dim / 2 = {count}")
    for i, value in enumerate(values):
        out[i] = as_real(name, value)
    return 0


cdef int32_t as_count(str name, object value, int64_t low, int64_t high) except? -1:
    cdef int64_t number = as_integer(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name}: {number}, must be {low} to {high}")
    return <int32_t>number


cdef int read_strides(str name, object strides, rope_tensor* tensor) except -1:
    """(token stride, head stride) in elements."""
    if not isinstance(strides, (tuple, list)) or len(strides) != 2:
        raise TypeError(f"{name}: {strides!r}, must be (token stride, head stride) in elements")
    tensor.token_stride = as_integer(name, strides[0])
    tensor.head_stride = as_integer(name, strides[1])
    if tensor.token_stride == 0 or tensor.head_stride == 0:
        raise ValueError(f"{name}: {tuple(strides)!r}, a stride must not be 0")
    return 0


cdef bint holds(View* v, int32_t element) noexcept:
    """Whether an array's elements are of that dtype, or may be."""
    if element == ONE_BYTE:
        return v.itemsize == 1
    return v.itemsize == (4 if element == ROPE_DTYPE_F32 else 2) and (
        v.kind == KIND_OPAQUE or v.kind == (KIND_BFLOAT if element == ROPE_DTYPE_BF16 else KIND_FLOAT))


cdef str element_name(int32_t element):
    return "of one byte" if element == ONE_BYTE else list(_DTYPES)[element]


cdef tuple shape_of(View* v):
    return tuple([v.shape[i] for i in range(v.ndim)])


cdef int check_device(str name, View* v, rope_apply_desc* d) except -1:
    if d.backend == ROPE_BACKEND_CUDA and not v.on_cuda:
        raise ValueError(f"{name}: the array is in host memory, must be on the CUDA device (device='cuda')")
    if d.backend == ROPE_BACKEND_CPU and not v.on_cpu:
        raise ValueError(f"{name}: the array is on a CUDA device, must be in host memory (device='cpu')")
    return 0


cdef int read_call_stream(object stream, rope_apply_desc* d) except -1:
    d.stream = <void*>read_stream(stream)
    if d.stream != NULL and d.backend == ROPE_BACKEND_CPU:
        raise ValueError("stream: only allowed with device='cuda'")
    return 0


cdef class Rope:
    """Rope(head_dim, num_q_heads, num_k_heads, *, rotary_dim=None, rotary_offset=0, theta=10000.0, scaling=None, \
inv_freq=None, attention_factor=None, layout='neox', dtype='bfloat16', angle='exact', device='cuda', \
position_dtype='int64', num_threads=0, enable_pdl=False, positions_ready=False)
--

    Rotary position embedding of fixed shape and parameters (RoFormer, arXiv:2104.09864).

    Every pair ``i`` of the rotated part of a head turns by ``position * inv_freq[i]`` radians. A ``Rope`` holds no
    device memory and no reference to what it is applied to; it is immutable, and any number of threads may use it at
    once.

    Parameters
    ----------
    head_dim : int
        Elements of a head, 2 to 2**20.
    num_q_heads, num_k_heads : int
        Heads of q and of k. ``num_k_heads`` may be 0 if k is never given, ``num_q_heads`` likewise.
    rotary_dim : int, optional
        Elements of a head that are rotated: even, at most ``head_dim`` and 2048. Default: ``head_dim``.
    rotary_offset : int
        First rotated element of a head.
    theta : float
        Base of the frequencies ``theta ** (-2 i / rotary_dim)``; > 0. Not allowed with ``inv_freq``.
    scaling : pyrope.Scaling, optional
        ``pyrope.Linear(...)``, ``pyrope.Llama3(...)``, ``pyrope.YaRN(...)``, ... (see ``pyrope.scaling``).
    inv_freq : sequence of float, optional
        ``[rotary_dim / 2]`` frequencies in radians per position instead of theta and scaling, each taken as exactly
        the number it is.
    attention_factor : float, optional
        What cos and sin are multiplied with. Default: what the scaling says; 1 but for YaRN and LongRoPE.
    layout : {"neox", "gptj"}
        Which elements form a pair: ``i`` with ``i + rotary_dim / 2``, or ``2 i`` with ``2 i + 1``.
    dtype : {"float32", "float16", "bfloat16"}
        Of q, k and their outputs. The rotation is computed in float32 and rounded once.
    angle : {"exact", "fp32"}
        ``exact``: cos and sin within 1e-7 of the true ones at every position up to 2**31 - 1. ``fp32``: of the float32
        product ``float32(position) * float32(inv_freq)``, as the tables of Hugging Face and vLLM hold.
    device : {"cuda", "cpu"}
        Backend. Their results are the same bits.
    position_dtype : {"int64", "int32"}
        Of ``positions``, ``indptr`` and ``offsets`` given as pointers; arrays bring their own.
    num_threads : int
        CPU: threads to use at most; 0: all of the process's.
    enable_pdl : bool
        CUDA: programmatic dependent launch (compute capability 9.0 and later, ignored elsewhere). The kernel may be
        scheduled before the previous one of the stream has ended, and waits for it before it touches memory. A kernel
        that is launched the same way behind it must wait likewise (``griddepcontrol.wait``).
    positions_ready : bool
        CUDA, with ``enable_pdl``: the caller's promise that nothing which is still pending on the stream at a call
        writes ``positions``, ``indptr`` or ``offsets``, or with a cache ``slots``, ``page_table``, ``page_indptr``,
        ``request_ids`` or ``cache_positions``. They may then be read before the wait: 0.1 microseconds less a call at
        a few tokens, 0.5 with a norm.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it.
    pyrope.UnsupportedError
        This build has no such kernel, for example ``device="cuda"`` without CUDA.

    Examples
    --------
    >>> import numpy as np, pyrope
    >>> rope = pyrope.Rope(head_dim=64, num_q_heads=2, num_k_heads=1, device="cpu")
    >>> q, k = np.ones((3, 2, 64), np.float32), np.ones((3, 1, 64), np.float32)
    >>> rope.apply(q, k, offset=7)  # in place, positions 7, 8, 9
    """

    def __init__(self, head_dim, num_q_heads, num_k_heads, *, rotary_dim=None, rotary_offset=0, theta=10000.0,
                 scaling=None, inv_freq=None, attention_factor=None, layout="neox", dtype="bfloat16", angle="exact",
                 device="cuda", position_dtype="int64", num_threads=0, enable_pdl=False, positions_ready=False):
        if self.ready:
            raise RopeError("a Rope is immutable and cannot be initialised again")
        self._clear()
        cdef rope_apply_desc* d = &self.base
        d.backend = choose("device", device, _DEVICES)
        d.dtype = choose("dtype", dtype, _DTYPES)
        d.layout = choose("layout", layout, _LAYOUTS)
        d.angle = choose("angle", angle, _ANGLES)
        d.position_dtype = choose("position_dtype", position_dtype, _INDEX_DTYPES)
        d.head_dim = as_count("head_dim", head_dim, 2, ROPE_MAX_HEAD_DIM)
        rotary_name = "rotary_dim"
        if rotary_dim is None:
            rotary_name, rotary_dim = "rotary_dim (default: head_dim)", head_dim
        d.rotary_dim = as_count(rotary_name, rotary_dim, 2, min(d.head_dim, ROPE_MAX_ROTARY_DIM))
        if d.rotary_dim % 2:
            raise ValueError(f"{rotary_name}: {d.rotary_dim}, must be even")
        d.rotary_offset = as_count("rotary_offset", rotary_offset, 0, d.head_dim - d.rotary_dim)
        d.num_q_heads = as_count("num_q_heads", num_q_heads, 0, ROPE_MAX_HEADS)
        d.num_k_heads = as_count("num_k_heads", num_k_heads, 0, ROPE_MAX_HEADS)
        if d.num_q_heads == 0 and d.num_k_heads == 0:
            raise ValueError("num_q_heads: 0 and num_k_heads: 0, at least one must be above 0")
        d.num_threads = as_count("num_threads", num_threads, 0, (1 << 31) - 1)
        if d.num_threads and d.backend == ROPE_BACKEND_CUDA:
            raise ValueError(f"num_threads: {num_threads}, only allowed with device='cpu'")
        for name, value in (("enable_pdl", enable_pdl), ("positions_ready", positions_ready)):
            if not isinstance(value, bool):
                raise TypeError(f"{name}: {value!r} is not a bool")
        if positions_ready and not enable_pdl:
            raise ValueError("positions_ready: True, only allowed with enable_pdl=True")
        if enable_pdl:
            d.flags |= ROPE_FLAG_PDL | (ROPE_FLAG_POSITIONS_READY if positions_ready else 0)

        self.dtype, self.layout = list(_DTYPES)[d.dtype], list(_LAYOUTS)[d.layout]
        self.angle, self.device = list(_ANGLES)[d.angle], list(_DEVICES)[d.backend]
        self.position_dtype = list(_INDEX_DTYPES)[d.position_dtype]
        self.scaling, self.theta = scaling, None if inv_freq is not None else as_real("theta", theta)
        self._make_frequencies(theta, scaling, inv_freq)
        if attention_factor is not None:
            self.attention_factor = as_real("attention_factor", attention_factor)
        d.attention_factor = <float>self.attention_factor
        if not 0 < d.attention_factor < 3.0e38:
            raise ValueError(f"attention_factor: {attention_factor}, must be above 0 and finite as a float32")
        self._check_compiled()
        self.ready = True

    cdef void _clear(self) noexcept:
        free(self.words)
        self.words = NULL
        rope_apply_desc_init(&self.base)

    @classmethod
    def from_hf_config(cls, config, *, layer_type=None, seq_len=None, **options):
        """The Rope of a Hugging Face model configuration.

        Parameters
        ----------
        config : dict or object
            What config.json holds, or a configuration object of transformers.
        layer_type : str, optional
            Which of the model's layers, for example ``"sliding_attention"``; required if they differ.
        seq_len : int, optional
            Tokens that the context will have, for ``dynamic`` and ``longrope``. Default: no more than the original
            training had.
        **options
            Arguments of ``Rope``; they replace what the configuration says.

        Notes
        -----
        Rotated is what the model rotates: with multi-head latent attention, ``qk_rope_head_dim`` elements of q and a
        single head of k. ``dtype``, ``device`` and ``angle`` do not come from the configuration.

        Raises
        ------
        ValueError, TypeError
            The configuration lacks or contradicts something; the text names the key.
        pyrope.UnsupportedError
            It asks for a rotation that pyrope does not have.
        """
        from pyrope.hf import rope_options
        return cls(**rope_options(config, layer_type, seq_len, options, cls))

    cdef int _make_frequencies(self, theta, scaling, inv_freq) except -1:
        cdef rope_frequencies_desc f
        cdef int pairs = self.base.rotary_dim // 2, i
        rope_frequencies_desc_init(&f)
        f.angle, f.rotary_dim = self.base.angle, self.base.rotary_dim
        cdef double* out = <double*>malloc((1 + len(_LISTS)) * pairs * sizeof(double))
        cdef double* lists = out + pairs
        self.words = <uint64_t*>malloc(pairs * sizeof(uint64_t))
        if out == NULL or self.words == NULL:
            free(out)
            raise MemoryError
        try:
            if inv_freq is not None:
                if scaling is not None or theta != 10000.0:
                    raise ValueError("inv_freq: not allowed together with theta or scaling")
                read_numbers("inv_freq", inv_freq, pairs, lists)
                f.scaling, f.inv_freq = ROPE_SCALING_CUSTOM, lists
            else:
                f.theta = self.theta
                if not f.theta > 0:
                    raise ValueError(f"theta: {theta}, must be a finite number above 0")
                if scaling is not None:
                    self._read_scaling(scaling, lists, &f)
            check(rope_frequencies(&f, self.words, out, &self.attention_factor))
            self.inv_freqs = tuple([out[i] for i in range(pairs)])
        finally:
            free(out)
        return 0

    cdef int _read_scaling(self, scaling, double* lists, rope_frequencies_desc* f) except -1:
        """lists: [len(_LISTS), rotary_dim / 2], where the descriptor's lists go."""
        if not isinstance(scaling, Scaling) or type(scaling) is Scaling:
            raise TypeError(f"scaling: {scaling!r} is not a pyrope.Scaling such as pyrope.Llama3(factor=8.0)")
        cdef char* fields = <char*>f
        cdef size_t at
        f.scaling = scaling.kind
        for name, value in vars(scaling).items():
            if value is None:
                continue
            if name in _LISTS:
                at = _LISTS[name]
                read_numbers(name, value, f.rotary_dim // 2, lists)
                (<double**>(fields + at))[0] = lists
                lists += f.rotary_dim // 2
            elif name == "truncate":
                if not isinstance(value, bool):
                    raise TypeError(f"truncate: {value!r} is not a bool")
                f.no_truncate = not value
            elif value == 0:  # zero is the descriptor's word for "default"
                raise ValueError(f"{name}: {value}, must be above 0")
            elif name in _REALS:
                at = _REALS[name]
                (<double*>(fields + at))[0] = as_real(name, value)
            else:
                at = _INTEGERS[name]
                (<int64_t*>(fields + at))[0] = as_integer(name, value)
        return 0

    cdef int _check_compiled(self) except -1:
        cdef rope_support_query query
        cdef int32_t yes
        query.struct_size = sizeof(query)
        query.backend, query.dtype, query.layout = self.base.backend, self.base.dtype, self.base.layout
        query.angle = self.base.angle
        check(rope_query_support(&query, &yes))
        if not yes:
            raise UnsupportedError(
                f"device: {self.device!r} with dtype={self.dtype!r}, layout={self.layout!r}, angle={self.angle!r} is "
                f"not in this build ({build_info()}); pass device='cpu', or see pyrope.supported()")
        return 0

    def __dealloc__(self):
        free(self.words)

    @property
    def head_dim(self):
        """Elements of a head."""
        return self.base.head_dim

    @property
    def rotary_dim(self):
        """Elements of a head that are rotated."""
        return self.base.rotary_dim

    @property
    def rotary_offset(self):
        """First rotated element of a head."""
        return self.base.rotary_offset

    @property
    def num_q_heads(self):
        """Heads of q."""
        return self.base.num_q_heads

    @property
    def num_k_heads(self):
        """Heads of k."""
        return self.base.num_k_heads

    @property
    def inv_freq(self):
        """float64 array [rotary_dim / 2]: radians per position, after scaling. Needs NumPy."""
        import numpy
        return numpy.array(self.inv_freqs)

    @property
    def frequencies(self):
        """uint64 array [rotary_dim / 2]: the frequencies as the library takes them, for this ``angle``."""
        import numpy
        return numpy.array([self.words[i] for i in range(len(self.inv_freqs))], numpy.uint64)

    def cos_sin(self, num_positions, dtype="float32"):
        """Tables of the cosines and sines of positions 0 to num_positions - 1, as ``angle="cos_sin"`` takes them.

        Parameters
        ----------
        num_positions : int
            1 to 2**31 - 1.
        dtype : {"float32", "float16", "bfloat16"}
            What the arrays hold, rounded once.

        Returns
        -------
        (cos, sin)
            Arrays ``[num_positions, rotary_dim / 2]``, times the attention factor; ``bfloat16``, which NumPy does not
            have, as uint16.
        """
        import numpy
        if not self.inv_freqs:
            raise ValueError(f"cos_sin: not with angle={self.angle!r}, which has no frequencies")
        cdef rope_build_cos_sin_desc d
        rope_build_cos_sin_desc_init(&d)
        d.backend, d.dtype, d.angle = ROPE_BACKEND_CPU, choose("dtype", dtype, _DTYPES), self.base.angle
        d.rotary_dim, d.frequencies, d.attention_factor = self.base.rotary_dim, self.words, self.base.attention_factor
        d.num_rows = as_count("num_positions", num_positions, 1, (1 << 31) - 1)
        element = ("float32", "float16", "uint16")[d.dtype]
        cos, sin = [numpy.empty((d.num_rows, d.rotary_dim // 2), element) for _ in range(2)]
        d.cos, d.sin = <void*><uintptr_t>cos.ctypes.data, <void*><uintptr_t>sin.ctypes.data
        cdef rope_status status
        with nogil:
            status = rope_build_cos_sin(&d)
        check(status)
        return cos, sin

    def build_cos_sin(self, cos, sin=None, num_rows=None, *, offset=0, positions=None, dtype=None, row_stride=None,
                    stream=None):
        """Fill a table of cosines and sines, as ``angle="cos_sin"`` takes it, in memory of the Rope's device.

        Parameters
        ----------
        cos, sin : pointer or array
            Where to put them: ``[num_rows, rotary_dim / 2]`` each; without ``sin``, ``cos`` is
            ``[num_rows, rotary_dim]``, cosines before sines. Rows are contiguous and their stride is the same in both.
        num_rows : int
            0 to 2**31 - 1. Required with pointers; arrays bring it.
        offset : int
            Without positions, row ``r`` is that of position ``offset + r``. Any 64-bit integer.
        positions : pointer or array, optional
            ``[num_rows]`` int32 or int64: the position of every row. -1 is a position like any other.
        dtype : {"float32", "float16", "bfloat16"}, optional
            What the rows hold, rounded once. Arrays bring it; default with pointers: float32.
        row_stride : int, optional
            With pointers: elements between rows, at most 2**20. Default: contiguous.
        stream : int or object, optional
            As for :meth:`apply`.

        Notes
        -----
        The values are the cosines and sines that :meth:`apply` turns by, the attention factor included: by a float32
        table, a :class:`FusedRope` of ``angle="cos_sin"`` and the same dtype gives the bits of this Rope. The notes of
        :meth:`apply` hold here too.

        Raises
        ------
        ValueError, TypeError
            An argument is not allowed; the text names it. Nothing is written.
        pyrope.CudaError
            There is no CUDA device, or the launch failed.
        """
        from pyrope._cos_sin import build_cos_sin
        build_cos_sin(self, cos, sin, num_rows, offset, positions, dtype, row_stride, stream)

    def __reduce__(self):
        from functools import partial
        options = {
            "rotary_dim": self.rotary_dim, "rotary_offset": self.rotary_offset, "scaling": self.scaling,
            "attention_factor": self.attention_factor, "layout": self.layout, "dtype": self.dtype, "angle": self.angle,
            "device": self.device, "position_dtype": self.position_dtype, "num_threads": self.base.num_threads,
            "enable_pdl": bool(self.base.flags & ROPE_FLAG_PDL),
            "positions_ready": bool(self.base.flags & ROPE_FLAG_POSITIONS_READY),
        }
        if self.theta is None:
            options["inv_freq"] = self.inv_freqs
        else:
            options["theta"] = self.theta
        return partial(type(self), **options), (self.head_dim, self.num_q_heads, self.num_k_heads)

    def __repr__(self):
        scaling = f", scaling={self.scaling}" if self.scaling is not None else ""
        base = f", theta={self.theta}" if self.theta is not None else ", inv_freq=..." if self.inv_freqs else ""
        return (f"Rope(head_dim={self.head_dim}, num_q_heads={self.num_q_heads}, num_k_heads={self.num_k_heads}, "
                f"rotary_dim={self.rotary_dim}, rotary_offset={self.rotary_offset}{base}{scaling}, "
                f"layout={self.layout!r}, dtype={self.dtype!r}, angle={self.angle!r}, device={self.device!r})")

    def apply(self, q, k=None, num_tokens=None, *, positions=None, offset=0, indptr=None, offsets=None,
              num_requests=None, q_out=None, k_out=None, q_strides=None, k_strides=None, q_out_strides=None,
              k_out_strides=None, stream=None):
        """Rotate q and k by their tokens' positions.

        Parameters
        ----------
        q, k : pointer, array or None
            ``[num_tokens, heads, head_dim]`` of the Rope's dtype, the last dimension contiguous. A pointer is an int or
            a cuda-python handle; an array is anything with ``__array_interface__`` (NumPy), ``__dlpack__`` or
            ``__cuda_array_interface__``, with any leading dimensions that fold into one, or
            ``[num_tokens, heads * head_dim]``. A jax.Array is immutable: give the output. None leaves that one out.
        num_tokens : int
            0 to 2**31 - 1. Required with pointers; arrays bring it.
        positions : pointer or array, optional
            ``[num_tokens]`` int32 or int64: the position of every token. -1 leaves a token alone, its output unwritten.
            Other negative positions turn backwards.
        offset : int
            Without positions and indptr, token ``t`` has position ``offset + t``. Any 64-bit integer.
        indptr, offsets : pointer or array, optional
            Ragged requests: token ``t`` with ``indptr[r] <= t < indptr[r + 1]`` has position
            ``offsets[r] + t - indptr[r]``; without offsets, requests start at 0. ``[num_requests + 1]`` and
            ``[num_requests]``, int32 or int64, both the same. Tokens outside every request are left alone.
        num_requests : int
            Required with indptr as a pointer; an array brings it.
        q_out, k_out : pointer or array, optional
            Where to put the results, in the form of q and k; what is not rotated is copied. Default: in place, where
            what is not rotated is neither read nor written. Memory must be exactly the input's, or apart from
            everything else in the call.
        q_strides, k_strides, q_out_strides, k_out_strides : (int, int), optional
            With pointers: (token stride, head stride) in elements. Default: contiguous.
        stream : int or object, optional
            CUDA stream of the current device, as a handle or an object with ``__cuda_stream__``. Default: the legacy
            default stream.

        Notes
        -----
        On CUDA the call queues one kernel and returns; it allocates nothing, never synchronises, and can be captured
        in a CUDA graph. Memory and stream must stay valid until the work is done. On the CPU the work is done when the
        call returns. The GIL is released either way.

        Raises
        ------
        ValueError, TypeError
            An argument is not allowed; the text names it. Nothing is written.
        pyrope.CudaError
            There is no CUDA device, or the launch failed.
        """
        self._run(0, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out, q_strides,
                  k_strides, q_out_strides, k_out_strides, stream)

    def inverse(self, q, k=None, num_tokens=None, *, positions=None, offset=0, indptr=None, offsets=None,
                num_requests=None, q_out=None, k_out=None, q_strides=None, k_strides=None, q_out_strides=None,
                k_out_strides=None, stream=None):
        """The transposed rotation, with the arguments of :meth:`apply`.

        It is the gradient of :meth:`apply`: pass the gradients of its outputs. With an attention factor of 1 it also
        undoes the rotation, up to one rounding a pass.
        """
        self._run(ROPE_FLAG_INVERSE, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out,
                  q_strides, k_strides, q_out_strides, k_out_strides, stream)

    cdef int _run(self, int flags, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out,
                  q_strides, k_strides, q_out_strides, k_out_strides, stream) except -1:
        if not self.ready:
            raise RopeError("this Rope was never initialised, or its constructor refused the arguments")
        cdef rope_apply_desc d = self.base
        self._read_call(&d, flags, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out,
                        q_strides, k_strides, q_out_strides, k_out_strides, stream)
        cdef rope_status status
        with nogil:
            status = rope_apply(&d)
        check(status)
        return 0

    cdef int _read_call(self, rope_apply_desc* d, int flags, q, k, num_tokens, positions, offset, indptr, offsets,
                        num_requests, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides,
                        stream) except -1:
        """What a call has without stages. Those that d already names say what the outputs hold and where k goes."""
        cdef int32_t q_element = ONE_BYTE if d.q_quantize.out_dtype else d.dtype
        cdef int32_t k_element = ONE_BYTE if d.k_quantize.out_dtype else d.dtype
        cdef bint in_cache = d.cache.kind != ROPE_CACHE_NONE
        self._read_launch(flags, num_tokens, stream, d)
        if q is None and k is None:
            raise TypeError("q and k: both None, at least one must be given")
        if q is not None:
            self._read_heads("q", q, q_strides, d.num_q_heads, d.head_dim, d.dtype, q_out is None, d, &d.q)
        elif q_strides is not None:
            raise ValueError("q_strides: given without q")
        if k is not None:
            self._read_heads("k", k, k_strides, d.num_k_heads, d.head_dim, d.dtype,
                             k_out is None and not in_cache, d, &d.k)
        elif k_strides is not None:
            raise ValueError("k_strides: given without k")
        if q_out is not None:
            if q is None:
                raise ValueError("q_out: given without q")
            self._read_heads("q_out", q_out, q_out_strides, d.num_q_heads, d.head_dim, q_element, True, d,
                             &d.q_out)
        elif q_out_strides is not None:
            raise ValueError("q_out_strides: given without q_out")
        if k_out is not None:
            if k is None:
                raise ValueError("k_out: given without k")
            self._read_heads("k_out", k_out, k_out_strides, d.num_k_heads, d.head_dim, k_element, True, d,
                             &d.k_out)
        elif k_out_strides is not None:
            raise ValueError("k_out_strides: given without k_out")
        if d.num_tokens < 0:
            raise TypeError("num_tokens: required with pointers")
        return self._read_positions(positions, offset, indptr, offsets, num_requests, d)

    cdef int _read_launch(self, int flags, num_tokens, stream, rope_apply_desc* d) except -1:
        """Beside the stream: num_tokens, -1 where arrays are to bring it."""
        read_call_stream(stream, d)
        d.flags |= flags
        d.frequencies = self.words
        d.num_tokens = -1
        if num_tokens is not None:
            d.num_tokens = as_integer("num_tokens", num_tokens)
            if d.num_tokens < 0:
                raise ValueError(f"num_tokens: {num_tokens}, must be 0 to 2**31 - 1")
        return 0

    cdef int _read_positions(self, positions, offset, indptr, offsets, num_requests, rope_apply_desc* d) except -1:
        cdef int64_t length
        if positions is not None:
            length = d.num_tokens
            d.positions = self._read_index("positions", positions, &length, &d.position_dtype, d)
        elif indptr is not None:
            self._read_ragged(indptr, offsets, num_requests, d)
        if indptr is None and (offsets is not None or num_requests is not None):
            raise ValueError(f"{'num_requests' if offsets is None else 'offsets'}: only allowed with indptr")
        if positions is not None and indptr is not None:
            raise ValueError("indptr: not allowed together with positions")
        d.offset = as_integer("offset", offset)
        return 0

    cdef int _read_heads(self, str name, object x, object strides, int64_t heads, int64_t head_dim, int32_t element,
                         bint written, rope_apply_desc* d, rope_tensor* tensor) except -1:
        if heads == 0:
            raise ValueError(f"{name}: given, but the Rope has num_{name[0]}_heads=0")
        if not is_array(x):
            tensor.data = <void*>read_pointer(x, name, d.num_tokens == 0)
            return 0 if strides is None else read_strides(name + "_strides", strides, tensor)
        if strides is not None:
            raise ValueError(f"{name}_strides: only allowed with pointers, an array has its own")
        cdef View v
        read_view(x, name, <uintptr_t>d.stream, &v)
        check_device(name, &v, d)
        if not holds(&v, element):
            raise TypeError(f"{name}: dtype {getattr(x, 'dtype', 'unknown')}, must be {element_name(element)}")
        if written and v.read_only:
            raise ValueError(f"{name}: the array is read-only")
        if written and is_immutable(x):
            raise TypeError(f"{name}: a jax.Array is immutable and cannot be written; pass {name[0]}_out= elsewhere")

        # [..., heads, head_dim] or [num_tokens, heads * head_dim]
        cdef int leading = v.ndim - 2
        tensor.head_stride = head_dim
        if v.ndim >= 3 and v.shape[v.ndim - 2] == heads and v.shape[v.ndim - 1] == head_dim:
            if heads > 1:
                tensor.head_stride = v.strides[v.ndim - 2]
        elif v.ndim == 2 and v.shape[1] == heads * head_dim:
            leading = 1
        else:
            raise ValueError(f"{name}: shape {shape_of(&v)}, must be "
                             f"[num_tokens, {heads}, {head_dim}] or two-dimensional [num_tokens, {heads * head_dim}]")
        if v.strides[v.ndim - 1] != 1:
            raise ValueError(f"{name}: the last dimension has stride {v.strides[v.ndim - 1]}, must be contiguous (1)")
        cdef int64_t tokens = 1, stride = 0
        cdef int i
        for i in range(leading - 1, -1, -1):
            if v.shape[i] == 1:
                continue
            if tokens == 1:
                stride = v.strides[i]
            elif tokens and v.strides[i] != stride * tokens:
                raise ValueError(f"{name}: the leading dimensions do not fold into one dimension of tokens; "
                                 "call once for each index of the outer ones")
            tokens *= v.shape[i]
        if (tokens > 1 and stride == 0) or tensor.head_stride == 0:
            raise ValueError(f"{name}: a broadcast array (stride 0) is not supported")
        tensor.token_stride = stride
        tensor.data = v.data
        if d.num_tokens >= 0 and tokens != d.num_tokens:
            raise ValueError(f"{name}: {tokens} tokens, must be {d.num_tokens} as num_tokens or the other arguments")
        d.num_tokens = tokens
        return 0

    cdef void* _read_index(self, str name, object x, int64_t* length, int32_t* dtype,
                           rope_apply_desc* d) except? NULL:
        """A pointer to `length` integers; an array's own dtype and length (where -1) replace those given."""
        if not is_array(x):
            return <void*>read_pointer(x, name, length[0] == 0)
        cdef View v
        read_view(x, name, <uintptr_t>d.stream, &v)
        check_device(name, &v, d)
        if v.kind != KIND_INT or v.itemsize not in (4, 8):
            raise TypeError(f"{name}: dtype {getattr(x, 'dtype', 'unknown')}, must be int32 or int64")
        must = f"must be contiguous [{length[0] if length[0] >= 0 else 'num_requests + 1'}]"
        if v.ndim != 1 or (v.shape[0] != length[0] and length[0] >= 0):
            raise ValueError(f"{name}: shape {shape_of(&v)}, {must}")
        if v.shape[0] > 1 and v.strides[0] != 1:
            raise ValueError(f"{name}: stride {v.strides[0]}, {must} (stride 1)")
        length[0] = v.shape[0]
        dtype[0] = ROPE_INDEX_INT32 if v.itemsize == 4 else ROPE_INDEX_INT64
        return v.data

    cdef int _read_ragged(self, indptr, offsets, num_requests, rope_apply_desc* d) except -1:
        cdef int32_t dtype
        cdef int64_t length = -1
        if num_requests is not None:
            length = as_count("num_requests", num_requests, 1, (1 << 31) - 1)
            length += 1
        d.indptr = self._read_index("indptr", indptr, &length, &d.position_dtype, d)
        if length < 0:
            raise TypeError("num_requests: required with indptr as a pointer")
        if length < 2:
            raise ValueError(f"indptr: {length} values, must be num_requests + 1, at least 2")
        d.num_requests = length - 1
        if offsets is not None:
            dtype = d.position_dtype
            length = d.num_requests
            d.offsets = self._read_index("offsets", offsets, &length, &d.position_dtype, d)
            if dtype != d.position_dtype:
                raise TypeError("offsets: must have the dtype of indptr")
        return 0


def device_count():
    """Number of CUDA devices that this library can use; 0 without a driver, or if built without CUDA."""
    return rope_device_count()


def build_info():
    """One line: what the library was built with, and the instruction set its CPU backend runs."""
    return rope_build_info().decode()


def version():
    """Version of the library, "major.minor.patch"."""
    cdef int v = rope_version()
    return f"{v >> 16}.{v >> 8 & 255}.{v & 255}"


def supported():
    """Every compiled combination, as (device, dtype, layout, angle)."""
    cdef rope_support_query query
    cdef int32_t yes
    found = []
    query.struct_size = sizeof(query)
    for device, query.backend in _DEVICES.items():
        for dtype, query.dtype in _DTYPES.items():
            for layout, query.layout in _LAYOUTS.items():
                for angle, query.angle in _ANGLES.items():
                    check(rope_query_support(&query, &yes))
                    if yes:
                        found.append((device, dtype, layout, angle))
    return found
