# cython: language_level=3, freethreading_compatible=True
"""The stages of pyrope.FusedRope but for its cache: what its constructor (set_*) and its calls (read_*) are given."""

from libc.math cimport isfinite
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset

from pyrope._arguments cimport (
    Call, as_count, as_flag, as_integer, as_real, as_scale, choose, is_contiguous, is_scale, name_of, read_elements,
    read_memory, refuse, refuse_small, require, shape_of,
)
from pyrope._capi cimport *
from pyrope._groups cimport read_groups, set_groups
from pyrope._tensors cimport k_element
from pyrope._view cimport KIND_FLOAT, KIND_INT, KIND_UINT, View, is_array, read_pointer

from pyrope.stages import GroupScales, RMSNorm, XPos

_OUT_DTYPES = {
    "float8_e4m3fn": ROPE_OUT_E4M3, "float8_e5m2": ROPE_OUT_E5M2, "int8": ROPE_OUT_INT8,
    "float32": ROPE_OUT_F32, "float16": ROPE_OUT_F16, "bfloat16": ROPE_OUT_BF16,
    "float4_e2m1fn": ROPE_OUT_E2M1, "q8_0": ROPE_OUT_Q8_0, "q4_0": ROPE_OUT_Q4_0,
}
_SCALE_KINDS = {
    "tensor": ROPE_SCALE_TENSOR, "head": ROPE_SCALE_HEAD, "token": ROPE_SCALE_TOKEN, "dynamic": ROPE_SCALE_DYNAMIC,
}

# ---- the constructor's


cdef rope_quantize* quantize_of(str x, rope_apply_desc* d) noexcept:
    return &d.q_quantize if x[0] == "q" else &d.k_quantize if x[0] == "k" else &d.v_quantize


cdef rope_groups* groups_of(str x, rope_apply_desc* d) noexcept:
    return &d.q_groups if x[0] == "q" else &d.k_groups if x[0] == "k" else &d.v_groups


cdef tuple set_quantize(str x, out_dtype, scale_kind, int64_t dim, rope_apply_desc* d):
    """The names of both. dim: elements of a head."""
    cdef rope_quantize* z = quantize_of(x, d)
    if out_dtype is None:
        refuse(f"{x}_scale_kind", scale_kind, f"only allowed with {x}_out_dtype")
        return None, None
    z.out_dtype = choose(f"{x}_out_dtype", out_dtype, _OUT_DTYPES)
    name = name_of(_OUT_DTYPES, z.out_dtype)
    if ROPE_OUT_F32 <= z.out_dtype <= ROPE_OUT_BF16:
        refuse(f"{x}_scale_kind", scale_kind, f"not allowed with {x}_out_dtype={name!r}")
        return name, None
    if z.out_dtype in (ROPE_OUT_Q8_0, ROPE_OUT_Q4_0):
        refuse(f"{x}_scale_kind", scale_kind, f"not allowed with {name!r}, whose blocks have scales of their own")
        if dim % 32:
            raise ValueError(f"{x}_out_dtype: {name!r} has blocks of 32 elements, which do not divide a head of {dim}")
        return name, None
    if isinstance(scale_kind, GroupScales):
        set_groups(x, scale_kind, dim, groups_of(x, d))
        z.scale_kind = ROPE_SCALE_GROUP
        return name, scale_kind
    if z.out_dtype == ROPE_OUT_E2M1:
        raise ValueError(f"{x}_scale_kind: {scale_kind!r}, must be a pyrope.GroupScales with {name!r}")
    z.scale_kind = choose(f"{x}_scale_kind", "tensor" if scale_kind is None else scale_kind, _SCALE_KINDS)
    return name, None if scale_kind is None else name_of(_SCALE_KINDS, z.scale_kind)


cdef int set_still(dict options, rope_apply_desc* d) except -1:
    """rotary_dim=0, without the options of a rotation."""
    for name, value in options.items():
        if value:
            raise ValueError(f"{name}: not allowed with rotary_dim=0, with which nothing turns")
    d.rotary_dim, d.flags, d.frequencies = 0, d.flags | ROPE_FLAG_NO_ROTATION, NULL
    return 0


cdef tuple set_sections(sections, bint interleaved, pair_streams, uint8_t* streams, rope_apply_desc* d):
    """The sections and the streams as tuples of int; streams: [rotary_dim / 2], which d may point to."""
    cdef int pairs = d.rotary_dim // 2, i
    if sections is None and interleaved:
        raise ValueError("sections_interleaved: True, only allowed with sections")
    if sections is not None and pair_streams is not None:
        raise ValueError("pair_streams: not allowed together with sections")
    if sections is not None:
        sections = read_sections(sections, pairs)
        d.sections.num_streams = len(sections)
        if len(sections) <= ROPE_MAX_STREAMS:
            d.sections.interleaved = interleaved
            for i, count in enumerate(sections):
                d.sections.sizes[i] = count
            return sections, None
        order = [i for i, count in enumerate(sections) for _ in range(count)]
        if interleaved:
            order = [i % len(sections) for i in range(pairs)]
            order = [s if i < len(sections) * sections[s] else 0 for i, s in enumerate(order)]
    elif pair_streams is not None:
        order = pair_streams = read_pair_streams(pair_streams, pairs)
        d.sections.num_streams = max(order) + 1
    else:
        return None, None
    for i, stream in enumerate(order):
        streams[i] = stream
    d.pair_streams = streams
    return sections, pair_streams


cdef tuple read_sections(sections, int pairs):
    if not isinstance(sections, (tuple, list)) or not 2 <= len(sections) <= ROPE_MAX_PAIR_STREAMS:
        raise TypeError(f"sections: {sections!r}, must be 2 to {ROPE_MAX_PAIR_STREAMS} numbers of pairs")
    sizes = tuple([as_count("sections", count, 0, pairs) for count in sections])
    if sum(sizes) != pairs:
        raise ValueError(f"sections: {sizes}, their sum must be rotary_dim / 2 = {pairs}")
    return sizes


cdef tuple read_pair_streams(pair_streams, int pairs):
    if isinstance(pair_streams, (str, bytes, dict)) or not hasattr(pair_streams, "__len__"):
        raise TypeError(f"pair_streams: {pair_streams!r}, must be the number of a stream for each pair")
    order = tuple([as_count("pair_streams", stream, 0, ROPE_MAX_PAIR_STREAMS - 1) for stream in pair_streams])
    if len(order) != pairs:
        raise ValueError(f"pair_streams: {len(order)} numbers, must be rotary_dim / 2 = {pairs}")
    if max(order) == 0:
        raise ValueError("pair_streams: all are 0, must be two streams or more")
    return order


cdef int set_xpos(xpos, rope_apply_desc* d) except -1:
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
    return 0


cdef int set_norm(norm, str dtype, rope_apply_desc* d) except -1:
    if not isinstance(norm, RMSNorm):
        raise TypeError(f"norm: {norm!r} is not a pyrope.RMSNorm")
    d.norm.eps = <float>as_real("eps", norm.eps)
    d.norm.weight_bias = <float>as_real("weight_bias", norm.weight_bias)
    if not (d.norm.eps >= 0 and isfinite(d.norm.eps)):
        raise ValueError(f"eps: {norm.eps}, must be at least 0 and finite as a float32")
    if not isfinite(d.norm.weight_bias):
        raise ValueError(f"weight_bias: {norm.weight_bias}, must be finite as a float32")
    if norm.weight_dtype is not None:
        d.norm.weight_is_f32 = choose("weight_dtype", norm.weight_dtype, {dtype: 0, "float32": 1})
    d.norm.after = as_flag("after", norm.after)
    d.norm.across_heads = as_flag("across_heads", norm.across_heads)
    d.norm_sums.ranks = as_count("ranks", norm.ranks, 1, ROPE_MAX_NORM_RANKS)
    if d.norm_sums.ranks == 1:
        d.norm_sums.ranks = 0
    elif not d.norm.across_heads:
        raise ValueError(f"ranks: {norm.ranks}, must be 1 without across_heads")
    return 0


# ---- a call's


cdef int read_weights(q, k, q_weight, k_weight, norm, rope_apply_desc* d, Call* c) except -1:
    if norm is None:
        refuse("q_weight", q_weight, "only allowed with norm=pyrope.RMSNorm(...)")
        return refuse("k_weight", k_weight, "only allowed with norm=pyrope.RMSNorm(...)")
    if q_weight is None and k_weight is None:
        raise TypeError("q_weight and k_weight: both None, at least one is required with norm")
    if q_weight is not None:
        require("q", q, "with q_weight")
        d.norm.q_weight = read_weight("q_weight", q_weight, d.num_q_heads, d.dtype, d, c)
    if k_weight is not None:
        require("k", k, "with k_weight")
        d.norm.k_weight = read_weight("k_weight", k_weight, d.num_k_heads, k_element(d), d, c)
    return 0


cdef int read_sums(q_sums, k_sums, write_sums, rope_apply_desc* d, Call* c) except -1:
    """Sums of squares of a norm that ranks share."""
    d.norm_sums.write = as_flag("write_sums", write_sums)
    if not d.norm_sums.ranks:
        if d.norm_sums.write:
            raise ValueError("write_sums: True, only allowed with norm=pyrope.RMSNorm(ranks=...)")
        refuse("q_sums", q_sums, "only allowed with norm=pyrope.RMSNorm(ranks=...)")
        return refuse("k_sums", k_sums, "only allowed with norm=pyrope.RMSNorm(ranks=...)")
    d.norm_sums.q = read_token_sums("q_sums", q_sums, d.norm.q_weight != NULL, d, c)
    d.norm_sums.k = read_token_sums("k_sums", k_sums, d.norm.k_weight != NULL, d, c)
    return 0


cdef float* read_token_sums(str name, object x, bint normalised, rope_apply_desc* d, Call* c) except? NULL:
    cdef int64_t count = c.num_tokens
    if not normalised:
        refuse(name, x, f"only allowed with {name[0]}_weight")
        return NULL
    require(name, x, f"with {name[0]}_weight and ranks={d.norm_sums.ranks}")
    return <float*>read_memory(name, x, KIND_FLOAT, 4, &count, "[num_tokens]", d.norm_sums.write, c)


cdef void* read_weight(str name, object x, int64_t heads, int32_t dtype, rope_apply_desc* d, Call* c) except? NULL:
    if not is_array(x):
        return <void*>read_pointer(x, name, c.num_tokens == 0)
    cdef View v
    read_elements(name, x, ROPE_DTYPE_F32 if d.norm.weight_is_f32 else dtype, c, &v)
    shape = [d.head_dim]
    if d.norm.across_heads:
        shape = [heads * d.head_dim] if v.ndim == 1 else [heads, d.head_dim]
    if list(shape_of(&v)) != shape or not is_contiguous(&v):
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be contiguous {shape}")
    return v.data


cdef int read_scale(str name, object x, str tensor_name, object tensor_scale, object kind, int64_t heads, int64_t dim,
                    bint heads_first, rope_quantize* z, rope_groups* g, rope_apply_desc* d, Call* c) except -1:
    """z, g: d's, of q, k or v, whose scale has that name. A call without scales makes no Python object here."""
    cdef bint in_cache = d.cache.kind and z != &d.q_quantize
    cdef int64_t count = 1
    cdef str shape = "[1]"
    cdef bint quantised = z.out_dtype and not ROPE_OUT_F32 <= z.out_dtype <= ROPE_OUT_BF16
    if not quantised and x is not None:
        raise ValueError(f"{name}: only allowed with {name[0]} and a quantised {name[0]}_out_dtype")
    if z.scale_kind == ROPE_SCALE_GROUP:
        require(name, x, f"with {name}_kind={kind!r}")
        return read_groups(name, x, tensor_name, tensor_scale, kind.strides, heads, dim, in_cache, heads_first, g, d, c)
    memset(g, 0, sizeof(g[0]))
    refuse(tensor_name, tensor_scale, "only allowed with GroupScales of float8_e4m3fn")
    if z.out_dtype == ROPE_OUT_Q8_0 or z.out_dtype == ROPE_OUT_Q4_0:
        if x is not None:
            raise ValueError(f"{name}: not allowed with {name[0]}_out_dtype={name_of(_OUT_DTYPES, z.out_dtype)!r}, "
                             "whose blocks have scales of their own")
        return 0
    if not quantised:
        return 0
    if x is None:
        if kind is not None:
            raise TypeError(f"{name}: required with {name}_kind={kind!r}")
        z.scale_kind = ROPE_SCALE_HOST
        return 0
    if is_scale(x):
        if z.scale_kind == ROPE_SCALE_DYNAMIC:
            raise TypeError(f"{name}: {x!r}, must be memory that the scales are written to ({name}_kind='dynamic')")
        z.scale_kind = ROPE_SCALE_HOST
        z.scale = as_scale(name, x)
        return 0
    if z.scale_kind == ROPE_SCALE_HEAD:
        count, shape = heads, "[heads]"
    elif z.scale_kind == ROPE_SCALE_TOKEN:
        count, shape = c.num_tokens, "[num_tokens]"
    elif z.scale_kind == ROPE_SCALE_DYNAMIC:
        count = heads * (d.cache.num_pages * d.cache.page_size if in_cache else c.num_tokens)
        shape = "[num_pages * page_size, heads]" if in_cache else "[num_tokens, heads]"
    refuse_small(name, x)
    z.scales = <float*>read_memory(name, x, KIND_FLOAT, 4, &count, shape, z.scale_kind == ROPE_SCALE_DYNAMIC, c)
    return 0


cdef int read_frequency_sets(frequency_sets, set_ids, set_ids_from, set_factors, num_sets, positions_from,
                             rope_apply_desc* d, Call* c) except -1:
    cdef int64_t count = -1
    cdef int pairs = d.rotary_dim // 2
    if frequency_sets is None:
        refuse("set_ids", set_ids, "only allowed with frequency_sets")
        refuse("set_ids_from", set_ids_from, "only allowed with frequency_sets")
        refuse("set_factors", set_factors, "only allowed with frequency_sets")
        return refuse("num_sets", num_sets, "only allowed with frequency_sets")
    if d.angle == ROPE_ANGLE_COS_SIN:
        raise ValueError("frequency_sets: not allowed with angle='cos_sin'")
    if pairs == 0:
        raise ValueError("frequency_sets: not allowed with rotary_dim=0, with which nothing turns")
    require("set_ids", set_ids, "with frequency_sets")
    if positions_from is None:
        refuse("set_ids_from", set_ids_from, "only allowed with positions_from")
    if num_sets is not None:
        d.frequency_sets.num_sets = as_count("num_sets", num_sets, 1, INT32_MAX)
        count = <int64_t>d.frequency_sets.num_sets * pairs
    d.frequency_sets.words = <uint64_t*>read_memory("frequency_sets", frequency_sets, KIND_UINT, 8, &count,
                                                    "[num_sets, rotary_dim / 2]", False, c)
    if count < 0:
        raise TypeError("num_sets: required with frequency_sets as a pointer")
    if count == 0 or count % pairs:
        raise ValueError(f"frequency_sets: {count} elements, must be [num_sets, rotary_dim / 2 = {pairs}]")
    d.frequency_sets.num_sets = <int32_t>(count // pairs)
    count = c.num_tokens
    d.frequency_sets.ids = <int32_t*>read_memory("set_ids", set_ids, KIND_INT, 4, &count, "[num_tokens]", False, c)
    if set_ids_from is not None:
        d.frequency_sets.ids_from = <int32_t*>read_memory("set_ids_from", set_ids_from, KIND_INT, 4, &count,
                                                          "[num_tokens]", False, c)
    if set_factors is not None:
        count = d.frequency_sets.num_sets
        d.frequency_sets.factors = <float*>read_memory("set_factors", set_factors, KIND_FLOAT, 4, &count,
                                                       "[num_sets]", False, c)
    return 0
