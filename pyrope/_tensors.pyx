# cython: language_level=3, freethreading_compatible=True
"""The tensors of a call: q, k and what is stored beside them, each with its output."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t
from libc.string cimport memset

from pyrope._arguments cimport (
    DTYPES, ONE_BYTE, Call, as_count, as_integer, choose, name_of, read_elements, refuse_read_only, require, shape_of,
    stored_units,
)
from pyrope._capi cimport *
from pyrope._view cimport Rows, View, is_array, is_immutable, read_pointer

_SKIPPED = {"leave": 0, "copy": 1}


cdef str set_k_dtype(k_dtype, rope_apply_desc* d):
    if k_dtype is None:
        return None
    cdef int32_t element = choose("k_dtype", k_dtype, DTYPES)
    name = name_of(DTYPES, element)
    if element != d.dtype and ROPE_DTYPE_F32 in (element, d.dtype):
        allowed = "'float32' as dtype" if d.dtype == ROPE_DTYPE_F32 else "'float16' or 'bfloat16', of 2 bytes as dtype"
        raise ValueError(f"k_dtype: {name!r}, must be {allowed}")
    d.k_dtype = ROPE_OUT_F32 + element
    return name


cdef int read_sequences(sequence_length, positions, indptr, skipped, rope_apply_desc* d, Call* c) except -1:
    """What is asked of all tensors. Call it before they are read."""
    c.placed = positions is not None or indptr is not None
    if sequence_length is not None:
        c.sequence_length = as_count("sequence_length", sequence_length, 1, INT32_MAX)
    if skipped != "leave":
        d.copy_skipped = choose("skipped", skipped, _SKIPPED)
    return 0


cdef int begin_stages(q, k, v, q_out, k_out, slots, bint cache, rope_apply_desc* d) except -1:
    """What the tensors that a call has leave of a FusedRope's stages."""
    if cache and (k is not None or v is not None):
        d.cache.kind = ROPE_CACHE_PAGES if slots is None else ROPE_CACHE_SLOTS
    else:
        memset(&d.cache, 0, sizeof(d.cache))
    if q is None:
        memset(&d.q_quantize, 0, sizeof(d.q_quantize))
    elif d.q_quantize.out_dtype:
        require("q_out", q_out, "with q_out_dtype")
    if k is None:
        memset(&d.k_quantize, 0, sizeof(d.k_quantize))
    elif d.k_quantize.out_dtype and not d.cache.kind:
        require("k_out", k_out, "with k_out_dtype")
    if v is None:
        memset(&d.v_quantize, 0, sizeof(d.v_quantize))
    return 0


cdef int64_t as_stride(str name, object strides, int i, bint written) except? -1:
    """As the library takes it, for which 0 is the default."""
    cdef int64_t stride = as_integer(name, strides[i])
    if stride == ROPE_BROADCAST:
        raise ValueError(f"{name}: {tuple(strides)!r}, reach beyond 2**62 bytes")
    if stride == 0 and written:
        raise ValueError(f"{name}: {tuple(strides)!r}, a stride of what is written must not be 0")
    return stride if stride else ROPE_BROADCAST


cdef int read_strides(str name, object strides, bint written, rope_tensor* tensor, rope_steps* steps) except -1:
    """(token stride, head stride) or (sequence stride, token stride, head stride, element stride), in elements."""
    cdef int first = 0
    if not isinstance(strides, (tuple, list)) or len(strides) not in (2, 4):
        raise TypeError(f"{name}: {strides!r}, must be (token stride, head stride) in elements, or (sequence stride, "
                        "token stride, head stride, element stride)")
    if len(strides) == 4:
        first = 1
        steps.sequence, steps.element = as_stride(name, strides, 0, written), as_stride(name, strides, 3, written)
    tensor.token_stride = as_stride(name, strides, first, written)
    tensor.head_stride = as_stride(name, strides, first + 1, written)
    return 0


cdef int read_leading(str name, View* v, int leading, Call* c) except -1:
    """Leading dimensions are sequences, each of which starts at the offset; the last is that of their tokens."""
    cdef int64_t sequences = 1
    cdef int i
    for i in range(leading - 1):
        sequences *= v.shape[i]
    if sequences <= 1 or v.shape[leading - 1] == 0:
        return 0
    if c.sequence_length not in (0, v.shape[leading - 1]):
        raise ValueError(f"{name}: sequences of {v.shape[leading - 1]} tokens, must be of {c.sequence_length} as "
                         "sequence_length or the other arguments")
    c.sequence_length = v.shape[leading - 1]
    return 0


cdef int64_t fold_tokens(str name, View* v, int leading, rope_tensor* tensor, rope_steps* steps, Call* c) except -1:
    """How many tokens the leading dimensions are, which have one stride, or one in a sequence and one between them."""
    cdef int64_t tokens = 1, stride = 0, length = 0, outer = 0
    cdef int i
    for i in range(leading - 1, -1, -1):
        if v.shape[i] == 1:
            continue
        if tokens == 1:
            stride = v.strides[i]
        elif length == 0 and v.strides[i] != stride * tokens:
            length, outer = tokens, v.strides[i]
        elif length and tokens and v.strides[i] != outer * (tokens // length):
            raise ValueError(f"{name}: the leading dimensions have more than two strides; make a dimension of tokens "
                             "and one of sequences of them")
        tokens *= v.shape[i]
    tensor.token_stride = stride if stride or tokens <= 1 else ROPE_BROADCAST
    if length == 0 or tokens == 0:
        return tokens
    if c.sequence_length not in (0, length):
        raise ValueError(f"{name}: sequences of {length} tokens, must be of {c.sequence_length} as sequence_length or "
                         "the other arguments")
    c.sequence_length = length
    steps.sequence = outer if outer else ROPE_BROADCAST
    return tokens


cdef int read_tensor(str name, object x, object strides, int64_t heads, int64_t dim, int32_t element, bint written,
                     Call* c, rope_tensor* tensor, rope_steps* steps) except -1:
    """Rows of heads, which bring num_tokens where it is not known: [..., heads, dim] or [num_tokens, heads * dim]."""
    if heads == 0:
        raise ValueError(f"{name}: given, but the Rope has num_{name[0]}_heads=0")
    if not is_array(x):
        tensor.data = <void*>read_pointer(x, name, c.num_tokens == 0)
        return 0 if strides is None else read_strides(name + "_strides", strides, written, tensor, steps)
    if strides is not None:
        raise ValueError(f"{name}_strides: only allowed with pointers, an array has its own")
    cdef View v
    read_elements(name, x, element, c, &v)
    if written:
        refuse_read_only(name, &v)
        if is_immutable(x):
            raise TypeError(f"{name}: a jax.Array is immutable and cannot be written; pass {name[0]}_out= elsewhere")

    cdef int leading = v.ndim - 2
    cdef int64_t head = dim, last = v.strides[v.ndim - 1] if v.ndim else 1
    if v.ndim >= 3 and v.shape[v.ndim - 2] == heads and v.shape[v.ndim - 1] == dim:
        if heads > 1:
            head = v.strides[v.ndim - 2]
    elif v.ndim == 2 and v.shape[1] == heads * dim:
        leading, head = 1, dim * last
    else:
        raise ValueError(f"{name}: shape {shape_of(&v)}, must be "
                         f"[num_tokens, {heads}, {dim}] or two-dimensional [num_tokens, {heads * dim}]")
    if not c.placed and type(x) is not Rows:
        read_leading(name, &v, leading, c)
    cdef int64_t tokens = fold_tokens(name, &v, leading, tensor, steps, c)
    tensor.head_stride = head if head else ROPE_BROADCAST
    if last != 1 and dim > 1:
        steps.element = last if last else ROPE_BROADCAST
    if written and (tensor.token_stride == ROPE_BROADCAST or head == 0 or steps.element == ROPE_BROADCAST
                    or steps.sequence == ROPE_BROADCAST):
        raise ValueError(f"{name}: a broadcast array (stride 0) cannot be written")
    tensor.data = v.data
    if c.num_tokens >= 0 and tokens != c.num_tokens:
        raise ValueError(f"{name}: {tokens} tokens, must be {c.num_tokens} as num_tokens or the other arguments")
    c.num_tokens = tokens
    if leading > 1:
        c.inner_tokens = v.shape[leading - 1]
    return 0


cdef int32_t k_element(rope_apply_desc* d) noexcept:
    """The dtype of k, k_nope and v."""
    return d.k_dtype - ROPE_OUT_F32 if d.k_dtype else d.dtype


cdef int32_t stored_element(int32_t out_dtype, int32_t dtype) noexcept:
    if ROPE_OUT_F32 <= out_dtype <= ROPE_OUT_BF16:
        return out_dtype - ROPE_OUT_F32
    return dtype if out_dtype == ROPE_OUT_SAME else ONE_BYTE


cdef int read_pair(str name, str out_name, object x, object strides, object out, object out_strides, int64_t heads,
                   int64_t dim, int32_t dtype, int32_t out_dtype, bint in_place, Call* c, rope_tensor* tensor,
                   rope_steps* steps, rope_tensor* out_tensor, rope_steps* out_steps) except -1:
    """A tensor and its output; in_place: without one it is written itself."""
    if x is not None:
        read_tensor(name, x, strides, heads, dim, dtype, in_place and out is None, c, tensor, steps)
    elif strides is not None:
        raise ValueError(f"{name}_strides: given without {name}")
    if out is not None:
        if x is None:
            raise ValueError(f"{out_name}: given without {name}")
        read_tensor(out_name, out, out_strides, heads, stored_units(out_dtype, dim), stored_element(out_dtype, dtype),
                    True, c, out_tensor, out_steps)
    elif out_strides is not None:
        raise ValueError(f"{out_name}_strides: given without {out_name}")
    return 0


cdef int read_rotated(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides, rope_apply_desc* d,
                      Call* c) except -1:
    """q and k, which bring num_tokens. What d already has says what the outputs hold and whether k goes to a cache."""
    if q is None and k is None:
        raise TypeError("q and k: both None, at least one must be given")
    cdef bint cached = d.cache.kind != ROPE_CACHE_NONE
    read_pair("q", "q_out", q, q_strides, q_out, q_out_strides, d.num_q_heads, d.head_dim, d.dtype,
              d.q_quantize.out_dtype, True, c, &d.q, &d.q_steps, &d.q_out, &d.q_out_steps)
    # Beside a cache k_out is of k's dtype.
    read_pair("k", "k_out", k, k_strides, k_out, k_out_strides, d.num_k_heads, d.head_dim, k_element(d),
              ROPE_OUT_SAME if cached else d.k_quantize.out_dtype, not cached, c, &d.k, &d.k_steps, &d.k_out,
              &d.k_out_steps)
    if c.num_tokens < 0:
        raise TypeError("num_tokens: required with pointers")
    d.num_tokens, d.sequence_length = c.num_tokens, c.sequence_length
    return 0


cdef int read_v(v, v_out, v_strides, v_out_strides, int32_t num_v_heads, int32_t v_head_dim, rope_apply_desc* d,
                Call* c) except -1:
    cdef bint cached = d.cache.kind != ROPE_CACHE_NONE
    if v is not None:
        d.num_v_heads, d.v_head_dim = num_v_heads, v_head_dim
        if not cached:
            require("v_out", v_out, "with v where there is no cache")
    read_pair("v", "v_out", v, v_strides, v_out, v_out_strides, num_v_heads, v_head_dim, k_element(d),
              ROPE_OUT_SAME if cached else d.v_quantize.out_dtype, False, c, &d.v, &d.v_steps, &d.v_out,
              &d.v_out_steps)
    d.sequence_length = c.sequence_length
    return 0


cdef int read_q_nope(q, q_nope, q_nope_out, q_nope_strides, q_nope_out_strides, int32_t dim, rope_apply_desc* d,
                     Call* c) except -1:
    if q_nope is not None:
        if dim == 0:
            raise ValueError("q_nope: only allowed with q_nope_dim")
        require("q", q, "with q_nope")
        require("q_nope_out", q_nope_out, "with q_nope")
        d.q_nope_dim = dim
    read_pair("q_nope", "q_nope_out", q_nope, q_nope_strides, q_nope_out, q_nope_out_strides, d.num_q_heads, dim,
              d.dtype, d.q_quantize.out_dtype, False, c, &d.q_nope, &d.q_nope_steps, &d.q_nope_out,
              &d.q_nope_out_steps)
    d.sequence_length = c.sequence_length
    return 0


cdef int read_k_nope(k, k_nope, k_nope_out, k_nope_strides, k_nope_out_strides, int32_t dim, rope_apply_desc* d,
                     Call* c) except -1:
    cdef bint cached = d.cache.kind != ROPE_CACHE_NONE
    if k_nope is not None:
        if dim == 0:
            raise ValueError("k_nope: only allowed with k_nope_dim")
        require("k", k, "with k_nope")
        if not cached:
            require("k_nope_out", k_nope_out, "with k_nope where there is no cache")
        d.k_nope_dim = dim
    read_pair("k_nope", "k_nope_out", k_nope, k_nope_strides, k_nope_out, k_nope_out_strides, d.num_k_heads, dim,
              k_element(d), ROPE_OUT_SAME if cached else d.k_quantize.out_dtype, False, c, &d.k_nope, &d.k_nope_steps,
              &d.k_nope_out, &d.k_nope_out_steps)
    d.sequence_length = c.sequence_length
    return 0
