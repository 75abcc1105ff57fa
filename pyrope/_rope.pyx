# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""pyrope.Rope."""

from libc.math cimport isfinite
from libc.stdint cimport INT32_MAX, int32_t, uint64_t
from libc.stdlib cimport free, malloc

from pyrope._arguments cimport (
    ANGLES, DEVICES, DTYPES, LAYOUTS, POSITION_DTYPES, Call, as_count, as_flag, as_integer, as_real, begin_call, choose,
    choose_device, name_of, refuse_unknown, set_shape,
)
from pyrope._call cimport rotate
from pyrope._capi cimport *
from pyrope._cos_sin cimport build_rows
from pyrope._frequencies cimport make_frequencies
from pyrope._library cimport check_device, is_compiled
from pyrope._positions cimport read_positions
from pyrope._tensors cimport read_rotated, read_sequences

from pyrope._library import build_info
from pyrope.errors import RopeError, UnsupportedError


cdef class Rope:
    """Rope(head_dim, num_q_heads, num_k_heads, *, rotary_dim=None, rotary_offset=0, theta=10000.0, scaling=None, \
inv_freq=None, attention_factor=None, layout='neox', dtype='bfloat16', angle='exact', device='cuda', \
position_dtype='int64', num_threads=0, enable_pdl=False, positions_ready=False, skip=-1)
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
        Backend. Their results are the same bits. ``"cuda:1"``: calls are refused while another device is current.
    position_dtype : {"int64", "int32", "float32"}
        Of ``positions``, ``indptr`` and ``offsets`` given as pointers; arrays bring their own. ``float32`` is for
        ``positions`` alone.
    num_threads : int
        CPU: threads to use at most; 0: one for each processor that the calling thread may run on, but no more than
        ``OMP_NUM_THREADS`` or the control group's quota.
    enable_pdl : bool
        CUDA: programmatic dependent launch (compute capability 9.0 and later, ignored elsewhere). The kernel may be
        scheduled before the previous one of the stream has ended, and waits for it before it touches memory. A kernel
        that is launched the same way behind it must wait likewise (``griddepcontrol.wait``). Behind a kernel that lets
        its dependents start early, or a GEMM of 10 microseconds, it takes half a microsecond off a call; behind a
        longer one that does not it adds as much.
    positions_ready : bool
        CUDA, with ``enable_pdl``: the caller's promise that nothing which is still pending on the stream at a call
        writes ``positions``, ``indptr`` or ``offsets``, or with a cache ``slots``, ``page_table``, ``page_indptr``,
        ``request_ids`` or ``cache_positions``. They may then be read before the wait: 0.2 to 0.4 microseconds less a
        call behind a kernel that lets its dependents start early, and no less behind others.
    skip : int or None
        Which of ``positions`` leaves its token alone; None: none does. With several positions a token it is the first
        that counts.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it.
    pyrope.UnsupportedError
        This build has no such kernel, for example ``device="cuda"`` without CUDA.

    Examples
    --------
    >>> import numpy as np, pyrope
    >>> rope = pyrope.Rope(head_dim=64, num_q_heads=2, num_k_heads=1, dtype="float32", device="cpu")
    >>> q, k = np.ones((3, 2, 64), np.float32), np.ones((3, 1, 64), np.float32)
    >>> rope.apply(q, k, offset=7)  # in place, positions 7, 8, 9
    """

    def __cinit__(self, *arguments, **options):
        if type(self).__module__ in ("pyrope._rope", "pyrope._fused"):  # a subclass may take others
            refuse_unknown(type(self).__name__, type(self).__text_signature__, options)

    def __init__(self, head_dim: SupportsIndex, num_q_heads: SupportsIndex, num_k_heads: SupportsIndex, *,
                 rotary_dim: SupportsIndex | None = None, rotary_offset: SupportsIndex = 0,
                 theta: SupportsFloat = 10000.0, scaling: Scaling | None = None, inv_freq: Numbers | None = None,
                 attention_factor: SupportsFloat | None = None, layout: Layout = "neox", dtype: DTypeLike = "bfloat16",
                 angle: Angle = "exact", device: DeviceLike = "cuda", position_dtype: PositionDTypeLike = "int64",
                 num_threads: SupportsIndex = 0, enable_pdl: bool = False, positions_ready: bool = False,
                 skip: SupportsIndex | None = -1) -> None:
        if self.ready:
            raise RopeError("a Rope is immutable and cannot be initialised again")
        cdef rope_apply_desc* d = &self.base
        rope_apply_desc_init(d)
        d.backend = choose_device(device, &self.device_number)
        d.dtype = choose("dtype", dtype, DTYPES)
        d.layout = choose("layout", layout, LAYOUTS)
        d.angle = choose("angle", angle, ANGLES)
        d.position_dtype = choose("position_dtype", position_dtype, POSITION_DTYPES)
        set_shape(head_dim, num_q_heads, num_k_heads, rotary_dim, rotary_offset, d)
        d.num_threads = as_count("num_threads", num_threads, 0, INT32_MAX)
        if d.num_threads and d.backend == ROPE_BACKEND_CUDA:
            raise ValueError(f"num_threads: {num_threads}, only allowed with device='cpu'")
        if as_flag("enable_pdl", enable_pdl):
            d.flags |= ROPE_FLAG_PDL
        if as_flag("positions_ready", positions_ready):
            if not enable_pdl:
                raise ValueError("positions_ready: True, only allowed with enable_pdl=True")
            d.flags |= ROPE_FLAG_POSITIONS_READY
        self.skip = None if skip is None else as_integer("skip", skip)
        if self.skip != -1:
            d.skip_kind = ROPE_SKIP_NONE if skip is None else ROPE_SKIP_VALUE
            d.skip_position = 0 if skip is None else self.skip

        self.device, self.dtype = name_of(DEVICES, d.backend), name_of(DTYPES, d.dtype)
        self.layout, self.angle = name_of(LAYOUTS, d.layout), name_of(ANGLES, d.angle)
        self.position_dtype = name_of(POSITION_DTYPES, d.position_dtype)
        self._set_frequencies(theta, scaling, inv_freq)
        if attention_factor is not None:
            self.attention_factor = as_real("attention_factor", attention_factor)
        d.attention_factor = <float>self.attention_factor
        if not (d.attention_factor > 0 and isfinite(d.attention_factor)):
            raise ValueError(f"attention_factor: {attention_factor}, must be above 0 and finite as a float32")
        if not is_compiled(d.backend, d.dtype, d.layout, d.angle):
            raise UnsupportedError(
                f"device: {self.device!r} with dtype={self.dtype!r}, layout={self.layout!r}, angle={self.angle!r} is "
                f"not in this build ({build_info()}); pass device='cpu', or see pyrope.supported()")
        self.ready = True

    cdef int _set_frequencies(self, theta, scaling, inv_freq) except -1:
        cdef int pairs = self.base.rotary_dim // 2, blocks = max(self.blocks, 1), size, i
        if pairs % blocks:
            raise ValueError(f"num_blocks: {blocks}, must divide rotary_dim / 2 = {pairs}")
        free(self.words)
        self.words = <uint64_t*>malloc(self.base.rotary_dim * sizeof(uint64_t))
        if self.words == NULL:
            raise MemoryError
        self.base.frequencies = self.words
        self.scaling, self.theta = scaling, None if inv_freq is not None else as_real("theta", theta)
        size = pairs if inv_freq is not None else pairs // blocks  # frequencies of a block are those of any other
        self.inv_freqs = make_frequencies(theta, scaling, inv_freq, self.base.angle, 2 * size, self.words,
                                          &self.attention_factor) * (pairs // size)
        words = [self.words[i] for i in range(2 * size)]
        for i in range(2 * pairs):
            self.words[i] = words[i % size + (size if i >= pairs else 0)]
        return 0

    def __dealloc__(self):
        free(self.words)

    @classmethod
    def from_hf_config(cls, config: object, *, layer_type: str | int | None = None, seq_len: int | None = None,
                       **options: Any) -> Self:
        """The Rope of a Hugging Face model configuration.

        Parameters
        ----------
        config : dict or object
            What config.json holds, or a configuration object of transformers.
        layer_type : str or int, optional
            Which of the model's layers: the name of their type, for example ``"sliding_attention"``, or the number of
            one; required if they differ or are not all rotated.
        seq_len : int, optional
            Tokens that the context will have, for ``dynamic`` and ``longrope``. Default: no more than the original
            training had.
        **options
            Arguments of ``Rope``; they replace what the configuration says.

        Notes
        -----
        Rotated is what the model rotates: with multi-head latent attention, ``qk_rope_head_dim`` elements of q and a
        single head of k. ``dtype``, ``device`` and ``angle`` do not come from the configuration. A model type that is
        not known is refused unless ``layout`` is given. A FusedRope gets the sections of M-RoPE, unless ``sections``
        is given.

        Raises
        ------
        ValueError, TypeError
            The configuration lacks or contradicts something; the text names the key.
        pyrope.UnsupportedError
            It asks for a rotation that pyrope does not have, of a model type that it does not know, or of layers that
            are not rotated.
        """
        from pyrope.hf import rope_options
        return cls(**rope_options(config, layer_type, seq_len, options, cls))

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.base.head_dim

    @property
    def rotary_dim(self) -> int:
        """Elements of a head that are rotated."""
        return self.base.rotary_dim

    @property
    def rotary_offset(self) -> int:
        """First rotated element of a head."""
        return self.base.rotary_offset

    @property
    def num_q_heads(self) -> int:
        """Heads of q."""
        return self.base.num_q_heads

    @property
    def num_k_heads(self) -> int:
        """Heads of k."""
        return self.base.num_k_heads

    @property
    def inv_freq(self) -> npt.NDArray[np.float64]:
        """float64 array [rotary_dim / 2]: radians per position, after scaling. Needs NumPy."""
        import numpy
        return numpy.array(self.inv_freqs)

    @property
    def frequencies(self) -> npt.NDArray[np.uint64]:
        """uint64 array [rotary_dim / 2]: the frequencies as the library takes them, for this ``angle``."""
        import numpy
        return numpy.array([self.words[i] for i in range(len(self.inv_freqs))], numpy.uint64)

    def cos_sin(self, num_positions: SupportsIndex,
                dtype: DTypeLike = "float32") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
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
        cdef rope_build_cos_sin_desc d
        self._begin_cos_sin("cos_sin", &d)
        d.backend, d.dtype = ROPE_BACKEND_CPU, choose("dtype", dtype, DTYPES)
        cdef int32_t rows = as_count("num_positions", num_positions, 1, INT32_MAX)
        element = "uint16" if d.dtype == ROPE_DTYPE_BF16 else name_of(DTYPES, d.dtype)
        cos, sin = [numpy.empty((rows, d.rotary_dim // 2), element) for _ in range(2)]
        build_rows(cos.ctypes.data, sin.ctypes.data, rows, 0, None, dtype, None, None, &d)
        return cos, sin

    def build_cos_sin(self, cos: Memory, sin: Memory | None = None, num_rows: SupportsIndex | None = None, *,
                      offset: SupportsIndex = 0, positions: Memory | None = None, dtype: DTypeLike | None = None,
                      row_stride: SupportsIndex | None = None, stream: Stream | None = None) -> None:
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
            ``[num_rows]`` int32, int64 or float32: the position of every row. -1 is a position like any other.
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
        cdef rope_build_cos_sin_desc d
        self._begin_cos_sin("build_cos_sin", &d)
        check_device(self.device_number)
        build_rows(cos, sin, num_rows, offset, positions, dtype, row_stride, stream, &d)

    cdef int _begin_cos_sin(self, str method, rope_build_cos_sin_desc* d) except -1:
        self._check_ready()
        if not self.inv_freqs:
            option = f"angle={self.angle!r}" if self.rotary_dim else "rotary_dim=0"
            raise ValueError(f"{method}: not with {option}, which has no frequencies")
        rope_build_cos_sin_desc_init(d)
        d.flags, d.backend, d.num_threads = self.base.flags & ROPE_FLAG_PDL, self.base.backend, self.base.num_threads
        d.angle, d.rotary_dim, d.position_dtype = self.base.angle, self.base.rotary_dim, self.base.position_dtype
        d.frequencies, d.attention_factor = self.base.frequencies, self.base.attention_factor
        return 0

    def __reduce__(self):
        from functools import partial
        options = {
            "rotary_dim": self.rotary_dim, "rotary_offset": self.rotary_offset, "scaling": self.scaling,
            "attention_factor": self.attention_factor, "layout": self.layout, "dtype": self.dtype, "angle": self.angle,
            "device": self.device if self.device_number < 0 else f"cuda:{self.device_number}",
            "position_dtype": self.position_dtype, "num_threads": self.base.num_threads,
            "enable_pdl": bool(self.base.flags & ROPE_FLAG_PDL),
            "positions_ready": bool(self.base.flags & ROPE_FLAG_POSITIONS_READY), "skip": self.skip,
        }
        if self.theta is None:
            options["inv_freq"] = self.inv_freqs
        else:
            options["theta"] = self.theta
        return partial(type(self), **options), (self.head_dim, self.num_q_heads, self.num_k_heads)

    def __eq__(self, other):
        return self is other or (type(self) is type(other) and parameters_of(self) == parameters_of(other))

    def __hash__(self):
        if self.hashed == 0:
            self.hashed = hash(parameters_of(self)) or 1
        return self.hashed

    def __repr__(self):
        scaling = f", scaling={self.scaling}" if self.scaling is not None else ""
        base = f", theta={self.theta}" if self.theta is not None else ", inv_freq=..." if self.inv_freqs else ""
        return (f"Rope(head_dim={self.head_dim}, num_q_heads={self.num_q_heads}, num_k_heads={self.num_k_heads}, "
                f"rotary_dim={self.rotary_dim}, rotary_offset={self.rotary_offset}{base}{scaling}, "
                f"layout={self.layout!r}, dtype={self.dtype!r}, angle={self.angle!r}, device={self.device!r})")

    def apply(self, q: Memory | None, k: Memory | None = None, num_tokens: SupportsIndex | None = None, *,
              positions: Memory | None = None, offset: SupportsIndex = 0, indptr: Memory | None = None,
              offsets: Memory | None = None, num_requests: SupportsIndex | None = None, q_out: Memory | None = None,
              k_out: Memory | None = None, q_strides: Strides | None = None, k_strides: Strides | None = None,
              q_out_strides: Strides | None = None, k_out_strides: Strides | None = None, inverse: bool = False,
              stream: Stream | None = None, sequence_length: SupportsIndex | None = None,
              skipped: Skipped = "leave") -> None:
        """Rotate q and k by their tokens' positions.

        Parameters
        ----------
        q, k : pointer, array or None
            ``[num_tokens, heads, head_dim]`` of the Rope's dtype. A pointer is an int or a cuda-python handle; an array
            is anything with ``__array_interface__`` (NumPy), ``__dlpack__`` or ``__cuda_array_interface__``, with
            leading dimensions of one stride or two, as ``[batch, tokens, heads, head_dim]`` in any order in memory, or
            ``[num_tokens, heads * head_dim]``. What is only read may be broadcast. A jax.Array is immutable: give the
            output. None leaves that one out.
        num_tokens : int
            0 to 2**31 - 1. Required with pointers; arrays bring it.
        positions : pointer or array, optional
            ``[num_tokens]`` int32, int64 or float32: the position of every token. With q ``[batch, tokens, heads,
            head_dim]`` an array may be ``[batch, tokens]``, of any strides, or have 1 in place of either, which is
            repeated. The integer -1 (see ``skip``) leaves a token alone, its output unwritten; other negative positions
            turn backwards. A float32 is taken as exactly the number it is, and makes NaNs where it is not finite.
        offset : int
            Without positions and indptr, token ``t`` has position ``offset + t``. Any 64-bit integer.
        sequence_length : int, optional
            Tokens of each sequence, which starts at the offset. Default: as arrays of over three dimensions say.
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
            With pointers: (token stride, head stride) in elements, or of sequences (sequence stride, token stride, head
            stride, element stride); 0 for what is only read and broadcast. Default: contiguous.
        skipped : {"leave", "copy"}
            Whether a token that is left alone is copied to an output of its dtype, or that is not written.
        inverse : bool
            The transposed rotation, which is the gradient: pass the gradients of the outputs. With an attention factor
            of 1 it also undoes the rotation, up to one rounding a pass.
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
        cdef rope_apply_desc d
        cdef Call c
        self._begin(num_tokens, inverse, stream, &d, &c)
        read_sequences(sequence_length, positions, indptr, skipped, &d, &c)
        read_rotated(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, &d, &c)
        read_positions(positions, offset, indptr, offsets, num_requests, &d, &c)
        rotate(&d)

    def inverse(self, *arguments: Any, **options: Any) -> None:
        """The transposed rotation: :meth:`apply` with ``inverse=True``, which costs half a microsecond less."""
        self.apply(*arguments, inverse=True, **options)

    cdef int _begin(self, num_tokens, inverse, stream, rope_apply_desc* d, Call* c) except -1:
        """What a call has whatever it works on."""
        self._check_ready()
        d[0] = self.base
        if inverse is not False and as_flag("inverse", inverse):
            d.flags |= ROPE_FLAG_INVERSE
        begin_call(d.backend, stream, num_tokens, c)
        d.stream = c.stream
        c.device = self.device_number
        return check_device(self.device_number)

    cdef int _check_ready(self) except -1:
        if not self.ready:
            raise RopeError(f"this {type(self).__name__} was never initialised, or its constructor refused the "
                            "arguments")
        return 0


cdef tuple parameters_of(Rope rope):
    make, shape = rope.__reduce__()
    return type(rope), shape, tuple(make.keywords.items())
