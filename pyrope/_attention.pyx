# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""pyrope.RopeAttention: attention over queries and keys that turn on their way."""

from libc.math cimport sqrt
from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from pyrope._arguments cimport Call, as_count, as_flag, as_real, begin_call, read_memory, require
from pyrope._attention_tensors cimport (
    Tokens, read_count, read_inputs, read_sums, read_tensor, read_tokens, read_turn, read_workspace,
)
from pyrope._capi cimport *
from pyrope._library cimport check, check_device
from pyrope._rope cimport Rope
from pyrope._view cimport KIND_FLOAT

from pyrope._fused import stages_of
from pyrope.errors import RopeError

cdef enum:
    WORKSPACE_ALIGNMENT = 256


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
        self._begin(q_rotated, k_rotated, stream, &d, &c)
        read_tokens(q, k, num_q_tokens, num_k_tokens, num_sequences, q_indptr, k_indptr, max_q_tokens, max_k_tokens,
                    &of_q, &of_k, &d, &c)
        read_inputs(q, q_strides, k, k_strides, v, v_strides, &of_q, &of_k, &d, &c)
        read_tensor("out", out, out_strides, d.num_q_heads, d.v_head_dim, d.dtype, True, &of_q, &c, &d.o)
        read_tensor("q_out", q_out, q_out_strides, d.num_q_heads, d.head_dim, d.dtype, True, &of_q, &c, &d.q_out)
        read_tensor("k_out", k_out, k_out_strides, d.num_k_heads, d.head_dim, d.dtype, True, &of_k, &c, &d.k_out)
        d.num_sequences, d.num_q_tokens, d.num_k_tokens = <int32_t>of_q.sequences, of_q.tokens, of_k.tokens

        read_sums(lse, True, sinks, &of_q, &d, &c)
        read_turn(positions, offset, positions_stride, cos, sin, angles, cos_sin_rows, &of_q, &turn, &d, &c)
        self._run(&d, workspace, workspace_size, &c)

    cdef int _begin(self, q_rotated, k_rotated, stream, rope_attention_desc* d, Call* c) except -1:
        if not self.ready:
            raise RopeError("this RopeAttention was never initialised, or its constructor refused the arguments")
        self._set_flags(q_rotated, k_rotated, d)
        begin_call(d.backend, stream, None, c)
        d.stream = c.stream
        c.device = self.rope.device_number
        return check_device(self.rope.device_number)

    cdef int _run(self, rope_attention_desc* d, workspace, workspace_size, Call* c) except -1:
        cdef rope_status status
        cdef int64_t needed = 0
        cdef void* own = NULL
        if workspace is not None:
            read_workspace(workspace, workspace_size, &d.workspace, &d.workspace_bytes, c)
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

    def backward_workspace_size(self, num_q_tokens: SupportsIndex, num_k_tokens: SupportsIndex | None = None, *,
                                num_sequences: SupportsIndex = 1, ragged: bool = False) -> int:
        """Bytes of workspace that :meth:`backward` needs: none on the CPU.

        Parameters
        ----------
        num_q_tokens, num_k_tokens, num_sequences : int
            As for :meth:`backward`.
        ragged : bool
            Whether sequences are ragged.
        """
        cdef rope_attention_desc d
        cdef rope_attention_backward_desc b
        cdef int64_t size
        self._set_flags(True, True, &d)
        d.num_q_tokens = as_count("num_q_tokens", num_q_tokens, 0, INT32_MAX)
        d.num_k_tokens = read_count("num_k_tokens", num_k_tokens, d.num_q_tokens)
        d.num_sequences = as_count("num_sequences", num_sequences, 0, INT32_MAX)
        if as_flag("ragged", ragged):
            d.q_indptr = d.k_indptr = <int32_t*>WORKSPACE_ALIGNMENT  # anything that is not NULL
        rope_attention_backward_desc_init(&b)
        b.forward = &d
        check(rope_attention_backward_workspace(&b, &size))
        return size

    def backward(self, d_out: Memory, q: Memory, k: Memory, v: Memory, out: Memory, lse: Memory, dq: Memory, dk: Memory,
                 dv: Memory, *, positions: Memory | None = None, offset: SupportsIndex = 0,
                 sinks: Memory | None = None, d_sinks: Memory | None = None, d_lse: Memory | None = None,
                 q_rotated: bool = False, k_rotated: bool = False, deterministic: bool = False,
                 num_q_tokens: SupportsIndex | None = None, num_k_tokens: SupportsIndex | None = None,
                 num_sequences: SupportsIndex | None = None,
                 q_indptr: Memory | None = None, k_indptr: Memory | None = None,
                 max_q_tokens: SupportsIndex | None = None, max_k_tokens: SupportsIndex | None = None,
                 d_out_strides: AttentionStrides | None = None, q_strides: AttentionStrides | None = None,
                 k_strides: AttentionStrides | None = None, v_strides: AttentionStrides | None = None,
                 out_strides: AttentionStrides | None = None, dq_strides: AttentionStrides | None = None,
                 dk_strides: AttentionStrides | None = None, dv_strides: AttentionStrides | None = None,
                 positions_stride: SupportsIndex | None = None,
                 cos: Memory | None = None, sin: Memory | None = None, angles: Memory | None = None,
                 cos_sin_rows: SupportsIndex | None = None, workspace: Memory | None = None,
                 workspace_size: SupportsIndex | None = None, stream: Stream | None = None) -> None:
        """Gradients of what :meth:`apply` did, with the same options.

        Parameters
        ----------
        d_out : pointer or array
            The gradient of ``out``, as ``out``.
        q, k : pointer or array
            As they were multiplied: what :meth:`apply` stored to ``q_out`` and ``k_out`` where it rotated them.
        v, out, lse, sinks : pointer or array
            As :meth:`apply` read and wrote them.
        dq, dk, dv : pointer or array
            As q, k and v. They are written, and apart from everything else. Where q or k was rotated, its gradient is
            turned back by the inverse rotation of :meth:`Rope.apply`.
        d_sinks : pointer or array, optional
            ``[num_q_heads]`` float32, written.
        d_lse : pointer or array, optional
            The gradient of ``lse``, as ``lse``. Default: 0.
        deterministic : bool
            Whether the bits are to be the same in every run, as they always are on the CPU.
        workspace : pointer or array
            On CUDA: at least :meth:`backward_workspace_size` bytes, aligned to 256, that no other call uses at the same
            time.

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
        cdef rope_attention_backward_desc b
        cdef rope_apply_desc turn
        cdef Call c
        cdef Tokens of_q, of_k
        cdef int64_t heads = self.base.num_q_heads, rows
        cdef rope_status status
        self._begin(q_rotated, k_rotated, stream, &d, &c)
        rope_attention_backward_desc_init(&b)
        b.forward = &d
        if as_flag("deterministic", deterministic):
            b.flags = ROPE_ATTENTION_BACKWARD_DETERMINISTIC
        read_tokens(q, k, num_q_tokens, num_k_tokens, num_sequences, q_indptr, k_indptr, max_q_tokens, max_k_tokens,
                    &of_q, &of_k, &d, &c)
        read_inputs(q, q_strides, k, k_strides, v, v_strides, &of_q, &of_k, &d, &c)
        d.q_out, d.k_out = d.q, d.k
        if d.rotation == NULL or q_rotated:
            d.q_out.data = NULL
        if d.rotation == NULL or k_rotated:
            d.k_out.data = NULL
        read_tensor("out", out, out_strides, d.num_q_heads, d.v_head_dim, d.dtype, False, &of_q, &c, &d.o)
        read_tensor("d_out", d_out, d_out_strides, d.num_q_heads, d.v_head_dim, d.dtype, False, &of_q, &c, &b.d_o)
        read_tensor("dq", dq, dq_strides, d.num_q_heads, d.head_dim, d.dtype, True, &of_q, &c, &b.dq)
        read_tensor("dk", dk, dk_strides, d.num_k_heads, d.head_dim, d.dtype, True, &of_k, &c, &b.dk)
        read_tensor("dv", dv, dv_strides, d.num_k_heads, d.v_head_dim, d.dtype, True, &of_k, &c, &b.dv)
        d.num_sequences, d.num_q_tokens, d.num_k_tokens = <int32_t>of_q.sequences, of_q.tokens, of_k.tokens
        require("lse", lse, "by backward()")
        read_sums(lse, False, sinks, &of_q, &d, &c)
        if d_lse is not None:
            rows = of_q.tokens * (1 if of_q.ragged else of_q.sequences) * heads
            b.d_lse = <float*>read_memory("d_lse", d_lse, KIND_FLOAT, 4, &rows,
                                          "[sequences, num_q_heads, num_q_tokens]", False, &c)
        if d_sinks is not None:
            b.d_sinks = <float*>read_memory("d_sinks", d_sinks, KIND_FLOAT, 4, &heads, "[num_q_heads]", True, &c)
        read_turn(positions, offset, positions_stride, cos, sin, angles, cos_sin_rows, &of_q, &turn, &d, &c)
        if workspace is not None:
            read_workspace(workspace, workspace_size, &b.workspace, &b.workspace_bytes, &c)
        with nogil:
            status = rope_attention_backward(&b)
        check(status)


cdef tuple parameters_of(RopeAttention attention):
    make, shape = attention.__reduce__()
    return shape, tuple(make.keywords.items())
