# cython: language_level=3, freethreading_compatible=True, annotation_typing=False
"""What RopeAttention's calls are given: tensors, tokens, ragged sequences, workspace, and where tokens stand."""

from libc.stdint cimport INT32_MAX, int32_t, int64_t

from pyrope._arguments cimport (
    Call, as_count, as_integer, as_positive, read_array, read_elements, read_index, read_memory, refuse,
    refuse_read_only, require, shape_of,
)
from pyrope._capi cimport *
from pyrope._cos_sin cimport read_cos_sin
from pyrope._positions cimport read_all_positions
from pyrope._view cimport KIND_FLOAT, View, is_array, is_immutable, read_pointer


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
            count = "num_k_tokens" if name in ("k", "v", "k_out", "dk", "dv") else "num_q_tokens"
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


cdef int read_tokens(q, k, num_q_tokens, num_k_tokens, num_sequences, q_indptr, k_indptr, max_q_tokens, max_k_tokens,
                     Tokens* of_q, Tokens* of_k, rope_attention_desc* d, Call* c) except -1:
    """Before the tensors, which know what is not given."""
    of_q.ragged = of_k.ragged = q_indptr is not None
    of_q.tokens = read_count("num_q_tokens", num_q_tokens, -1)
    of_k.tokens = read_count("num_k_tokens", num_k_tokens, -1)
    of_q.sequences = read_count("num_sequences", num_sequences, -1)
    read_ragged(q_indptr, k_indptr, max_q_tokens, max_k_tokens, of_q, d, c)
    if of_q.sequences < 0 and not is_array(q):
        of_q.sequences = 1
    return 0


cdef int read_inputs(q, q_strides, k, k_strides, v, v_strides, Tokens* of_q, Tokens* of_k, rope_attention_desc* d,
                     Call* c) except -1:
    read_tensor("q", q, q_strides, d.num_q_heads, d.head_dim, d.dtype, False, of_q, c, &d.q)
    of_k.sequences = of_q.sequences
    if of_k.tokens < 0 and not is_array(k):
        of_k.tokens = of_q.tokens
    read_tensor("k", k, k_strides, d.num_k_heads, d.head_dim, d.dtype, False, of_k, c, &d.k)
    read_tensor("v", v, v_strides, d.num_k_heads, d.v_head_dim, d.dtype, False, of_k, c, &d.v)
    return 0


cdef int read_sums(lse, bint written, sinks, Tokens* of_q, rope_attention_desc* d, Call* c) except -1:
    cdef int64_t count = of_q.tokens * (1 if of_q.ragged else of_q.sequences) * d.num_q_heads
    if lse is not None:
        d.lse = <float*>read_memory("lse", lse, KIND_FLOAT, 4, &count, "[sequences, num_q_heads, num_q_tokens]",
                                    written, c)
    count = d.num_q_heads
    if sinks is not None:
        d.sinks = <float*>read_memory("sinks", sinks, KIND_FLOAT, 4, &count, "[num_q_heads]", False, c)
    return 0


cdef int read_turn(positions, offset, positions_stride, cos, sin, angles, cos_sin_rows, Tokens* of_q,
                   rope_apply_desc* turn, rope_attention_desc* d, Call* c) except -1:
    """Where tokens stand, into a descriptor of the call's own."""
    cdef int64_t rows = of_q.tokens * (1 if of_q.ragged else of_q.sequences)
    if d.rotation == NULL:
        if positions is not None or offset != 0:
            raise ValueError(f"{'offset' if positions is None else 'positions'}: given, but q and k are rotated "
                             "already")
        return 0
    turn[0] = d.rotation[0]
    turn.flags = 0
    d.rotation = turn
    c.num_tokens, c.inner_tokens = rows, 0 if of_q.ragged or of_q.sequences == 1 else of_q.tokens
    turn.num_tokens = rows
    read_all_positions(positions, offset, None, None, None, positions_stride, None, turn, c)
    read_cos_sin(cos, sin, angles, None, None, None, cos_sin_rows, None, None, turn, c)
    turn.sequence_length = 0
    return 0


cdef int read_ragged(q_indptr, k_indptr, max_q_tokens, max_k_tokens, Tokens* of_q, rope_attention_desc* d,
                     Call* c) except -1:
    if q_indptr is None:
        refuse("k_indptr", k_indptr, "only allowed with q_indptr")
        refuse("max_q_tokens", max_q_tokens, "only allowed with q_indptr")
        refuse("max_k_tokens", max_k_tokens, "only allowed with k_indptr")
        return 0
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


cdef int read_workspace(workspace, workspace_size, void** data, int64_t* bytes, Call* c) except -1:
    cdef View v
    cdef int64_t size = 1
    cdef int i
    if not is_array(workspace):
        require("workspace_size", workspace_size, "with workspace as a pointer")
        bytes[0] = as_positive("workspace_size", workspace_size)
        data[0] = <void*>read_pointer(workspace, "workspace", False)
        return 0
    refuse("workspace_size", workspace_size, "only allowed with workspace as a pointer")
    read_array("workspace", workspace, c, &v)
    refuse_read_only("workspace", &v)
    for i in range(v.ndim):
        size *= v.shape[i]
    data[0], bytes[0] = v.data, size * v.itemsize
    return 0
