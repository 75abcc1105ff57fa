# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""pyrope.DecodeAttention: attention of the last queries of requests over a paged cache."""

from libc.math cimport sqrt
from libc.stdint cimport INT32_MAX, int32_t, int64_t

from pyrope._arguments cimport (
    Call, as_count, as_flag, as_real, begin_call, read_array, read_memory, refuse, require,
)
from pyrope._attention_tensors cimport read_workspace
from pyrope._cache cimport read_page_table, read_pages
from pyrope._capi cimport *
from pyrope._library cimport check, check_device
from pyrope._positions cimport read_all_positions
from pyrope._rope cimport Rope
from pyrope._stages cimport read_scale
from pyrope._tensors cimport read_tensor
from pyrope._view cimport KIND_FLOAT, KIND_INT, View, is_array

from pyrope._fused import FusedRope, stages_of
from pyrope.errors import RopeError

# Stages of keys and values, which the cache shows, and those of q that come before what attends.
_OF_CACHE = ("cache=", "k_out_dtype=", "v_out_dtype=", "k_scale_kind=", "v_scale_kind=")
_OF_QUERIES = ("norm=", "out_layout=")


cdef class DecodeAttention:
    """DecodeAttention(rope, *, window_left=-1, scale=None, softcap=0.0, split=0)
--

    Attention of the last queries of requests over their keys and values in a paged cache, as ``rope`` appends them:
    ``softmax(scale * R(q) k^T) v``.

    Query ``i`` of a request stands at key ``length - num_q_tokens + i`` and sees none behind it. ``R`` is the rotation
    of ``rope``, with its bits; keys in the cache have theirs. Like a Rope it is immutable, holds no device memory, and
    any number of threads may use it at once. Lengths and pages are read on the device, so that a CUDA graph serves all
    lengths up to its ``max_length``.

    Parameters
    ----------
    rope : FusedRope
        What q and the cache are and how q turns: with ``cache``, and k and v of equal heads, sizes and types, which are
        ``dtype``, or fp8 or (on the CPU) int8 with one scale. ``num_q_heads`` is a multiple of ``num_k_heads``. On CUDA
        ``head_dim`` is 64 or 128 and ``dtype`` bfloat16 or float16.
    window_left : int
        How many keys before its own a query sees; -1: all.
    scale : float, optional
        Of the scores. Default: ``1 / sqrt(head_dim)``.
    softcap : float
        Scores ``s`` become ``softcap * tanh(s / softcap)``; 0: they stay.
    split : int
        CUDA: keys that are added up by themselves, a multiple of 256. With the same one the bits of a request's result
        are the same, whatever the other requests are. 0: chosen by the shape and ``max_length``.

    Raises
    ------
    ValueError, TypeError, pyrope.UnsupportedError
        An argument is not allowed; the text names it.

    Examples
    --------
    >>> import numpy as np, pyrope
    >>> rope = pyrope.FusedRope(64, 4, 2, dtype="float32", device="cpu", cache=pyrope.PagedCache(16, num_pages=8))
    >>> k_cache, v_cache = np.zeros((2, 8, 16, 2, 64), np.float32)
    >>> q, k, v = (np.ones((2, heads, 64), np.float32) for heads in (4, 2, 2))
    >>> lengths = np.array([5, 20], np.int32)  # with the new token of each of two requests
    >>> pages = np.array([[3, 0], [1, 6]], np.int32)
    >>> rope.apply(None, k, v=v, k_cache=k_cache, v_cache=v_cache, positions=lengths - 1, page_table=pages,
    ...            request_ids=np.arange(2, dtype=np.int32), cache_positions=lengths - 1)
    >>> out = np.empty_like(q)
    >>> pyrope.DecodeAttention(rope).apply(q, out, k_cache, v_cache, pages, lengths)
    """

    cdef rope_decode_desc base
    cdef bint ready
    cdef list others  # stages of q that are not those of a rotation
    cdef readonly Rope rope  # type: FusedRope

    def __init__(self, rope: FusedRope, *, window_left: SupportsIndex = -1, scale: SupportsFloat | None = None,
                 softcap: SupportsFloat = 0.0, split: SupportsIndex = 0) -> None:
        if self.ready:
            raise RopeError("a DecodeAttention is immutable and cannot be initialised again")
        if not isinstance(rope, FusedRope) or rope.cache is None:
            raise TypeError(f"rope: {rope!r}, must be a FusedRope with cache=pyrope.PagedCache(...)")
        self.rope = rope
        self.rope._check_ready()
        stages = [stage for stage in stages_of(rope) if not stage.startswith(_OF_CACHE)]
        self.others = [stage for stage in stages if stage.startswith(_OF_QUERIES)]
        for stage in stages:
            if stage not in self.others:
                raise ValueError(f"rope: has {stage}, which attention over a cache does not serve")
        if (rope.num_v_heads, rope.v_head_dim) != (rope.num_k_heads, rope.head_dim):
            raise ValueError("rope: num_v_heads and v_head_dim must be num_k_heads and head_dim")
        cdef rope_decode_desc* d = &self.base
        rope_decode_desc_init(d)
        cdef rope_apply_desc* r = &self.rope.base
        d.backend, d.dtype, d.num_threads = r.backend, r.dtype, r.num_threads
        d.head_dim, d.num_q_heads, d.num_k_heads = r.head_dim, r.num_q_heads, r.num_k_heads
        for name, kind in (("k", rope.k_scale_kind), ("v", rope.v_scale_kind)):
            if kind not in (None, "tensor"):
                raise ValueError(f"rope: has {name}_scale_kind={kind!r}, must be 'tensor' or None")
        d.k_quantize.out_dtype, d.v_quantize.out_dtype = r.k_quantize.out_dtype, r.v_quantize.out_dtype
        d.cache = r.cache
        d.cache.kind, d.cache.page_table_stride = ROPE_CACHE_PAGES, 1
        d.flags, d.window_left = ROPE_ATTENTION_WINDOW, as_count("window_left", window_left, -1, INT32_MAX)
        d.scale = <float>(1 / sqrt(<double>d.head_dim) if scale is None else as_real("scale", scale))
        if d.scale <= 0:
            raise ValueError(f"scale: {scale}, must be above 0")
        d.softcap = <float>as_real("softcap", softcap)
        d.split = as_count("split", split, 0, ROPE_MAX_DECODE_LENGTH)
        self.workspace_size(0, 0)  # whatever else the library refuses
        self.ready = True

    @property
    def window_left(self) -> int:
        """Keys before its own that a query sees; -1: all."""
        return self.base.window_left

    @property
    def scale(self) -> float:
        """What scores are multiplied with, a float32."""
        return self.base.scale

    @property
    def softcap(self) -> float:
        """What scores stay below; 0: anything."""
        return self.base.softcap

    @property
    def split(self) -> int:
        """Keys that are added up by themselves; 0: chosen by the shape."""
        return self.base.split

    def __reduce__(self):
        from functools import partial
        names = ("window_left", "scale", "softcap", "split")
        return partial(type(self), **{name: getattr(self, name) for name in names}), (self.rope,)

    def __eq__(self, other):
        return self is other or (type(self) is type(other) and parameters_of(self) == parameters_of(other))

    def __hash__(self):
        return hash(parameters_of(self))

    def __repr__(self):
        return (f"DecodeAttention({self.rope!r}, window_left={self.window_left}, scale={self.scale:.6g}, "
                f"softcap={self.softcap:.6g}, split={self.split})")

    def workspace_size(self, num_requests: SupportsIndex, max_length: SupportsIndex, *,
                       num_q_tokens: SupportsIndex = 1) -> int:
        """Bytes of workspace that :meth:`apply` needs; 0 on the CPU."""
        cdef rope_decode_desc d = self.base
        cdef int64_t size
        d.num_requests = as_count("num_requests", num_requests, 0, INT32_MAX)
        d.num_q_tokens = as_count("num_q_tokens", num_q_tokens, 1, ROPE_MAX_DECODE_TOKENS)
        d.max_length = as_count("max_length", max_length, 0, ROPE_MAX_DECODE_LENGTH)
        d.cache.page_table_stride = INT32_MAX
        check(rope_decode_workspace(&d, &size))
        return size

    def apply(self, q: Memory, out: Memory, k_cache: Memory, v_cache: Memory, page_table: Memory, lengths: Memory, *,
              max_length: SupportsIndex | None = None, page_indptr: Memory | None = None,
              page_table_stride: SupportsIndex | None = None, positions: Memory | None = None,
              offset: SupportsIndex = 0, q_rotated: bool = False, k_scale: Scale | None = None,
              v_scale: Scale | None = None, lse: Memory | None = None, sinks: Memory | None = None,
              num_requests: SupportsIndex | None = None, num_q_tokens: SupportsIndex | None = None,
              q_strides: Strides | None = None, out_strides: Strides | None = None,
              workspace: Memory | None = None, workspace_size: SupportsIndex | None = None,
              stream: Stream | None = None) -> None:
        """Rotate q, and attend.

        Parameters
        ----------
        q, out : pointer or array
            ``[num_requests * num_q_tokens, num_q_heads, head_dim]`` of the Rope's dtype. The elements of a head are
            neighbours; other strides may be any. ``out`` is written, and apart from everything else.
        k_cache, v_cache : pointer or array
            Pages as for :meth:`FusedRope.apply`, with the keys and values of the call's tokens in them.
        page_table, page_indptr, page_table_stride : pointer or array; int
            As for :meth:`FusedRope.apply`.
        lengths : pointer or array
            ``[num_requests]`` int32: how many keys each request has in the cache, those of the call's tokens too. One
            without any has ``out`` 0.
        max_length : int
            At least the longest request's length. Default: what a row of page_table has pages for; required with
            page_indptr.
        positions : pointer or array, optional
            ``[num_requests * num_q_tokens]`` int64 or int32 as for :meth:`Rope.apply`: those of q. Default: the query
            at key ``n`` has position ``offset + n``.
        offset : int
            See positions.
        q_rotated : bool
            Whether q is rotated already, as :meth:`FusedRope.apply` leaves it; it must be where the Rope has a norm or
            another ``out_layout``. Fused are exact and fp32 angles of one position a token, without xpos.
        k_scale, v_scale : float, pointer or array, optional
            As for :meth:`FusedRope.apply`: what the cache was stored with.
        lse : pointer or array, optional
            ``[num_requests, num_q_heads, num_q_tokens]`` float32: the logarithm of each softmax's sum, that of a sink
            included; -infinity where nothing is seen.
        sinks : pointer or array, optional
            ``[num_q_heads]`` float32: the logit of a key without a value, which every query of the head sees (GPT-OSS).
        num_requests : int
            Required where lengths is a pointer.
        num_q_tokens : int
            Queries of each request, 1 to 16. Default: 1, or what an array has.
        q_strides, out_strides : (int, int), optional
            With pointers: token stride and head stride, in elements. Default: contiguous.
        workspace, workspace_size : pointer or array; int
            CUDA: at least :meth:`workspace_size` bytes, aligned to 256, that no other call uses at the same time,
            zeroed once before its first use; with a pointer, how many bytes there are. One serves calls of any
            shape.
        stream : int or object, optional
            As for :meth:`Rope.apply`.

        Notes
        -----
        The notes of :meth:`Rope.apply` hold here too. Bits of ``out`` are not the same on both devices: sums have
        another order. Nor are weights: on CUDA they are rounded to ``dtype``, of an fp8 cache to float16, to which q is
        rounded too. A length above ``max_length`` and a page outside the cache are refused on the CPU; on CUDA ``out``
        of the request is NaN.

        Raises
        ------
        ValueError, TypeError
            An argument is not allowed; the text names it. Nothing is written.
        pyrope.UnsupportedError
            This build does not serve the shape.
        pyrope.CudaError
            There is no CUDA device, or the launch failed.
        """
        cdef rope_decode_desc d
        cdef rope_apply_desc r
        cdef Call c
        cdef rope_status status
        cdef int64_t count
        if not self.ready:
            raise RopeError("this DecodeAttention was never initialised, or its constructor refused the arguments")
        d, r = self.base, self.rope.base
        begin_call(d.backend, stream, None, &c)
        d.stream = c.stream
        c.device = self.rope.device_number
        check_device(self.rope.device_number)
        read_counts(lengths, num_requests, num_q_tokens, q, &d, &c)
        self._read_queries(q, out, q_strides, out_strides, &d, &c)
        self._read_cache(k_cache, v_cache, page_table, page_indptr, page_table_stride, k_scale, v_scale, &r, &c)
        d.cache, d.k_quantize, d.v_quantize = r.cache, r.k_quantize, r.v_quantize
        if max_length is not None:
            d.max_length = as_count("max_length", max_length, 0, ROPE_MAX_DECODE_LENGTH)
        elif page_indptr is None:
            d.max_length = <int32_t>min(d.cache.page_table_stride * d.cache.page_size, <int64_t>ROPE_MAX_DECODE_LENGTH)
        else:
            raise TypeError("max_length: required with page_indptr")
        count = c.num_tokens * d.num_q_heads
        if lse is not None:
            d.lse = <float*>read_memory("lse", lse, KIND_FLOAT, 4, &count, "[num_requests, num_q_heads, num_q_tokens]",
                                        True, &c)
        count = d.num_q_heads
        if sinks is not None:
            d.sinks = <float*>read_memory("sinks", sinks, KIND_FLOAT, 4, &count, "[num_q_heads]", False, &c)
        if self._turns(q_rotated):
            r = self.rope.base
            r.flags = 0
            clear_stages(&r)
            read_all_positions(positions, offset, None, None, None, None, None, &r, &c)
            d.rotation = &r
        elif positions is not None or offset != 0:
            raise ValueError(f"{'offset' if positions is None else 'positions'}: given, but q is rotated already")
        set_workspace(workspace, workspace_size, &d, &c)
        with nogil:
            status = rope_decode(&d)
        check(status)

    cdef bint _turns(self, q_rotated) except -1:
        if as_flag("q_rotated", q_rotated) or self.rope.rotary_dim == 0:
            return False
        for stage in self.others:
            raise ValueError(f"q_rotated: must be True where the Rope has {stage}")
        return True

    cdef int _read_queries(self, q, out, q_strides, out_strides, rope_decode_desc* d, Call* c) except -1:
        cdef rope_steps steps
        for name, x, strides in (("q", q, q_strides), ("out", out, out_strides)):
            steps.sequence = steps.element = 0
            read_tensor(name, x, strides, d.num_q_heads, d.head_dim, d.dtype, name == "out", c,
                        &d.o if name == "out" else &d.q, &steps)
            if steps.sequence or steps.element:
                raise ValueError(f"{name}: strides of tokens must be one, and elements of a head neighbours")
        return 0

    cdef int _read_cache(self, k_cache, v_cache, page_table, page_indptr, page_table_stride, k_scale, v_scale,
                         rope_apply_desc* r, Call* c) except -1:
        cdef bint heads_first = self.rope.cache.layout == "HND"
        cdef int64_t count = c.num_tokens
        r.cache.kind = ROPE_CACHE_PAGES
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache), ("page_table", page_table)):
            require(name, x, "by DecodeAttention")
        read_pages("k_cache", k_cache, r.num_k_heads, r.head_dim, r.k_quantize.out_dtype, heads_first, &r.cache.k, r, c)
        read_pages("v_cache", v_cache, r.num_k_heads, r.head_dim, r.v_quantize.out_dtype, heads_first, &r.cache.v, r, c)
        read_scale("k_scale", k_scale, "k_tensor_scale", None, self.rope.k_scale_kind, r.num_k_heads, r.head_dim,
                   heads_first, &r.k_quantize, &r.k_groups, r, c)
        read_scale("v_scale", v_scale, "v_tensor_scale", None, self.rope.v_scale_kind, r.num_k_heads, r.head_dim,
                   heads_first, &r.v_quantize, &r.v_groups, r, c)
        if page_indptr is None:
            return read_page_table(page_table, page_table_stride, r, c)
        refuse("page_table_stride", page_table_stride, "not allowed together with page_indptr")
        count = -1
        r.cache.page_indptr = <int32_t*>read_memory("page_indptr", page_indptr, KIND_INT, 4, &count,
                                                    "[num_requests + 1]", False, c)
        count = -1
        r.cache.page_table = <int32_t*>read_memory("page_table", page_table, KIND_INT, 4, &count, "[pages]", False, c)
        return 0


cdef int read_counts(lengths, num_requests, num_q_tokens, q, rope_decode_desc* d, Call* c) except -1:
    """Requests, and tokens of q."""
    cdef View v
    cdef int64_t count = -1 if num_requests is None else as_count("num_requests", num_requests, 0, INT32_MAX)
    if count < 0 and not is_array(lengths):
        raise TypeError("num_requests: required with lengths as a pointer")
    c.num_tokens = count
    d.lengths = <int32_t*>read_memory("lengths", lengths, KIND_INT, 4, &count, "[num_requests]", False, c)
    d.num_requests, d.num_q_tokens = <int32_t>count, 1
    if num_q_tokens is not None:
        d.num_q_tokens = as_count("num_q_tokens", num_q_tokens, 1, ROPE_MAX_DECODE_TOKENS)
    elif is_array(q):
        read_array("q", q, c, &v)
        if count and v.ndim == 3 and v.shape[0] and v.shape[0] % count == 0:
            d.num_q_tokens = as_count("num_q_tokens", v.shape[0] // count, 1, ROPE_MAX_DECODE_TOKENS)
    c.num_tokens = count * d.num_q_tokens
    return 0


cdef int clear_stages(rope_apply_desc* r) noexcept:
    """What is left is the rotation."""
    r.cache.kind = ROPE_CACHE_NONE
    r.k_quantize.out_dtype = r.v_quantize.out_dtype = ROPE_OUT_SAME
    return 0


cdef int set_workspace(workspace, workspace_size, rope_decode_desc* d, Call* c) except -1:
    cdef int64_t needed
    if workspace is not None:
        return read_workspace(workspace, workspace_size, &d.workspace, &d.workspace_bytes, c)
    check(rope_decode_workspace(d, &needed))
    if needed:
        raise TypeError(f"workspace: required on CUDA, {needed} bytes")
    return refuse("workspace_size", workspace_size, "given without workspace")


cdef tuple parameters_of(DecodeAttention attention):
    make, shape = attention.__reduce__()
    return shape, tuple(make.keywords.items())
