# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""pyrope.FusedRope: Rope with the stages before and behind the rotation."""

from libc.stdint cimport uint8_t

from pyrope._arguments cimport ANGLES, LAYOUTS, Call, as_count, as_flag, choose, name_of, unusual_of
from pyrope._cache cimport begin_rotate_cache, read_cache, read_check, read_num_tokens, set_cache
from pyrope._call cimport rotate
from pyrope._capi cimport *
from pyrope._cos_sin cimport choose_angle, read_cos_sin, set_table
from pyrope._positions cimport read_all_positions
from pyrope._rope cimport Rope
from pyrope._stages cimport (
    read_frequency_sets, read_scale, read_sums, read_weights, set_norm, set_quantize, set_sections, set_still, set_xpos,
)
from pyrope._tensors cimport begin_stages, read_k_nope, read_q_nope, read_rotated, read_sequences, read_v, set_k_dtype

# Options that a Rope does not have, those that a repr shows where they are not the default: of angles, of stages.
_TURNS = {"cos_sin_columns": "pairs", "sections": None, "sections_interleaved": False, "pair_streams": None,
          "num_blocks": 1, "xpos": None}
_STAGES = {"q_nope_dim": 0, "norm": None, "q_out_dtype": None, "k_out_dtype": None, "v_out_dtype": None,
           "q_scale_kind": None, "k_scale_kind": None, "v_scale_kind": None, "cache": None, "out_layout": None,
           "k_nope_dim": 0, "k_dtype": None}
_OPTIONS = (*_TURNS, *_STAGES, "cos_sin_dtype", "v_head_dim")


cdef class FusedRope(Rope):
    """FusedRope(head_dim, num_q_heads, num_k_heads, *, angle='exact', cos_sin_dtype='float32', \
cos_sin_columns='pairs', sections=None, sections_interleaved=False, pair_streams=None, num_blocks=1, xpos=None, \
num_v_heads=None, v_head_dim=None, q_nope_dim=0, norm=None, q_out_dtype=None, k_out_dtype=None, v_out_dtype=None, \
q_scale_kind=None, k_scale_kind=None, v_scale_kind=None, cache=None, rotary_dim=None, rotary_offset=0, theta=10000.0, \
scaling=None, inv_freq=None, attention_factor=None, layout='neox', dtype='bfloat16', device='cuda', \
position_dtype='int64', num_threads=0, enable_pdl=False, positions_ready=False, skip=-1, out_layout=None, \
k_nope_dim=0, k_dtype=None)
--

    A Rope with stages around the rotation, in one launch that reads and writes every element once.

    load -> [RMS norm of q, k] -> rotate -> [quantise q, k, v] -> store | append k, v to a KV cache

    Every stage is optional; without any, the results are a Rope's. Like a Rope it is immutable, holds no device
    memory, and any number of threads may use it at once.

    Parameters
    ----------
    head_dim, num_q_heads, num_k_heads
        As for :class:`Rope`.
    angle : {"exact", "fp32", "cos_sin", "radians"}
        As for :class:`Rope`; ``cos_sin``: cosines and sines come with the call, indexed by position; ``radians``:
        float32 angles do, whose cosines and sines are within 1e-7 of the true ones. Then ``theta``, ``scaling`` and
        ``inv_freq`` are not allowed, ``attention_factor`` is 1 unless given, and :attr:`Rope.inv_freq` and
        :attr:`Rope.frequencies` are empty.
    cos_sin_dtype : {"float32", "float16", "bfloat16"}
        Of ``cos`` and ``sin`` with ``angle="cos_sin"``.
    cos_sin_columns : {"pairs", "elements"}
        Of ``cos``, ``sin`` and ``angles``: one for each pair, ``rotary_dim / 2``, or for each rotated element,
        ``rotary_dim``, where those of a pair may differ (``x cos[x] - y sin[x]``, ``y cos[y] + x sin[y]``).
    sections : tuple of 2 to 8 int, optional
        M-RoPE (Qwen2-VL, arXiv:2409.12191; also 2-D and 3-D vision): how many pairs turn by each of a token's
        positions, in all ``rotary_dim / 2``.
    sections_interleaved : bool
        False: the first ``sections[0]`` pairs turn by the first position, and so on. True (Qwen3-VL): with ``n``
        sections, pair ``i`` turns by position ``s = i % n`` if ``i < n * sections[s]``, else by the first.
    pair_streams : sequence of int, optional
        In place of sections: for each of the ``rotary_dim / 2`` pairs which of a token's positions, 0 to 7 and not all
        0, it turns by, in any order (Ernie-4.5-VL). On CUDA it takes longer, as more than four sections do.
    num_blocks : int
        1 to 8. The rotated part is so many blocks of equal size, each with pairs of its own, in itself, of the
        frequencies of ``rotary_dim / num_blocks`` (``inv_freq`` has those of all pairs, block by block). Block ``i``
        turns by position ``i`` of a token, if sections and pair_streams say nothing else (2-D of Gemma 4's vision and
        of ggml).
    xpos : pyrope.XPos, optional
        Magnitudes of the rotated q and k that decay with their distance; of :meth:`inverse` too, which transposes. With
        ``positions_from`` they are those of the difference of the positions. ``rotary_dim`` is then at most 512, and
        ``angle="cos_sin"`` is not allowed.
    num_v_heads, v_head_dim : int, optional
        Shape of v, which is stored and not rotated. Default: ``num_k_heads``, ``head_dim``.
    q_nope_dim, k_nope_dim : int
        Elements of a head of ``q_nope`` and of ``k_nope``, the parts that are stored and not rotated (multi-head latent
        attention, arXiv:2405.04434).
    norm : pyrope.RMSNorm, optional
        RMS norm of q and k.
    q_out_dtype, k_out_dtype, v_out_dtype : {"float8_e4m3fn", "float8_e5m2", "int8", "float4_e2m1fn", "q8_0", "q4_0"}, \
optional
        Quantise: stored is ``round(x * (1 / scale))``, to nearest even, saturating. ``q_out_dtype`` is that of
        ``q_nope`` too, ``k_out_dtype`` of ``k_nope``. ``float4_e2m1fn``, only with GroupScales: two in a byte, the
        first in its low bits. ``q8_0``, ``q4_0``: GGUF's blocks of 32 elements, of 34 and 18 bytes, a float16 scale
        first, laid out and rounded as ggml does. Rows and strides of these three count bytes. Or another dtype than
        ``dtype``, without a scale. Default: stored as ``dtype``.
    q_scale_kind, k_scale_kind, v_scale_kind : {"tensor", "head", "token", "dynamic"} or pyrope.GroupScales, optional
        Which scales, float32, a call gives as memory: one; one a head; one a token; or, ``dynamic``, one a token and
        head, which are computed (the head's largest magnitude over the type's largest value, 1 for a head of zeros)
        and written; GroupScales, the same for groups of its elements. Default: ``tensor``, or a number in the call.
    cache : pyrope.PagedCache, optional
        Append k and v to a KV cache instead of storing them, or besides where a call has ``k_out`` and ``v_out``.
    out_layout : {"neox", "gptj"}, optional
        Which elements of an output are a pair, where it is not ``layout``: pairs of neighbours that are stored as
        halves (DeepSeek), or the other way. Not in place, nor with a norm behind it. Default: ``layout``.
    k_dtype : {"float16", "bfloat16"}, optional
        Of k, v, k_nope and k's weights, where ``dtype``, that of q, is the other of these. Default: ``dtype``.
    rotary_dim : int, optional
        As for :class:`Rope`, or 0: nothing turns; what is not normalised or quantised is copied, bit for bit.
    rotary_offset, theta, scaling, inv_freq, attention_factor, layout, dtype, device, position_dtype, num_threads, \
enable_pdl, positions_ready, skip
        As for :class:`Rope`.

    Raises
    ------
    ValueError, TypeError, pyrope.UnsupportedError
        As for :class:`Rope`.

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

    cdef readonly str cos_sin_dtype  # type: DType
    cdef readonly str cos_sin_columns  # type: CosSinColumns
    cdef readonly tuple sections  # type: tuple[int, ...] | None
    cdef readonly bint sections_interleaved
    cdef readonly tuple pair_streams  # type: tuple[int, ...] | None
    cdef uint8_t streams[ROPE_MAX_ROTARY_DIM]  # base's pair_streams, of rotary_dim / 2
    cdef readonly object xpos  # type: XPos | None
    cdef readonly int num_v_heads, v_head_dim, q_nope_dim, k_nope_dim
    cdef readonly str out_layout  # type: Layout | None
    cdef readonly str k_dtype  # type: DType | None
    cdef readonly object norm  # type: RMSNorm | None
    cdef readonly str q_out_dtype, k_out_dtype, v_out_dtype  # type: OutDType | None
    cdef readonly object q_scale_kind, k_scale_kind, v_scale_kind  # type: ScaleKind | None
    cdef readonly object cache  # type: PagedCache | None
    cdef bint heads_first  # the cache's layout

    def __init__(self, head_dim: SupportsIndex, num_q_heads: SupportsIndex, num_k_heads: SupportsIndex, *,
                 angle: FusedAngle = "exact", cos_sin_dtype: DTypeLike = "float32",
                 cos_sin_columns: CosSinColumns = "pairs", sections: Sections | None = None,
                 sections_interleaved: bool = False, pair_streams: PairStreams | None = None,
                 num_blocks: SupportsIndex = 1, xpos: XPos | None = None,
                 num_v_heads: SupportsIndex | None = None, v_head_dim: SupportsIndex | None = None,
                 q_nope_dim: SupportsIndex = 0, norm: RMSNorm | None = None, q_out_dtype: OutDTypeLike | None = None,
                 k_out_dtype: OutDTypeLike | None = None, v_out_dtype: OutDTypeLike | None = None,
                 q_scale_kind: ScaleKind | None = None, k_scale_kind: ScaleKind | None = None,
                 v_scale_kind: ScaleKind | None = None, cache: PagedCache | None = None,
                 rotary_dim: SupportsIndex | None = None, rotary_offset: SupportsIndex = 0,
                 theta: SupportsFloat = 10000.0, scaling: Scaling | None = None, inv_freq: Numbers | None = None,
                 attention_factor: SupportsFloat | None = None, layout: Layout = "neox", dtype: DTypeLike = "bfloat16",
                 device: DeviceLike = "cuda", position_dtype: PositionDTypeLike = "int64",
                 num_threads: SupportsIndex = 0, enable_pdl: bool = False, positions_ready: bool = False,
                 skip: SupportsIndex | None = -1, out_layout: Layout | None = None,
                 k_nope_dim: SupportsIndex = 0, k_dtype: DTypeLike | None = None) -> None:
        cdef rope_apply_desc* d = &self.base
        name = choose_angle(angle, theta, scaling, inv_freq)
        cdef bint tabulated = name not in ANGLES
        cdef bint still = type(rotary_dim) is int and rotary_dim == 0
        self.blocks = as_count("num_blocks", num_blocks, 1, ROPE_MAX_PAIR_STREAMS)
        Rope.__init__(self, head_dim, num_q_heads, num_k_heads, rotary_dim=2 if still else rotary_dim,
                      rotary_offset=rotary_offset, theta=theta, scaling=scaling, inv_freq=inv_freq, layout=layout,
                      attention_factor=attention_factor, dtype=dtype, angle="exact" if tabulated else angle,
                      device=device, position_dtype=position_dtype, num_threads=num_threads, enable_pdl=enable_pdl,
                      positions_ready=positions_ready, skip=skip)
        self.ready = False
        if still:
            set_still({"rotary_offset": rotary_offset, "angle": tabulated, "sections": sections,
                       "pair_streams": pair_streams, "num_blocks": num_blocks > 1, "xpos": xpos, "scaling": scaling,
                       "inv_freq": inv_freq, "out_layout": out_layout}, d)
            self.inv_freqs = ()
        self.cos_sin_dtype, self.cos_sin_columns = set_table(cos_sin_dtype, cos_sin_columns, name, d)
        if tabulated:
            d.angle, self.angle, self.theta, self.inv_freqs = ROPE_ANGLE_COS_SIN, name, None, ()

        self.num_v_heads, self.v_head_dim = d.num_k_heads, d.head_dim
        if num_v_heads is not None:
            self.num_v_heads = as_count("num_v_heads", num_v_heads, 1, ROPE_MAX_HEADS)
        if v_head_dim is not None:
            self.v_head_dim = as_count("v_head_dim", v_head_dim, 1, ROPE_MAX_HEAD_DIM)
        self.q_nope_dim = as_count("q_nope_dim", q_nope_dim, 0, ROPE_MAX_HEAD_DIM)
        self.k_nope_dim = as_count("k_nope_dim", k_nope_dim, 0, ROPE_MAX_HEAD_DIM)
        if out_layout is not None:
            d.out_layout = ROPE_OUT_LAYOUT_NEOX + choose("out_layout", out_layout, LAYOUTS)
            self.out_layout = name_of(LAYOUTS, d.out_layout - ROPE_OUT_LAYOUT_NEOX)
        self.k_dtype = set_k_dtype(k_dtype, d)
        self.q_out_dtype, self.q_scale_kind = set_quantize("q", q_out_dtype, q_scale_kind, d.head_dim, d)
        self.k_out_dtype, self.k_scale_kind = set_quantize("k", k_out_dtype, k_scale_kind, d.head_dim, d)
        self.v_out_dtype, self.v_scale_kind = set_quantize("v", v_out_dtype, v_scale_kind, self.v_head_dim, d)
        self.sections_interleaved = as_flag("sections_interleaved", sections_interleaved)
        d.num_blocks = self.blocks
        if self.blocks > 1 and sections is None and pair_streams is None:
            sections = (d.rotary_dim // 2 // self.blocks,) * self.blocks
        self.sections, self.pair_streams = set_sections(sections, self.sections_interleaved, pair_streams,
                                                        self.streams, d)
        if xpos is not None:
            set_xpos(xpos, d)
        if norm is not None:
            set_norm(norm, self.dtype, d)
        if cache is not None:
            self.heads_first = set_cache(cache, self.num_v_heads, self.v_head_dim, self.k_nope_dim, d)
        self.xpos, self.norm, self.cache, self.ready = xpos, norm, cache, True

    def __reduce__(self):
        from functools import partial
        make, arguments = Rope.__reduce__(self)
        options = make.keywords | {name: getattr(self, name) for name in _OPTIONS}
        options |= {"num_v_heads": self.num_v_heads or None}
        if self.base.angle == ROPE_ANGLE_COS_SIN:
            del options["inv_freq"]
        elif self.rotary_dim == 0:
            options |= {"theta": 10000.0}
        return partial(type(self), **options), arguments

    def __repr__(self):
        unusual = "".join(f", {option}" for option in unusual_of(self, _TURNS | _STAGES))
        return f"FusedRope{super().__repr__()[4:-1]}{unusual})"

    @property
    def num_blocks(self) -> int:
        """Blocks of the rotated part."""
        return self.blocks

    @property
    def num_streams(self) -> int:
        """Positions that a token has; 0: one."""
        return self.base.sections.num_streams

    def apply(self, q: Memory | None, k: Memory | None = None, num_tokens: SupportsIndex | None = None, *,
              positions: Memory | None = None, offset: SupportsIndex = 0, indptr: Memory | None = None,
              offsets: Memory | None = None, num_requests: SupportsIndex | None = None, q_out: Memory | None = None,
              k_out: Memory | None = None, q_strides: Strides | None = None, k_strides: Strides | None = None,
              q_out_strides: Strides | None = None, k_out_strides: Strides | None = None, inverse: bool = False,
              stream: Stream | None = None, positions_stride: SupportsIndex | None = None,
              positions_from: Memory | None = None, v: Memory | None = None, v_out: Memory | None = None,
              v_strides: Strides | None = None, v_out_strides: Strides | None = None, q_nope: Memory | None = None,
              q_nope_out: Memory | None = None, q_nope_strides: Strides | None = None,
              q_nope_out_strides: Strides | None = None, q_weight: Memory | None = None,
              k_weight: Memory | None = None, q_scale: Scale | None = None, k_scale: Scale | None = None,
              v_scale: Scale | None = None, k_cache: Memory | None = None, v_cache: Memory | None = None,
              slots: Memory | None = None, page_table: Memory | None = None, page_indptr: Memory | None = None,
              page_table_stride: SupportsIndex | None = None, request_ids: Memory | None = None,
              cache_positions: Memory | None = None, cache_skipped: Memory | None = None, cos: Memory | None = None,
              sin: Memory | None = None, angles: Memory | None = None, k_cos: Memory | None = None,
              k_sin: Memory | None = None, k_angles: Memory | None = None, cos_sin_rows: SupportsIndex | None = None,
              cos_sin_stride: SupportsIndex | None = None, cos_sin_skipped: Memory | None = None,
              frequency_sets: Memory | None = None, set_ids: Memory | None = None, set_ids_from: Memory | None = None,
              set_factors: Memory | None = None, num_sets: SupportsIndex | None = None,
              sequence_length: SupportsIndex | None = None, skipped: Skipped = "leave", k_nope: Memory | None = None,
              k_nope_out: Memory | None = None, k_nope_strides: Strides | None = None,
              k_nope_out_strides: Strides | None = None, k_nope_cache: Memory | None = None,
              q_tensor_scale: Scale | None = None, k_tensor_scale: Scale | None = None,
              v_tensor_scale: Scale | None = None, check: bool | None = None, q_sums: Memory | None = None,
              k_sums: Memory | None = None, write_sums: bool = False) -> None:
        """Rotate q and k, and pass q, k and v through the stages.

        Memory is given as to :meth:`Rope.apply`, whose notes hold here too: as a pointer, or as an array of the shape
        and dtype below, of a quantised type of any dtype of one byte. What is written may not overlap anything else.

        Parameters
        ----------
        q, k, num_tokens, offset, indptr, offsets, num_requests, inverse, stream, sequence_length, skipped and strides
            As for :meth:`Rope.apply`. ``offset`` and ``indptr`` are not allowed with ``sections``, and ``inverse``
            leaves the other stages as they are.
        q_out, k_out : pointer or array, optional
            As for :meth:`Rope.apply`. Required where quantised. Beside a cache ``k_out`` has ``dtype``; it may be k.
        positions : pointer or array, optional
            As for :meth:`Rope.apply`; where tokens have several, with sections, streams or blocks, required and
            ``[streams, num_tokens]``, or ``[streams, batch, tokens]``. float32 is not allowed with ``angle="cos_sin"``,
            nor with ``frequency_sets`` of exact angles.
        positions_stride : int, optional
            With ``sections`` and pointers: elements between the rows of positions. Default: ``num_tokens``.
        positions_from : pointer or array, optional
            ``[num_tokens]`` of the dtype of ``positions``: turn from these positions to those, by the difference. For
            cached keys that move. Not allowed with ``sections``.
        v, v_out : pointer or array, optional
            ``[num_tokens, num_v_heads, v_head_dim]``, stored as it is or quantised; with a cache ``v_out``, of
            ``dtype``, is stored besides.
        q_nope, q_nope_out, k_nope, k_nope_out, k_nope_cache : pointer or array, optional
            ``[num_tokens, num_q_heads, q_nope_dim]`` or ``[num_tokens, num_k_heads, k_nope_dim]``, one of them,
            likewise; k_nope_cache: where k_nope is appended.
        q_weight, k_weight : pointer or array, optional
            With ``norm``: ``[head_dim]``, or ``[num_heads, head_dim]`` across heads, in one dimension or two, of its
            ``weight_dtype``. One left out leaves its tensor as it is.
        q_sums, k_sums : pointer or array, optional
            With ``RMSNorm(ranks=...)``: ``[num_tokens]`` float32. ``write_sums`` writes them, and nothing else.
        q_scale, k_scale, v_scale : float, pointer or array, optional
            Of a quantised tensor: a number above 0, or float32 memory as the tensor's ``scale_kind`` says: ``[1]``;
            ``[heads]``; ``[num_tokens]``; or, written, ``[num_tokens, heads]``, in a cache
            ``[num_pages * page_size, heads]``; of GroupScales, of their dtype (8-bit ones of any dtype of one byte),
            ``[num_tokens, heads, groups]``, in a cache ``[num_pages, page_size, heads, groups]`` or as its layout
            says, where an array brings its strides. Default: 1.
        q_tensor_scale, k_tensor_scale, v_tensor_scale : float, pointer or array, optional
            With GroupScales of float8_e4m3fn (NVFP4): the scale of the tensor, a number or ``[1]`` float32; its largest
            magnitude / (6 * 448) uses all of the scales' range. Default: 1.
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
        check : bool, optional
            Whether a slot or page outside the cache is an error that names the token. On CUDA that waits for the
            stream. Default: on the CPU, unless ``cache_skipped`` is given.
        cos, sin : pointer or array
            With ``angle="cos_sin"``: ``[rows, columns]`` of ``cos_sin_dtype``; without ``sin``, ``cos`` is
            ``[rows, 2 columns]``, cosines before sines. A token whose position is no row is left alone. Without
            positions a token takes row ``offset`` + its place in its sequence; an array may then be ``[batch, tokens,
            columns]``, a row for each token, and ``[1, tokens, columns]`` is for every sequence of q.
        angles : pointer or array
            With ``angle="radians"``: ``[rows, columns]`` float32, likewise.
        k_cos, k_sin, k_angles : pointer or array, optional
            The same for k, where it turns by others than q; as many rows, with pointers of the same stride.
        cos_sin_rows, cos_sin_stride : int
            With pointers: the number of rows, and elements between them. Default: contiguous.
        cos_sin_skipped : optional
            ``[1]`` int64, incremented for every such token.
        frequency_sets, set_ids : pointer or array, optional
            Frequencies for every token: ``frequency_sets`` ``[num_sets, rotary_dim / 2]`` uint64, rows from
            :attr:`Rope.frequencies` of Ropes with the same ``angle``, and ``set_ids`` ``[num_tokens]`` int32. A token
            whose id is no row is left alone.
        set_ids_from : pointer or array, optional
            With ``positions_from``: ``[num_tokens]`` int32, what the tokens were rotated with. Default: ``set_ids``.
        set_factors, num_sets : pointer or array, optional; int
            ``[num_sets]`` float32, attention factors of the sets (default: ones). With a pointer, how many there are.

        Raises
        ------
        ValueError, TypeError, pyrope.UnsupportedError, pyrope.CudaError
            As for :meth:`Rope.apply`; an argument is missing, or this build does not serve the combination.
        """
        cdef rope_apply_desc d
        cdef Call c
        self._begin(num_tokens, inverse, stream, &d, &c)
        begin_stages(q, k, v, q_out, k_out, slots, self.cache is not None, &d)
        read_sequences(sequence_length, positions, indptr, skipped, &d, &c)
        read_rotated(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, &d, &c)
        read_all_positions(positions, offset, indptr, offsets, num_requests, positions_stride, positions_from, &d, &c)
        read_v(v, v_out, v_strides, v_out_strides, self.num_v_heads, self.v_head_dim, &d, &c)
        read_q_nope(q, q_nope, q_nope_out, q_nope_strides, q_nope_out_strides, self.q_nope_dim, &d, &c)
        read_k_nope(k, k_nope, k_nope_out, k_nope_strides, k_nope_out_strides, self.k_nope_dim, &d, &c)
        read_weights(q, k, q_weight, k_weight, self.norm, &d, &c)
        read_sums(q_sums, k_sums, write_sums, &d, &c)
        read_scale("q_scale", q_scale, "q_tensor_scale", q_tensor_scale, self.q_scale_kind, d.num_q_heads, d.head_dim,
                   False, &d.q_quantize, &d.q_groups, &d, &c)
        read_scale("k_scale", k_scale, "k_tensor_scale", k_tensor_scale, self.k_scale_kind, d.num_k_heads, d.head_dim,
                   self.heads_first, &d.k_quantize, &d.k_groups, &d, &c)
        read_scale("v_scale", v_scale, "v_tensor_scale", v_tensor_scale, self.v_scale_kind, self.num_v_heads,
                   self.v_head_dim, self.heads_first, &d.v_quantize, &d.v_groups, &d, &c)
        read_cache(k, v, k_nope, k_cache, v_cache, k_nope_cache, slots, page_table, page_indptr, page_table_stride,
                   request_ids, cache_positions, cache_skipped, self.cache, self.heads_first, &d, &c)
        read_cos_sin(cos, sin, angles, k_cos, k_sin, k_angles, cos_sin_rows, cos_sin_stride, cos_sin_skipped, &d, &c)
        read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from, &d, &c)
        read_check(check, &d)
        rotate(&d)

    def inverse(self, *arguments: Any, **options: Any) -> None:
        """The transposed rotation between the same stages, as for :class:`Rope`."""
        self.apply(*arguments, inverse=True, **options)

    def rotate_cache(self, k_cache: Memory, num_tokens: SupportsIndex | None = None, *,
                     positions: Memory | None = None, offset: SupportsIndex = 0, indptr: Memory | None = None,
                     offsets: Memory | None = None, num_requests: SupportsIndex | None = None,
                     positions_stride: SupportsIndex | None = None, positions_from: Memory | None = None,
                     slots: Memory | None = None, page_table: Memory | None = None, page_indptr: Memory | None = None,
                     page_table_stride: SupportsIndex | None = None, request_ids: Memory | None = None,
                     cache_positions: Memory | None = None, cache_skipped: Memory | None = None,
                     k_scale: Scale | None = None, cos: Memory | None = None, sin: Memory | None = None,
                     cos_sin_rows: SupportsIndex | None = None, cos_sin_stride: SupportsIndex | None = None,
                     cos_sin_skipped: Memory | None = None, frequency_sets: Memory | None = None,
                     set_ids: Memory | None = None, set_ids_from: Memory | None = None,
                     set_factors: Memory | None = None, num_sets: SupportsIndex | None = None, inverse: bool = False,
                     stream: Stream | None = None, k_tensor_scale: Scale | None = None,
                     check: bool | None = None) -> None:
        """Rotate keys where they lie in the cache: a context that shifts, a prefix used elsewhere, other frequencies.

        The keys of every token are found as they were appended, turned, and stored back in the same place: those of
        ``dtype`` with one rounding, and only what is rotated is read and written; those of ``k_out_dtype`` with the
        scale they have. Dynamic scales, and those of groups and blocks, are computed anew, for which the whole row is
        read and written.

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
        slots, page_table, page_indptr, page_table_stride, request_ids, cache_positions, cache_skipped, check
            As for :meth:`apply`: where the keys are.
        k_scale, k_tensor_scale : float, pointer or array, optional
            As for :meth:`apply`: what the keys were stored with; of dynamic scales and GroupScales read and written.
        cos, sin, cos_sin_rows, cos_sin_stride, cos_sin_skipped, stream
            As for :meth:`apply`.
        frequency_sets, set_ids, set_ids_from, set_factors, num_sets
            As for :meth:`apply`; with equal positions, from one of LongRoPE's sets to another.
        inverse : bool
            The transposed rotation: without ``positions_from``, back to what was not rotated.

        Notes
        -----
        ``attention_factor`` and ``set_factors`` multiply here as in :meth:`apply` with ``positions_from``. Keys that
        were stored rotated have theirs already: move them with an object whose ``attention_factor`` is 1.

        Each move rounds, and a turn of less than half a step of the stored type is lost every time: keys of variance 1
        moved by -8 64 times are off by up to 1.1 (int8, dynamic scales) and 6.6 (e4m3, scale 1), by -512 once by 0.034
        and 0.42. What does not wear: moves that are added up and made as one. A context that drops its oldest tokens
        need not move at all: attention sees differences of positions only, and angles are exact at every position.

        Raises
        ------
        ValueError, TypeError, pyrope.UnsupportedError, pyrope.CudaError
            As for :meth:`apply`. Among them: ``norm`` with ``after=True``, behind which keys cannot be turned.
        """
        cdef rope_apply_desc d
        cdef Call c
        self._begin(num_tokens, inverse, stream, &d, &c)
        begin_rotate_cache(k_cache, slots, self.cache is not None, &d)
        read_num_tokens(slots, cache_positions, &c)
        d.num_tokens = c.num_tokens
        read_all_positions(positions, offset, indptr, offsets, num_requests, positions_stride, positions_from, &d, &c)
        read_scale("k_scale", k_scale, "k_tensor_scale", k_tensor_scale, self.k_scale_kind, d.num_k_heads, d.head_dim,
                   self.heads_first, &d.k_quantize, &d.k_groups, &d, &c)
        read_cache(k_cache, None, None, k_cache, None, None, slots, page_table, page_indptr, page_table_stride,
                   request_ids, cache_positions, cache_skipped, self.cache, self.heads_first, &d, &c)
        read_cos_sin(cos, sin, None, None, None, None, cos_sin_rows, cos_sin_stride, cos_sin_skipped, &d, &c)
        read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from, &d, &c)
        read_check(check, &d)
        rotate(&d)


def stages_of(rope: Rope) -> list[str]:
    """What a rope does besides rotating, as text."""
    return unusual_of(rope, _STAGES) if isinstance(rope, FusedRope) else []
