# cython: language_level=3, freethreading_compatible=True
"""pyrope.FusedRope: Rope with the stages before and behind the rotation."""

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memset

from pyrope._capi cimport *
from pyrope._core cimport ONE_BYTE, Rope, as_count, as_integer, as_real, check, check_device, choose, shape_of
from pyrope._stages cimport (
    read_cos_sin, read_memory, read_page_table, read_pages, read_scale, read_frequency_sets, read_weight, refuse, require,
)
from pyrope._view cimport KIND_INT, View, is_array, read_pointer, read_view

from pyrope._core import _ANGLES as _ROPE_ANGLES, _DTYPES, _INDEX_DTYPES
from pyrope.errors import RopeError
from pyrope.stages import PagedCache, RMSNorm, XPos

_ANGLES = _ROPE_ANGLES | {"cos_sin": ROPE_ANGLE_COS_SIN}
_OUT_DTYPES = {"float8_e4m3fn": ROPE_OUT_E4M3, "float8_e5m2": ROPE_OUT_E5M2, "int8": ROPE_OUT_INT8}
_SCALE_KINDS = {
    "tensor": ROPE_SCALE_TENSOR, "head": ROPE_SCALE_HEAD, "token": ROPE_SCALE_TOKEN, "dynamic": ROPE_SCALE_DYNAMIC,
}
_CACHE_LAYOUTS = {"NHD": False, "HND": True}


cdef bint as_flag(str name, object value) except -1:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {value!r} is not a bool")
    return value


cdef class FusedRope(Rope):
    """FusedRope(head_dim, num_q_heads, num_k_heads, *, angle='exact', cos_sin_dtype='float32', sections=None, \
sections_interleaved=False, xpos=None, num_v_heads=None, v_head_dim=None, q_nope_dim=0, norm=None, q_out_dtype=None, \
k_out_dtype=None, v_out_dtype=None, q_scale_kind=None, k_scale_kind=None, v_scale_kind=None, cache=None, \
rotary_dim=None, rotary_offset=0, theta=10000.0, scaling=None, inv_freq=None, attention_factor=None, layout='neox', \
dtype='bfloat16', device='cuda', position_dtype='int64', num_threads=0, enable_pdl=False, positions_ready=False)
--

    A Rope with stages around the rotation, in one launch that reads and writes every element once.

    load -> [RMS norm of q, k] -> rotate -> [quantise q, k, v] -> store | append k, v to a KV cache

    Every stage is optional; without any, the results are a Rope's. Like a Rope it is immutable, holds no device
    memory, and any number of threads may use it at once.

    Parameters
    ----------
    head_dim, num_q_heads, num_k_heads
        As for :class:`Rope`.
    angle : {"exact", "fp32", "cos_sin"}
        As for :class:`Rope`; ``cos_sin``: cosines and sines come with the call, indexed by position. Then ``theta``,
        ``scaling`` and ``inv_freq`` are not allowed, ``attention_factor`` is 1 unless given, and :attr:`Rope.inv_freq`
        and :attr:`Rope.frequencies` are empty.
    cos_sin_dtype : {"float32", "float16", "bfloat16"}
        Of ``cos`` and ``sin`` with ``angle="cos_sin"``.
    sections : tuple of 2 to 4 int, optional
        M-RoPE (Qwen2-VL, arXiv:2409.12191; also 2-D and 3-D vision): how many pairs turn by each of a token's
        positions, in all ``rotary_dim / 2``.
    sections_interleaved : bool
        False: the first ``sections[0]`` pairs turn by the first position, and so on. True (Qwen3-VL): with ``n``
        sections, pair ``i`` turns by position ``s = i % n`` if ``i < n * sections[s]``, else by the first.
    xpos : pyrope.XPos, optional
        Magnitudes of the rotated q and k that decay with their distance; of :meth:`inverse` too, which transposes. With
        ``positions_from`` they are those of the difference of the positions. ``rotary_dim`` is then at most 512, and
        ``angle="cos_sin"`` is not allowed.
    num_v_heads, v_head_dim : int, optional
        Shape of v, which is stored and not rotated. Default: ``num_k_heads``, ``head_dim``.
    q_nope_dim : int
        Elements of a head of ``q_nope``, the part of q that is stored and not rotated (multi-head latent attention,
        arXiv:2405.04434).
    norm : pyrope.RMSNorm, optional
        RMS norm of q and k.
    q_out_dtype, k_out_dtype, v_out_dtype : {"float8_e4m3fn", "float8_e5m2", "int8"}, optional
        Quantise: stored is ``round(x * (1 / scale))``, to nearest even, saturating. ``q_out_dtype`` is that of
        ``q_nope`` too. Default: stored as ``dtype``.
    q_scale_kind, k_scale_kind, v_scale_kind : {"tensor", "head", "token", "dynamic"}, optional
        Which scales, float32, a call gives as memory: one; one a head; one a token; or, ``dynamic``, one a token and
        head, which are computed (the head's largest magnitude over the type's largest value, 1 for a head of zeros)
        and written. Default: ``tensor``, or a number in the call.
    cache : pyrope.PagedCache, optional
        Append k and v to a KV cache instead of storing them.
    rotary_dim, rotary_offset, theta, scaling, inv_freq, attention_factor, layout, dtype, device
        As for :class:`Rope`.
    position_dtype, num_threads, enable_pdl, positions_ready
        As for :class:`Rope`.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it.
    pyrope.UnsupportedError
        This build has no such kernel.

    Examples
    --------
    >>> import numpy as np, pyrope
    >>> rope = pyrope.FusedRope(64, 2, 1, dtype="float32", device="cpu", norm=pyrope.RMSNorm(),
    ...                         cache=pyrope.PagedCache(page_size=16, num_pages=4))
    >>> q, k, v = np.ones((3, 2, 64), np.float32), np.ones((3, 1, 64), np.float32), np.ones((3, 1, 64), np.float32)
    >>> weight, k_cache, v_cache = np.ones(64, np.float32), *np.zeros((2, 4, 16, 1, 64), np.float32)
    >>> rope.apply(q, k, v=v, q_weight=weight, k_weight=weight, k_cache=k_cache, v_cache=v_cache,
    ...            slots=np.array([5, 6, 7]), offset=7)
    """

    cdef readonly tuple sections
    cdef readonly bint sections_interleaved
    cdef readonly object xpos, norm, cache
    cdef readonly str q_out_dtype, k_out_dtype, v_out_dtype
    cdef readonly str q_scale_kind, k_scale_kind, v_scale_kind
    cdef readonly str cos_sin_dtype
    cdef readonly int num_v_heads, v_head_dim, q_nope_dim
    cdef bint heads_first

    def __init__(self, head_dim, num_q_heads, num_k_heads, *, angle="exact", cos_sin_dtype="float32", sections=None,
                 sections_interleaved=False, xpos=None, num_v_heads=None, v_head_dim=None, q_nope_dim=0, norm=None,
                 q_out_dtype=None, k_out_dtype=None, v_out_dtype=None, q_scale_kind=None, k_scale_kind=None,
                 v_scale_kind=None, cache=None, rotary_dim=None, rotary_offset=0, theta=10000.0, scaling=None,
                 inv_freq=None, attention_factor=None, layout="neox", dtype="bfloat16", device="cuda",
                 position_dtype="int64", num_threads=0, enable_pdl=False, positions_ready=False):
        cdef rope_apply_desc* d = &self.base
        cdef bint given_cos_sin = choose("angle", angle, _ANGLES) == ROPE_ANGLE_COS_SIN
        if given_cos_sin and (theta != 10000.0 or scaling is not None or inv_freq is not None):
            name = "scaling" if scaling is not None else "theta" if inv_freq is None else "inv_freq"
            raise ValueError(f"{name}: not allowed with angle='cos_sin', where cos and sin come with the call")
        Rope.__init__(self, head_dim, num_q_heads, num_k_heads, rotary_dim=rotary_dim, rotary_offset=rotary_offset,
                      theta=theta, scaling=scaling, inv_freq=inv_freq, attention_factor=attention_factor, layout=layout,
                      dtype=dtype, angle="exact" if given_cos_sin else angle, device=device,
                      position_dtype=position_dtype, num_threads=num_threads, enable_pdl=enable_pdl,
                      positions_ready=positions_ready)
        self.ready = False
        d.cos_sin.dtype = choose("cos_sin_dtype", cos_sin_dtype, _DTYPES)
        self.cos_sin_dtype = list(_DTYPES)[d.cos_sin.dtype]
        if given_cos_sin:
            d.angle, self.angle, self.theta, self.inv_freqs = ROPE_ANGLE_COS_SIN, "cos_sin", None, ()

        self.num_v_heads = d.num_k_heads if num_v_heads is None else as_count("num_v_heads", num_v_heads, 1, ROPE_MAX_HEADS)
        self.v_head_dim = d.head_dim if v_head_dim is None else as_count("v_head_dim", v_head_dim, 1, ROPE_MAX_HEAD_DIM)
        self.q_nope_dim = as_count("q_nope_dim", q_nope_dim, 0, ROPE_MAX_HEAD_DIM)
        self.q_out_dtype = self._set_quantize("q", q_out_dtype, q_scale_kind, &d.q_quantize)
        self.k_out_dtype = self._set_quantize("k", k_out_dtype, k_scale_kind, &d.k_quantize)
        self.v_out_dtype = self._set_quantize("v", v_out_dtype, v_scale_kind, &d.v_quantize)
        self.q_scale_kind = None if q_scale_kind is None else list(_SCALE_KINDS)[d.q_quantize.scale_kind - 1]
        self.k_scale_kind = None if k_scale_kind is None else list(_SCALE_KINDS)[d.k_quantize.scale_kind - 1]
        self.v_scale_kind = None if v_scale_kind is None else list(_SCALE_KINDS)[d.v_quantize.scale_kind - 1]
        self.sections_interleaved = as_flag("sections_interleaved", sections_interleaved)
        if sections is not None:
            self._set_sections(sections, d)
        elif self.sections_interleaved:
            raise ValueError("sections_interleaved: True, only allowed with sections")
        if xpos is not None:
            self._set_xpos(xpos, d)
        if norm is not None:
            self._set_norm(norm, d)
        if cache is not None:
            self._set_cache(cache, d)
        self.ready = True

    def __reduce__(self):
        from functools import partial
        make, arguments = Rope.__reduce__(self)
        options = make.keywords | {
            "cos_sin_dtype": self.cos_sin_dtype, "sections": self.sections,
            "sections_interleaved": self.sections_interleaved, "xpos": self.xpos,
            "num_v_heads": self.num_v_heads or None, "v_head_dim": self.v_head_dim, "q_nope_dim": self.q_nope_dim,
            "norm": self.norm, "cache": self.cache,
            "q_out_dtype": self.q_out_dtype, "k_out_dtype": self.k_out_dtype, "v_out_dtype": self.v_out_dtype,
            "q_scale_kind": self.q_scale_kind, "k_scale_kind": self.k_scale_kind, "v_scale_kind": self.v_scale_kind,
        }
        if self.angle == "cos_sin":
            del options["inv_freq"]
        return partial(type(self), **options), arguments

    cdef str _set_quantize(self, str x, out_dtype, scale_kind, rope_quantize* z):
        if out_dtype is None:
            refuse(f"{x}_scale_kind", scale_kind, f"only allowed with {x}_out_dtype")
            return None
        z.out_dtype = choose(f"{x}_out_dtype", out_dtype, _OUT_DTYPES)
        z.scale_kind = choose(f"{x}_scale_kind", "tensor" if scale_kind is None else scale_kind, _SCALE_KINDS)
        return list(_OUT_DTYPES)[z.out_dtype - 1]

    cdef int _set_sections(self, sections, rope_apply_desc* d) except -1:
        cdef int pairs = d.rotary_dim // 2
        if not isinstance(sections, (tuple, list)) or not 2 <= len(sections) <= 4:
            raise TypeError(f"sections: {sections!r}, must be 2 to 4 numbers of pairs")
        for i, count in enumerate(sections):
            d.sections.sizes[i] = as_count("sections", count, 0, pairs)
        d.sections.num_streams = len(sections)
        d.sections.interleaved = self.sections_interleaved
        self.sections = tuple([d.sections.sizes[i] for i in range(d.sections.num_streams)])
        if sum(self.sections) != pairs:
            raise ValueError(f"sections: {self.sections}, their sum must be rotary_dim / 2 = {pairs}")
        return 0

    cdef int _set_xpos(self, xpos, rope_apply_desc* d) except -1:
        if not isinstance(xpos, XPos):
            raise TypeError(f"xpos: {xpos!r} is not a pyrope.XPos")
        if d.angle == ROPE_ANGLE_COS_SIN:
            raise ValueError("xpos: not allowed with angle='cos_sin', whose rows q and k share")
        if d.rotary_dim > ROPE_MAX_XPOS_DIM:
            raise ValueError(f"rotary_dim: {d.rotary_dim}, must be at most {ROPE_MAX_XPOS_DIM} with xpos")
        d.xpos.scale_base = as_real("scale_base", xpos.scale_base)
        d.xpos.gamma = as_real("gamma", xpos.gamma)
        d.xpos.center = as_integer("center", xpos.center)
        if not ROPE_XPOS_SCALE_BASE_MIN <= d.xpos.scale_base <= ROPE_XPOS_SCALE_BASE_MAX:
            raise ValueError(f"scale_base: {xpos.scale_base}, must be {ROPE_XPOS_SCALE_BASE_MIN:g} to "
                             f"{ROPE_XPOS_SCALE_BASE_MAX:g}")
        if not ROPE_XPOS_GAMMA_MIN <= d.xpos.gamma <= ROPE_XPOS_GAMMA_MAX:
            raise ValueError(f"gamma: {xpos.gamma}, must be {ROPE_XPOS_GAMMA_MIN:g} to {ROPE_XPOS_GAMMA_MAX:g}")
        self.xpos = xpos
        return 0

    cdef int _set_norm(self, norm, rope_apply_desc* d) except -1:
        if not isinstance(norm, RMSNorm):
            raise TypeError(f"norm: {norm!r} is not a pyrope.RMSNorm")
        d.norm.eps = <float>as_real("eps", norm.eps)
        d.norm.weight_bias = <float>as_real("weight_bias", norm.weight_bias)
        if not 0 <= d.norm.eps < 3.0e38:
            raise ValueError(f"eps: {norm.eps}, must be at least 0 and finite as a float32")
        if not -3.0e38 < d.norm.weight_bias < 3.0e38:
            raise ValueError(f"weight_bias: {norm.weight_bias}, must be finite as a float32")
        if norm.weight_dtype is not None:
            d.norm.weight_is_f32 = choose("weight_dtype", norm.weight_dtype, {self.dtype: 0, "float32": 1})
        d.norm.after = as_flag("after", norm.after)
        d.norm.across_heads = as_flag("across_heads", norm.across_heads)
        self.norm = norm
        return 0

    cdef int _set_cache(self, cache, rope_apply_desc* d) except -1:
        if not isinstance(cache, PagedCache):
            raise TypeError(f"cache: {cache!r} is not a pyrope.PagedCache")
        d.cache.page_size = as_count("page_size", cache.page_size, 1, ROPE_MAX_PAGE_SIZE)
        d.cache.num_pages = as_integer("num_pages", cache.num_pages)
        if d.cache.num_pages < 1:
            raise ValueError(f"num_pages: {cache.num_pages}, must be at least 1")
        d.cache.index_dtype = choose("index_dtype", cache.index_dtype, _INDEX_DTYPES)
        self.heads_first = choose("layout", cache.layout, _CACHE_LAYOUTS)
        self._set_pages("k_strides", cache.k_strides, d.num_k_heads, d.head_dim, &d.cache.k)
        self._set_pages("v_strides", cache.v_strides, self.num_v_heads, self.v_head_dim, &d.cache.v)
        self.cache = cache
        return 0

    cdef int _set_pages(self, str name, strides, int64_t heads, int64_t dim, rope_cache_tensor* pages) except -1:
        cdef int64_t page_size = self.base.cache.page_size
        if strides is None:
            pages.page_stride = page_size * heads * dim
            pages.entry_stride = dim if self.heads_first else heads * dim
            pages.head_stride = page_size * dim if self.heads_first else dim
            return 0
        if not isinstance(strides, (tuple, list)) or len(strides) != 3:
            raise TypeError(f"{name}: {strides!r}, must be (page stride, entry stride, head stride) in elements")
        pages.page_stride = as_integer(name, strides[0])
        pages.entry_stride = as_integer(name, strides[1])
        pages.head_stride = as_integer(name, strides[2])
        for stride in strides:
            if stride < dim:
                raise ValueError(f"{name}: {tuple(strides)!r}, each must be at least the elements of a head, {dim}")
        return 0

    def __repr__(self):
        text = super().__repr__()
        stages = [f"{name}={getattr(self, name)!r}" for name in (
            "sections", "sections_interleaved", "xpos", "q_nope_dim", "norm", "q_out_dtype", "k_out_dtype",
            "v_out_dtype", "q_scale_kind", "k_scale_kind", "v_scale_kind", "cache") if getattr(self, name)]
        return f"FusedRope{text[4:-1]}{''.join(', ' + stage for stage in stages)})"

    def apply(self, q, k=None, num_tokens=None, *, positions=None, offset=0, indptr=None, offsets=None,
              num_requests=None, q_out=None, k_out=None, q_strides=None, k_strides=None, q_out_strides=None,
              k_out_strides=None, stream=None, positions_stride=None, positions_from=None, v=None, v_out=None,
              v_strides=None, v_out_strides=None, q_nope=None, q_nope_out=None, q_nope_strides=None,
              q_nope_out_strides=None, q_weight=None, k_weight=None, q_scale=None, k_scale=None, v_scale=None,
              k_cache=None, v_cache=None, slots=None, page_table=None, page_indptr=None, page_table_stride=None,
              request_ids=None, cache_positions=None, cache_skipped=None, cos=None, sin=None, cos_sin_rows=None,
              cos_sin_stride=None, cos_sin_skipped=None, frequency_sets=None, set_ids=None, set_ids_from=None,
              set_factors=None, num_sets=None):
        """Rotate q and k, and pass q, k and v through the stages.

        Memory is given as to :meth:`Rope.apply`: as a pointer, or as an array of the shape and dtype below. An array of
        a quantised type may have any dtype of one byte. What is written may not overlap anything else in the call.

        Parameters
        ----------
        q, k, num_tokens, offset, indptr, offsets, num_requests, stream
            As for :meth:`Rope.apply`. ``offset`` and ``indptr`` are not allowed with ``sections``.
        q_out, k_out : pointer or array, optional
            As for :meth:`Rope.apply`. Required where they are quantised; with a cache there is no ``k_out``.
        positions : pointer or array, optional
            ``[num_tokens]``; with ``sections`` required and ``[number of sections, num_tokens]``. int32 or int64.
        positions_stride : int, optional
            With ``sections`` and pointers: elements between the rows of positions. Default: ``num_tokens``.
        positions_from : pointer or array, optional
            ``[num_tokens]`` of the dtype of ``positions``: turn from these positions to those, by the difference. For
            cached keys that move. Not allowed with ``sections``.
        v, v_out : pointer or array, optional
            ``[num_tokens, num_v_heads, v_head_dim]``, stored as it is or quantised; with a cache there is no ``v_out``.
        q_nope, q_nope_out : pointer or array, optional
            ``[num_tokens, num_q_heads, q_nope_dim]``, likewise.
        q_strides, k_strides, v_strides, q_nope_strides and those of the outputs : (int, int), optional
            With pointers: (token stride, head stride) in elements. Default: contiguous.
        q_weight, k_weight : pointer or array, optional
            With ``norm``: ``[head_dim]``, or ``[num_heads, head_dim]`` across heads, in one dimension or two, of its
            ``weight_dtype``. One left out leaves its tensor as it is.
        q_scale, k_scale, v_scale : float, pointer or array, optional
            Of a quantised tensor: a number above 0, or float32 memory as the tensor's ``scale_kind`` says: ``[1]``;
            ``[heads]``; ``[num_tokens]``; or, written, ``[num_tokens, heads]``, in a cache
            ``[num_pages * page_size, heads]``. Default: 1.
        k_cache, v_cache : pointer or array
            With ``cache``: where k and v are appended, ``[num_pages, page_size, heads, dim]`` or as the layout says;
            with one head that dimension may be missing. An array brings its strides.
        slots : pointer or array
            ``[num_tokens]`` int32 or int64: ``page * page_size + entry`` of every token; negative: not appended.
        page_table, request_ids, cache_positions : pointer or array
            Instead of slots. ``request_ids`` ``[num_tokens]`` int32 and ``cache_positions`` ``[num_tokens]`` int32 or
            int64 say which token ``n`` of which request ``r`` each is. It is appended to entry ``n % page_size`` of
            page ``page_table[r, n // page_size]``; ``page_table`` is ``[num_requests, pages]`` int32. Not appended
            where ``r`` or ``n`` is negative.
        page_indptr : pointer or array, optional
            ``[num_requests + 1]`` int32: page_table is one-dimensional, and ``r``'s begins at ``page_indptr[r]``.
        page_table_stride : int
            With ``page_table`` as a pointer and without ``page_indptr``: elements of its rows.
        cache_skipped : pointer or array, optional
            ``[1]`` int64, incremented for every token whose page is outside the cache.
        cos, sin : pointer or array
            With ``angle="cos_sin"``: ``[rows, rotary_dim / 2]`` of ``cos_sin_dtype``; without ``sin``, ``cos`` is
            ``[rows, rotary_dim]``, cosines before sines. A token whose position is no row is left alone.
        cos_sin_rows : int
            With pointers: number of rows.
        cos_sin_stride : int, optional
            With pointers: elements between rows. Default: contiguous.
        cos_sin_skipped : pointer or array, optional
            ``[1]`` int64, incremented for every token whose position is no row.
        frequency_sets, set_ids : pointer or array, optional
            Frequencies for every token: ``frequency_sets`` ``[num_sets, rotary_dim / 2]`` uint64, rows from
            :attr:`Rope.frequencies` of Ropes with the same ``angle``, and ``set_ids`` ``[num_tokens]`` int32. A token whose
            id is no row is left alone.
        set_ids_from : pointer or array, optional
            With ``positions_from``: ``[num_tokens]`` int32, the sets the tokens were rotated with. Default:
            ``set_ids``.
        set_factors : pointer or array, optional
            ``[num_sets]`` float32, attention factors of the sets. Default: ones.
        num_sets : int
            Required with frequency_sets as a pointer.

        Notes
        -----
        The notes of :meth:`Rope.apply` hold here too.

        Raises
        ------
        ValueError, TypeError
            An argument is not allowed, or one is missing; the text names it. Nothing is written.
        pyrope.UnsupportedError
            This build does not serve the combination.
        pyrope.CudaError
            There is no CUDA device, or the launch failed.
        """
        self._fuse(0, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out, q_strides,
                   k_strides, q_out_strides, k_out_strides, stream, positions_stride, positions_from, v, v_out,
                   v_strides, v_out_strides, q_nope, q_nope_out, q_nope_strides, q_nope_out_strides, q_weight, k_weight,
                   q_scale, k_scale, v_scale, k_cache, v_cache, slots, page_table, page_indptr, page_table_stride,
                   request_ids, cache_positions, cache_skipped, cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped,
                   frequency_sets, set_ids, set_ids_from, set_factors, num_sets)

    def inverse(self, q, k=None, num_tokens=None, *, positions=None, offset=0, indptr=None, offsets=None,
                num_requests=None, q_out=None, k_out=None, q_strides=None, k_strides=None, q_out_strides=None,
                k_out_strides=None, stream=None, positions_stride=None, positions_from=None, v=None, v_out=None,
                v_strides=None, v_out_strides=None, q_nope=None, q_nope_out=None, q_nope_strides=None,
                q_nope_out_strides=None, q_weight=None, k_weight=None, q_scale=None, k_scale=None, v_scale=None,
                k_cache=None, v_cache=None, slots=None, page_table=None, page_indptr=None, page_table_stride=None,
                request_ids=None, cache_positions=None, cache_skipped=None, cos=None, sin=None, cos_sin_rows=None,
                cos_sin_stride=None, cos_sin_skipped=None, frequency_sets=None, set_ids=None, set_ids_from=None,
                set_factors=None, num_sets=None):
        """The transposed rotation between the same stages, with the arguments of :meth:`apply`."""
        self._fuse(ROPE_FLAG_INVERSE, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out,
                   q_strides, k_strides, q_out_strides, k_out_strides, stream, positions_stride, positions_from, v,
                   v_out, v_strides, v_out_strides, q_nope, q_nope_out, q_nope_strides, q_nope_out_strides, q_weight,
                   k_weight, q_scale, k_scale, v_scale, k_cache, v_cache, slots, page_table, page_indptr,
                   page_table_stride, request_ids, cache_positions, cache_skipped, cos, sin, cos_sin_rows,
                   cos_sin_stride, cos_sin_skipped, frequency_sets, set_ids, set_ids_from, set_factors, num_sets)

    def rotate_cache(self, k_cache, num_tokens=None, *, positions=None, offset=0, indptr=None, offsets=None,
                     num_requests=None, positions_stride=None, positions_from=None, slots=None, page_table=None,
                     page_indptr=None, page_table_stride=None, request_ids=None, cache_positions=None,
                     cache_skipped=None, k_scale=None, cos=None, sin=None, cos_sin_rows=None, cos_sin_stride=None,
                     cos_sin_skipped=None, frequency_sets=None, set_ids=None, set_ids_from=None, set_factors=None,
                     num_sets=None, inverse=False, stream=None):
        """Rotate keys where they lie in the cache: a context that shifts, a prefix used elsewhere, other frequencies.

        The keys of every token are found as they were appended, turned, and stored back in the same place: those of
        ``dtype`` with one rounding, and only what is rotated is read and written; those of ``k_out_dtype`` with the
        scale they have. Dynamic scales are computed anew, for which the whole row is read and written.

        Parameters
        ----------
        k_cache : pointer or array
            As for :meth:`apply`, and as the keys were appended: ``cache``, ``k_out_dtype`` and ``k_scale_kind`` are
            those of this object. No two tokens of the call may have one slot.
        num_tokens : int
            0 to 2**31 - 1. Required unless slots or cache_positions is an array.
        positions, offset, indptr, offsets, num_requests, positions_stride
            As for :meth:`apply`: what the keys are turned to. -1 leaves a token alone.
        positions_from : pointer or array, optional
            ``[num_tokens]`` of the dtype of ``positions``: what the keys were rotated to before; they turn by the
            difference. Default: they were stored without a rotation. Not allowed with ``sections``.
        slots, page_table, page_indptr, page_table_stride, request_ids, cache_positions, cache_skipped
            As for :meth:`apply`: where the keys are.
        k_scale : float, pointer or array, optional
            As for :meth:`apply`: what the keys were stored with; of dynamic scales read and written.
        cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped
            As for :meth:`apply`.
        frequency_sets, set_ids, set_ids_from, set_factors, num_sets
            As for :meth:`apply`. ``set_ids_from`` and ``set_ids`` with equal positions go from one of LongRoPE's
            sets to another.
        inverse : bool
            The transposed rotation: without ``positions_from``, back to what was not rotated.
        stream : int or object, optional
            As for :meth:`apply`.

        Notes
        -----
        ``attention_factor`` and ``set_factors`` multiply here as in :meth:`apply` with ``positions_from``. Keys that
        were stored rotated have theirs already: move them with an object whose ``attention_factor`` is 1.

        Raises
        ------
        ValueError, TypeError
            An argument is not allowed, or one is missing; the text names it. Nothing is written. Among them: ``norm``
            with ``after=True``, behind which keys cannot be turned.
        pyrope.UnsupportedError
            This build does not serve the combination.
        pyrope.CudaError
            There is no CUDA device, or the launch failed.
        """
        if not self.ready:
            raise RopeError("this FusedRope was never initialised, or its constructor refused the arguments")
        cdef rope_apply_desc d = self.base
        if self.cache is None:
            raise ValueError("k_cache: only allowed with cache=pyrope.PagedCache(...)")
        if self.norm is not None and self.norm.after:
            raise ValueError("norm: after=True, not allowed with rotate_cache: behind a norm keys cannot be turned")
        require("k_cache", k_cache, "with rotate_cache")
        memset(&d.norm, 0, sizeof(d.norm))
        memset(&d.q_quantize, 0, sizeof(d.q_quantize))
        memset(&d.v_quantize, 0, sizeof(d.v_quantize))
        d.cache.kind = ROPE_CACHE_SLOTS if slots is not None else ROPE_CACHE_PAGES
        self._read_launch(ROPE_FLAG_IN_CACHE | (ROPE_FLAG_INVERSE if as_flag("inverse", inverse) else 0), num_tokens,
                          stream, &d)
        if slots is not None:
            self._read_count("slots", slots, &d)
        elif cache_positions is not None:
            self._read_count("cache_positions", cache_positions, &d)
        if d.num_tokens < 0:
            raise TypeError("num_tokens: required with pointers")
        self._read_positions(None if self.sections is not None else positions, offset, indptr, offsets, num_requests,
                             &d)
        self._read_streams(positions, positions_stride, indptr, offset, &d)
        if positions_from is not None:
            self._read_positions_from(positions_from, positions, &d)
        read_scale("k_scale", k_scale, &d.k_quantize, self.k_scale_kind, d.num_k_heads, True, &d)
        self._read_cache(k_cache, None, k_cache, None, slots, page_table, page_indptr, page_table_stride, request_ids,
                         cache_positions, cache_skipped, &d)
        read_cos_sin(cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped, &d)
        read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from, &d)
        cdef rope_status status
        with nogil:
            status = rope_apply(&d)
        check(status)

    cdef int _read_count(self, str name, object x, rope_apply_desc* d) except -1:
        """num_tokens, where an array of one index a token brings it."""
        cdef View v
        if d.num_tokens >= 0 or not is_array(x):
            return 0
        read_view(x, name, <uintptr_t>d.stream, &v)
        if v.ndim != 1:
            raise ValueError(f"{name}: shape {shape_of(&v)}, must be contiguous [num_tokens]")
        d.num_tokens = v.shape[0]
        return 0

    cdef int _fuse(self, int flags, q, k, num_tokens, positions, offset, indptr, offsets, num_requests, q_out, k_out,
                   q_strides, k_strides, q_out_strides, k_out_strides, stream, positions_stride, positions_from, v,
                   v_out, v_strides, v_out_strides, q_nope, q_nope_out, q_nope_strides, q_nope_out_strides, q_weight,
                   k_weight, q_scale, k_scale, v_scale, k_cache, v_cache, slots, page_table, page_indptr,
                   page_table_stride, request_ids, cache_positions, cache_skipped, cos, sin, cos_sin_rows,
                   cos_sin_stride, cos_sin_skipped, frequency_sets, set_ids, set_ids_from, set_factors,
                   num_sets) except -1:
        if not self.ready:
            raise RopeError("this FusedRope was never initialised, or its constructor refused the arguments")
        cdef rope_apply_desc d = self.base
        cdef bint cached = self.cache is not None
        if cached and (k is not None or v is not None):
            d.cache.kind = ROPE_CACHE_SLOTS if slots is not None else ROPE_CACHE_PAGES
            refuse("k_out", k_out, "not allowed with a cache, which k is appended to")
            refuse("v_out", v_out, "not allowed with a cache, which v is appended to")
        else:
            memset(&d.cache, 0, sizeof(d.cache))
        if q is None:
            memset(&d.q_quantize, 0, sizeof(d.q_quantize))
        elif d.q_quantize.out_dtype:
            require("q_out", q_out, "with q_out_dtype")
        if k is None:
            memset(&d.k_quantize, 0, sizeof(d.k_quantize))
        elif d.k_quantize.out_dtype and not cached:
            require("k_out", k_out, "with k_out_dtype")
        if v is None:
            memset(&d.v_quantize, 0, sizeof(d.v_quantize))

        self._read_call(&d, flags, q, k, num_tokens, None if self.sections is not None else positions, offset, indptr,
                        offsets, num_requests, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, stream)
        self._read_streams(positions, positions_stride, indptr, offset, &d)
        if positions_from is not None:
            self._read_positions_from(positions_from, positions, &d)
        self._read_stored(v, v_out, v_strides, v_out_strides, q, q_nope, q_nope_out, q_nope_strides,
                          q_nope_out_strides, &d)
        self._read_norm(q, k, q_weight, k_weight, &d)
        read_scale("q_scale", q_scale, &d.q_quantize, self.q_scale_kind, d.num_q_heads, False, &d)
        read_scale("k_scale", k_scale, &d.k_quantize, self.k_scale_kind, d.num_k_heads, d.cache.kind, &d)
        read_scale("v_scale", v_scale, &d.v_quantize, self.v_scale_kind, self.num_v_heads, d.cache.kind, &d)
        self._read_cache(k, v, k_cache, v_cache, slots, page_table, page_indptr, page_table_stride, request_ids,
                         cache_positions, cache_skipped, &d)
        read_cos_sin(cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped, &d)
        read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from, &d)
        cdef rope_status status
        with nogil:
            status = rope_apply(&d)
        check(status)
        return 0

    cdef int _read_streams(self, positions, positions_stride, indptr, offset, rope_apply_desc* d) except -1:
        """[sections, num_tokens] positions."""
        cdef View v
        if self.sections is None:
            return refuse("positions_stride", positions_stride, "only allowed with sections")
        refuse("indptr", indptr, "not allowed with sections")
        if d.offset:
            raise ValueError(f"offset: {offset}, not allowed with sections")
        require("positions", positions, "with sections, [number of sections, num_tokens]")
        if not is_array(positions):
            d.positions = <void*>read_pointer(positions, "positions", d.num_tokens == 0)
            if positions_stride is not None:
                d.sections.stream_stride = as_integer("positions_stride", positions_stride)
                if d.sections.stream_stride == 0:
                    raise ValueError("positions_stride: 0, a stride must not be 0")
            return 0
        refuse("positions_stride", positions_stride, "only allowed with pointers, an array has its own")
        read_view(positions, "positions", <uintptr_t>d.stream, &v)
        check_device("positions", &v, d)
        if v.kind != KIND_INT or v.itemsize not in (4, 8):
            raise TypeError(f"positions: dtype {getattr(positions, 'dtype', 'unknown')}, must be int32 or int64")
        if (v.ndim != 2 or v.shape[0] != d.sections.num_streams or v.shape[1] != d.num_tokens
                or (v.shape[1] > 1 and v.strides[1] != 1)):
            raise ValueError(f"positions: shape {shape_of(&v)}, must be [{d.sections.num_streams}, {d.num_tokens}] "
                             "with contiguous rows")
        if v.strides[0] == 0 and d.num_tokens:
            raise ValueError("positions: a broadcast array (stride 0) is not supported")
        d.sections.stream_stride = v.strides[0]
        d.position_dtype = ROPE_INDEX_INT32 if v.itemsize == 4 else ROPE_INDEX_INT64
        d.positions = v.data
        return 0

    cdef int _read_positions_from(self, positions_from, positions, rope_apply_desc* d) except -1:
        cdef int32_t dtype = d.position_dtype
        cdef int64_t length = d.num_tokens
        if self.sections is not None:
            raise ValueError("positions_from: not allowed with sections")
        require("positions", positions, "with positions_from")
        d.positions_from = self._read_index("positions_from", positions_from, &length, &dtype, d)
        if dtype != d.position_dtype:
            raise TypeError("positions_from: must have the dtype of positions")
        return 0

    cdef int _read_stored(self, v, v_out, v_strides, v_out_strides, q, q_nope, q_nope_out, q_nope_strides,
                          q_nope_out_strides, rope_apply_desc* d) except -1:
        """What is stored and not rotated."""
        if v is not None:
            d.num_v_heads, d.v_head_dim = self.num_v_heads, self.v_head_dim
            self._read_heads("v", v, v_strides, self.num_v_heads, self.v_head_dim, d.dtype, False, d, &d.v)
            if not d.cache.kind:
                require("v_out", v_out, "with v where there is no cache")
        else:
            refuse("v_strides", v_strides, "given without v")
            refuse("v_out", v_out, "given without v")
        if v_out is not None:
            self._read_heads("v_out", v_out, v_out_strides, self.num_v_heads, self.v_head_dim,
                             ONE_BYTE if d.v_quantize.out_dtype else d.dtype, True, d, &d.v_out)
        else:
            refuse("v_out_strides", v_out_strides, "given without v_out")
        if q_nope is None:
            refuse("q_nope_out", q_nope_out, "given without q_nope")
            refuse("q_nope_strides", q_nope_strides, "given without q_nope")
            return refuse("q_nope_out_strides", q_nope_out_strides, "given without q_nope")
        if self.q_nope_dim == 0:
            raise ValueError("q_nope: only allowed with q_nope_dim")
        require("q", q, "with q_nope")
        require("q_nope_out", q_nope_out, "with q_nope")
        d.q_nope_dim = self.q_nope_dim
        self._read_heads("q_nope", q_nope, q_nope_strides, d.num_q_heads, d.q_nope_dim, d.dtype, False, d, &d.q_nope)
        return self._read_heads("q_nope_out", q_nope_out, q_nope_out_strides, d.num_q_heads, d.q_nope_dim,
                                ONE_BYTE if d.q_quantize.out_dtype else d.dtype, True, d, &d.q_nope_out)

    cdef int _read_norm(self, q, k, q_weight, k_weight, rope_apply_desc* d) except -1:
        if self.norm is None:
            refuse("q_weight", q_weight, "only allowed with norm=pyrope.RMSNorm(...)")
            return refuse("k_weight", k_weight, "only allowed with norm=pyrope.RMSNorm(...)")
        if q_weight is None and k_weight is None:
            raise TypeError("q_weight and k_weight: both None, at least one is required with norm")
        if q_weight is not None:
            require("q", q, "with q_weight")
            d.norm.q_weight = read_weight("q_weight", q_weight, d.num_q_heads, d)
        if k_weight is not None:
            require("k", k, "with k_weight")
            d.norm.k_weight = read_weight("k_weight", k_weight, d.num_k_heads, d)
        return 0

    cdef int _read_cache(self, k, v, k_cache, v_cache, slots, page_table, page_indptr, page_table_stride, request_ids,
                         cache_positions, cache_skipped, rope_apply_desc* d) except -1:
        cdef int64_t count = d.num_tokens
        cdef str reason
        if not d.cache.kind:
            reason = "only allowed with cache=pyrope.PagedCache(...)" if self.cache is None else "given without k and v"
            refuse("k_cache", k_cache, reason)
            refuse("v_cache", v_cache, reason)
            refuse("slots", slots, reason)
            refuse("page_table", page_table, reason)
            refuse("page_indptr", page_indptr, reason)
            refuse("page_table_stride", page_table_stride, reason)
            refuse("request_ids", request_ids, reason)
            refuse("cache_positions", cache_positions, reason)
            return refuse("cache_skipped", cache_skipped, reason)
        if k is not None:
            require("k_cache", k_cache, "with k and a cache")
            read_pages("k_cache", k_cache, d.num_k_heads, d.head_dim, d.k_quantize.out_dtype, self.heads_first, d,
                       &d.cache.k)
        else:
            refuse("k_cache", k_cache, "given without k")
            memset(&d.cache.k, 0, sizeof(d.cache.k))
        if v is not None:
            require("v_cache", v_cache, "with v and a cache")
            read_pages("v_cache", v_cache, self.num_v_heads, self.v_head_dim, d.v_quantize.out_dtype,
                       self.heads_first, d, &d.cache.v)
        else:
            refuse("v_cache", v_cache, "given without v")
            memset(&d.cache.v, 0, sizeof(d.cache.v))
        if d.cache.kind == ROPE_CACHE_SLOTS:
            refuse("page_table", page_table, "not allowed together with slots")
            refuse("page_indptr", page_indptr, "not allowed together with slots")
            refuse("page_table_stride", page_table_stride, "not allowed together with slots")
            refuse("request_ids", request_ids, "not allowed together with slots")
            refuse("cache_positions", cache_positions, "not allowed together with slots")
            d.cache.slots = self._read_index("slots", slots, &count, &d.cache.index_dtype, d)
        else:
            if page_table is None:
                raise TypeError("slots and page_table: both None, one of them is required with a cache")
            require("request_ids", request_ids, "with page_table")
            require("cache_positions", cache_positions, "with page_table")
            d.cache.cache_positions = self._read_index("cache_positions", cache_positions, &count,
                                                       &d.cache.index_dtype, d)
            d.cache.request_ids = <int32_t*>read_memory("request_ids", request_ids, KIND_INT, 4, &count, "[num_tokens]",
                                                        False, d)
            read_page_table(page_table, page_indptr, page_table_stride, d)
        if cache_skipped is not None:
            count = 1
            d.cache.num_skipped = <int64_t*>read_memory("cache_skipped", cache_skipped, KIND_INT, 8, &count, "[1]",
                                                        True, d)
        return 0
