# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""pyrope.RopeAttention: attention over queries and keys that turn on their way."""

from libc.math cimport sqrt
from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from pyrope._arguments cimport (
    Call, as_count, as_flag, as_integer, as_positive, as_real, begin_call, read_array, read_elements, read_index,
    read_memory, refuse, refuse_read_only, require, shape_of,
)
from pyrope._capi cimport *
from pyrope._cos_sin cimport read_cos_sin
from pyrope._library cimport check, check_device
from pyrope._positions cimport read_all_positions
from pyrope._rope cimport Rope
from pyrope._view cimport KIND_FLOAT, View, is_array, is_immutable, read_pointer

from pyrope._fused import stages_of
from pyrope.errors import RopeError

cdef enum:
    WORKSPACE_ALIGNMENT = 256


cdef struct Tokens:
    int64_t sequences, tokens  # -1: an array is to bring it
    bint ragged


cdef int set_count(str name, str what, int64_t count, int64_t* known) except -1:
    if known[0] >= 0 and known[0] != count:
        raise ValueError(f"{name}: {count} {what}, must be {known[0]} as the other arguments say")
    known[0] = count
    return 0


cdef int read_strides(str name, object strides, Tokens* t, rope_attention_tensor* x) except -1:
    """(token stride, head stride) or (sequence stride, token stride, head stride), in elements."""
    if not isinstance(strides, (tuple, list)) or len(strides) not in (2, 3):
        raise TypeError(f"{name}: {strides!r}, must be (token stride, head stride) in elements, or (sequence stride, "
                        "token stride, head stride)")
    if 0 in strides:
        raise ValueError(f"{name}: {tuple(strides)!r}, a stride must not be 0")
    x.token_stride, x.head_stride = as_integer(name, strides[-2]), as_integer(name, strides[-1])
    if len(strides) == 3 and t.sequences != 1 and not t.ragged:
        x.sequence_stride = as_integer(name, strides[0])
    return 0


cdef int read_tensor(str name, object x, object strides, int32_t heads, int32_t dim, int32_t dtype, bint written,
                     Tokens* t, Call* c, rope_attention_tensor* tensor) except -1:
    """[sequences, tokens, heads, dim], or without the first dimension."""
    cdef View v
    if x is None:
        return refuse(name + "_strides", strides, f"given without {name}")
    if not is_array(x):
        if t.tokens < 0:
            count = "num_k_tokens" if name in ("k", "v", "k_out") else "num_q_tokens"
            raise TypeError(f"{count}: required with pointers")
        tensor.data = <void*>read_pointer(x, name, t.tokens == 0 or t.sequences == 0)
        return 0 if strides is None else read_strides(name + "_strides", strides, t, tensor)
    refuse(name + "_strides", strides, "only allowed with pointers, an array has its own")
    read_elements(name, x, dtype, c, &v)
    if written:
        refuse_read_only(name, &v)
        if is_immutable(x):
            raise TypeError(f"{name}: a jax.Array is immutable and cannot be written")
    cdef int last = v.ndim - 1
    if v.ndim not in (3, 4) or (v.ndim == 4 and t.ragged) or v.shape[last] != dim or v.shape[last - 1] != heads:
        leading = "tokens" if t.ragged else "sequences, tokens"
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be [{leading}, {heads}, {dim}]")
    if dim > 1 and v.strides[last] != 1:
        raise ValueError(f"{name}: a stride of {v.strides[last]} along a head, must be 1")
    if not t.ragged:
        set_count(name, "sequences", v.shape[0] if v.ndim == 4 else 1, &t.sequences)
    set_count(name, "tokens", v.shape[last - 2], &t.tokens)
    tensor.data = v.data
    # 0 is the library's default; where there is one of a kind its stride is never taken.
    tensor.head_stride = v.strides[last - 1] if heads > 1 else 0
    tensor.token_stride = v.strides[last - 2] if v.shape[last - 2] > 1 else 0
    tensor.sequence_stride = v.strides[0] if v.ndim == 4 and v.shape[0] > 1 else 0
    if (heads > 1 and tensor.head_stride == 0) or (v.shape[last - 2] > 1 and tensor.token_stride == 0) or (
            v.ndim == 4 and v.shape[0] > 1 and tensor.sequence_stride == 0):
        raise ValueError(f"{name}: a broadcast array (stride 0) is not supported")
    return 0


cdef int64_t read_count(str name, object value, int64_t usual) except -2:
    return usual if value is None else as_count(name, value, 0, INT32_MAX)


cdef class RopeAttention:
    """RopeAttention(rope, *, v_head_dim=None, causal=False, window_size=None, scale=None, softcap=0.0)
--

    Attention over queries and keys that are rotated on their way: ``softmax(scale * R(q) R(k)^T) v``.

    ``R`` is the rotation of ``rope``, with its bits; scores and sums are float32. Query ``i`` of a sequence stands at
    key ``i + num_k_tokens - num_q_tokens``, so that its last one stands at the last key: that is what ``causal`` and
    ``window_size`` count from, and positions too where a call does not give them. Like a Rope it is immutable, holds no
    device memory, and any number of threads may use it at once. The result of a query depends on its own sequence
    alone.

    Parameters
    ----------
    rope : Rope or FusedRope
        What q and k are and how they turn: ``head_dim`` (at most 256), heads, ``dtype``, ``device`` and all that says
        by which angles; ``num_q_heads`` is a multiple of ``num_k_heads``. A FusedRope has no norm, cache, output types
        or parts that do not turn.
    v_head_dim : int, optional
        Elements of a head of v and of the output, 2 to 256. Default: ``head_dim``.
    causal : bool
        Whether a query sees no key behind it.
    window_size : (int, int), optional
        How many keys before and behind its place a query sees; -1: all, which is the default. With ``causal`` the
        second is -1 or 0.
    scale : float, optional
        Of the scores. Default: ``1 / sqrt(head_dim)``.
    softcap : float
        Scores ``s`` become ``softcap * tanh(s / softcap)`` (Gemma 2, arXiv:2408.00118); 0: they stay.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it.

    Examples
    --------
    >>> import numpy as np, pyrope
    >>> rope = pyrope.Rope(head_dim=64, num_q_heads=4, num_k_heads=2, dtype="float32", device="cpu")
    >>> attention = pyrope.RopeAttention(rope, causal=True)
    >>> q, k, v = (np.ones((1, 5, heads, 64), np.float32) for heads in (4, 2, 2))
    >>> out = np.empty_like(q)
    >>> attention.apply(q, k, v, out)
    """

    cdef rope_attention_desc base
    cdef bint ready
    cdef readonly Rope rope
    cdef readonly bint causal
    cdef readonly tuple window_size  # type: tuple[int, int]

    def __init__(self, rope: Rope, *, v_head_dim: SupportsIndex | None = None, causal: bool = False,
                 window_size: tuple[SupportsIndex, SupportsIndex] | None = None, scale: SupportsFloat | None = None,
                 softcap: SupportsFloat = 0.0) -> None:
        if self.ready:
            raise RopeError("a RopeAttention is immutable and cannot be initialised again")
        if not isinstance(rope, Rope):
            raise TypeError(f"rope: {rope!r}, must be a Rope or a FusedRope")
        self.rope = rope
        self.rope._check_ready()
        for stage in stages_of(rope):
            raise ValueError(f"rope: has {stage}, must have nothing but a rotation")
        if rope.rotary_dim == 0:
            raise ValueError("rope: has rotary_dim=0; pass q_rotated and k_rotated to apply() where nothing turns")
        cdef rope_attention_desc* d = &self.base
        rope_attention_desc_init(d)
        cdef rope_apply_desc* r = &self.rope.base
        d.backend, d.dtype, d.num_threads = r.backend, r.dtype, r.num_threads
        d.head_dim, d.num_q_heads, d.num_k_heads = r.head_dim, r.num_q_heads, r.num_k_heads
        d.v_head_dim = d.head_dim if v_head_dim is None else as_count("v_head_dim", v_head_dim, 2,
                                                                      ROPE_MAX_ATTENTION_HEAD_DIM)
        d.scale = <float>(1 / sqrt(<double>d.head_dim) if scale is None else as_real("scale", scale))
        if d.scale <= 0:
            raise ValueError(f"scale: {scale}, must be above 0")
        d.softcap = <float>as_real("softcap", softcap)
        self.causal = as_flag("causal", causal)
        if window_size is None:
            window_size = -1, -1
        if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
            raise TypeError(f"window_size: {window_size!r}, must be two numbers of keys, before and behind; -1: all")
        d.window_left = as_count("window_size", window_size[0], -1, INT32_MAX)
        d.window_right = as_count("window_size", window_size[1], -1, INT32_MAX)
        self.window_size = d.window_left, d.window_right
        d.flags = ROPE_ATTENTION_WINDOW | (ROPE_ATTENTION_CAUSAL if self.causal else 0)
        self.workspace_size(0)  # whatever else the library refuses
        self.ready = True

    @property
    def v_head_dim(self) -> int:
        """Elements of a head of v and of the output."""
        return self.base.v_head_dim

    @property
    def scale(self) -> float:
        """What scores are multiplied with, a float32."""
        return self.base.scale

    @property
    def softcap(self) -> float:
        """What scores stay below; 0: anything."""
        return self.base.softcap

    def __reduce__(self):
        from functools import partial
        options = {"v_head_dim": self.v_head_dim, "causal": self.causal, "window_size": self.window_size,
                   "scale": self.scale, "softcap": self.softcap}
        return partial(type(self), **options), (self.rope,)

    def __eq__(self, other):
        return self is other or (type(self) is type(other) and parameters_of(self) == parameters_of(other))

    def __hash__(self):
        return hash(parameters_of(self))

    def __repr__(self):
        return (f"RopeAttention({self.rope!r}, v_head_dim={self.v_head_dim}, causal={self.causal}, "
                f"window_size={self.window_size}, scale={self.scale:.6g}, softcap={self.softcap:.6g})")

    cdef int _set_flags(self, q_rotated, k_rotated, rope_attention_desc* d) except -1:
        d[0] = self.base
        if as_flag("q_rotated", q_rotated):
            d.flags |= ROPE_ATTENTION_Q_ROTATED
        if as_flag("k_rotated", k_rotated):
            d.flags |= ROPE_ATTENTION_K_ROTATED
        if not (q_rotated and k_rotated):
            d.rotation = &self.rope.base
        return 0

    def workspace_size(self, num_q_tokens: SupportsIndex, num_k_tokens: SupportsIndex | None = None, *,
                       num_sequences: SupportsIndex = 1, q_rotated: bool = False, k_rotated: bool = False,
                       keeps_q: bool = False, keeps_k: bool = False) -> int:
        """Bytes of workspace that :meth:`apply` needs.

        Parameters
        ----------
        num_q_tokens, num_k_tokens : int
            Tokens of each sequence, or of ragged ones together. Default of the second: as many.
        num_sequences : int
            Sequences of equal length; 1 with ragged ones.
        q_rotated, k_rotated : bool
            As for :meth:`apply`.
        keeps_q, keeps_k : bool
            Whether ``q_out`` and ``k_out`` are given, which then need no workspace.
        """
        cdef rope_attention_desc d
        cdef int64_t size
        self._set_flags(q_rotated, k_rotated, &d)
        d.num_q_tokens = as_count("num_q_tokens", num_q_tokens, 0, INT32_MAX)
        d.num_k_tokens = read_count("num_k_tokens", num_k_tokens, d.num_q_tokens)
        d.num_sequences = as_count("num_sequences", num_sequences, 0, INT32_MAX)
        if as_flag("keeps_q", keeps_q):
            d.q_out.data = <void*>WORKSPACE_ALIGNMENT  # anything that is not NULL
        if as_flag("keeps_k", keeps_k):
            d.k_out.data = <void*>WORKSPACE_ALIGNMENT
        check(rope_attention_workspace(&d, &size))
        return size

    def apply(self, q: Memory, k: Memory, v: Memory, out: Memory, *, positions: Memory | None = None,
              offset: SupportsIndex = 0, lse: Memory | None = None, sinks: Memory | None = None,
              q_rotated: bool = False, k_rotated: bool = False, q_out: Memory | None = None,
              k_out: Memory | None = None, num_q_tokens: SupportsIndex | None = None,
              num_k_tokens: SupportsIndex | None = None, num_sequences: SupportsIndex | None = None,
              q_indptr: Memory | None = None, k_indptr: Memory | None = None,
              max_q_tokens: SupportsIndex | None = None, max_k_tokens: SupportsIndex | None = None,
              q_strides: AttentionStrides | None = None, k_strides: AttentionStrides | None = None,
              v_strides: AttentionStrides | None = None, out_strides: AttentionStrides | None = None,
              q_out_strides: AttentionStrides | None = None, k_out_strides: AttentionStrides | None = None,
              positions_stride: SupportsIndex | None = None,
              cos: Memory | None = None, sin: Memory | None = None, angles: Memory | None = None,
              cos_sin_rows: SupportsIndex | None = None, workspace: Memory | None = None,
              workspace_size: SupportsIndex | None = None, stream: Stream | None = None) -> None:
        """Rotate q and k, and attend.

        Parameters
        ----------
        q, k, v, out : pointer or array
            ``[sequences, tokens, heads, head_dim]`` of the Rope's dtype, or without the first dimension; v and out have
            ``v_head_dim``, k and v ``num_k_heads``. The elements of a head are neighbours; other strides may be any.
            ``out`` is written, and apart from everything else.
        positions : pointer or array, optional
            As for :meth:`Rope.apply` and, of a FusedRope with several positions a token, :meth:`FusedRope.apply`: those
            of q, and of k where it is rotated here. A token that these leave alone is not rotated.
        offset : int
            Without positions, query ``i`` of a sequence has position ``offset + num_k_tokens - num_q_tokens + i``; of
            ragged ones, 0.
        lse : pointer or array, optional
            ``[sequences, num_q_heads, num_q_tokens]`` float32, of ragged sequences ``[num_q_heads, num_q_tokens]``: the
            logarithm of each softmax's sum, that of a sink included; -infinity where nothing is seen, and then ``out``
            is 0.
        sinks : pointer or array, optional
            ``[num_q_heads]`` float32: the logit of a key without a value, which every query of the head sees (GPT-OSS).
        q_rotated, k_rotated : bool
            Whether q or k is rotated already, as keys of a cache are. k must be unless it has q's tokens.
        q_out, k_out : pointer or array, optional
            Where the rotated q and k are kept, in the form of q and k, which they may be.
        num_q_tokens, num_k_tokens, num_sequences : int
            With pointers: tokens of each sequence (default of k: as q) and how many sequences there are (default: 1);
            of ragged ones, all tokens together.
        q_indptr, k_indptr : pointer or array, optional
            Ragged sequences: ``[num_sequences + 1]`` int32, where each begins and ends in q, and in k and v; default of
            the second: the first.
        max_q_tokens, max_k_tokens : int
            With q_indptr and k_indptr: at least the longest sequence's tokens.
        q_strides, k_strides, v_strides, out_strides, q_out_strides, k_out_strides : tuple of int, optional
            With pointers: (token stride, head stride) or (sequence stride, token stride, head stride), in elements.
            Default: contiguous.
        positions_stride, cos, sin, angles, cos_sin_rows
            As for :meth:`FusedRope.apply`.
        workspace : pointer or array
            At least :meth:`workspace_size` bytes, aligned to 256, that no other call uses at the same time; on CUDA
            zeroed once before its first use. On the CPU it may be left out.
        workspace_size : int
            With workspace as a pointer: its bytes.
        stream : int or object, optional
            As for :meth:`Rope.apply`.

        Notes
        -----
        The notes of :meth:`Rope.apply` hold here too. Bits of q and k are the same on both devices, those of ``out``
        are not: sums have another order.

        Raises
        ------
        ValueError, TypeError
            An argument is not allowed; the text names it. Nothing is written.
        pyrope.UnsupportedError
            This build does not serve the shape.
        pyrope.CudaError
            There is no CUDA device, or the launch failed.
        """
        cdef rope_attention_desc d
        cdef rope_apply_desc turn
        cdef Call c
        cdef Tokens of_q, of_k
        if not self.ready:
            raise RopeError("this RopeAttention was never initialised, or its constructor refused the arguments")
        self._set_flags(q_rotated, k_rotated, &d)
        begin_call(d.backend, stream, None, &c)
        d.stream = c.stream
        c.device = self.rope.device_number
        check_device(self.rope.device_number)

        of_q.ragged = of_k.ragged = q_indptr is not None
        of_q.tokens, of_k.tokens = read_count("num_q_tokens", num_q_tokens, -1), read_count("num_k_tokens",
                                                                                            num_k_tokens, -1)
        of_q.sequences = read_count("num_sequences", num_sequences, -1)
        if of_q.ragged:
            read_ragged(q_indptr, k_indptr, max_q_tokens, max_k_tokens, &of_q, &d, &c)
        else:
            refuse("k_indptr", k_indptr, "only allowed with q_indptr")
            refuse("max_q_tokens", max_q_tokens, "only allowed with q_indptr")
            refuse("max_k_tokens", max_k_tokens, "only allowed with k_indptr")
        if of_q.sequences < 0 and not is_array(q):
            of_q.sequences = 1
        read_tensor("q", q, q_strides, d.num_q_heads, d.head_dim, d.dtype, False, &of_q, &c, &d.q)
        of_k.sequences = of_q.sequences
        if of_k.tokens < 0 and not is_array(k):
            of_k.tokens = of_q.tokens
        read_tensor("k", k, k_strides, d.num_k_heads, d.head_dim, d.dtype, False, &of_k, &c, &d.k)
        read_tensor("v", v, v_strides, d.num_k_heads, d.v_head_dim, d.dtype, False, &of_k, &c, &d.v)
        read_tensor("out", out, out_strides, d.num_q_heads, d.v_head_dim, d.dtype, True, &of_q, &c, &d.o)
        read_tensor("q_out", q_out, q_out_strides, d.num_q_heads, d.head_dim, d.dtype, True, &of_q, &c, &d.q_out)
        read_tensor("k_out", k_out, k_out_strides, d.num_k_heads, d.head_dim, d.dtype, True, &of_k, &c, &d.k_out)
        d.num_sequences, d.num_q_tokens, d.num_k_tokens = <int32_t>of_q.sequences, of_q.tokens, of_k.tokens

        cdef int64_t rows = of_q.tokens * (1 if of_q.ragged else of_q.sequences), count = rows * d.num_q_heads
        if lse is not None:
            d.lse = <float*>read_memory("lse", lse, KIND_FLOAT, 4, &count, "[sequences, num_q_heads, num_q_tokens]",
                                        True, &c)
        count = d.num_q_heads
        if sinks is not None:
            d.sinks = <float*>read_memory("sinks", sinks, KIND_FLOAT, 4, &count, "[num_q_heads]", False, &c)
        if d.rotation != NULL:
            turn = d.rotation[0]
            turn.flags = 0
            d.rotation = &turn
            c.num_tokens, c.inner_tokens = rows, 0 if of_q.ragged or of_q.sequences == 1 else of_q.tokens
            turn.num_tokens = rows
            read_all_positions(positions, offset, None, None, None, positions_stride, None, &turn, &c)
            read_cos_sin(cos, sin, angles, None, None, None, cos_sin_rows, None, None, &turn, &c)
            turn.sequence_length = 0
        elif positions is not None or offset != 0:
            raise ValueError(f"{'offset' if positions is None else 'positions'}: given, but q and k are rotated "
                             "already")
        self._run(&d, workspace, workspace_size, &c)

    cdef int _run(self, rope_attention_desc* d, workspace, workspace_size, Call* c) except -1:
        cdef rope_status status
        cdef int64_t needed = 0
        cdef void* own = NULL
        if workspace is not None:
            read_workspace(workspace, workspace_size, d, c)
        else:
            check(rope_attention_workspace(d, &needed))
        if needed:
            if d.backend == ROPE_BACKEND_CUDA:
                raise TypeError(f"workspace: required on CUDA, {needed} bytes")
            if posix_memalign(&own, WORKSPACE_ALIGNMENT, needed):
                raise MemoryError
            d.workspace, d.workspace_bytes = own, needed
        with nogil:
            status = rope_attention(d)
        free(own)
        return check(status)


cdef int read_ragged(q_indptr, k_indptr, max_q_tokens, max_k_tokens, Tokens* of_q, rope_attention_desc* d,
                     Call* c) except -1:
    cdef int64_t length = of_q.sequences + 1 if of_q.sequences >= 0 else -1
    cdef int32_t dtype = ROPE_INDEX_INT32
    if length < 0 and not is_array(q_indptr):
        raise TypeError("num_sequences: required with q_indptr as a pointer")
    d.q_indptr = <int32_t*>read_index("q_indptr", q_indptr, &length, &dtype, c)
    if k_indptr is not None and dtype == ROPE_INDEX_INT32:
        d.k_indptr = <int32_t*>read_index("k_indptr", k_indptr, &length, &dtype, c)
        require("max_k_tokens", max_k_tokens, "with k_indptr")
        d.max_k_tokens = as_count("max_k_tokens", max_k_tokens, 0, INT32_MAX)
    else:
        refuse("max_k_tokens", max_k_tokens, "only allowed with k_indptr")
    if dtype != ROPE_INDEX_INT32:
        raise TypeError(f"{'q_indptr' if d.k_indptr == NULL else 'k_indptr'}: dtype int64, must be int32")
    if length == 0:
        raise ValueError("q_indptr: empty, must be [num_sequences + 1]")
    require("max_q_tokens", max_q_tokens, "with q_indptr")
    d.max_q_tokens = as_count("max_q_tokens", max_q_tokens, 0, INT32_MAX)
    of_q.sequences = length - 1
    return 0


cdef int read_workspace(workspace, workspace_size, rope_attention_desc* d, Call* c) except -1:
    cdef View v
    cdef int64_t size = 1
    cdef int i
    if not is_array(workspace):
        require("workspace_size", workspace_size, "with workspace as a pointer")
        d.workspace_bytes = as_positive("workspace_size", workspace_size)
        d.workspace = <void*>read_pointer(workspace, "workspace", False)
        return 0
    refuse("workspace_size", workspace_size, "only allowed with workspace as a pointer")
    read_array("workspace", workspace, c, &v)
    refuse_read_only("workspace", &v)
    for i in range(v.ndim):
        size *= v.shape[i]
    d.workspace, d.workspace_bytes = v.data, size * v.itemsize
    return 0


cdef tuple parameters_of(RopeAttention attention):
    make, shape = attention.__reduce__()
    return shape, tuple(make.keywords.items())
