"""Gradients of attention in float64, from the formula ("FlashAttention", arXiv:2205.14135, appendix B), and calls."""

import numpy as np

from kit.attention import get, put, put_workspace
from kit.blocks import Block
from kit.memory import memory_of
from kit.reference import U, storage


def gradients(d_out, q, k, v, out, lse, mask, scale, softcap=0.0, sinks=None, weight_bits=24, least=0.0, d_lse=None):
    """{name: (value, bound)} for dq, dk, dv and d_sinks of one sequence: [tokens, heads, dim], lse [heads, tokens].

    Of lse and out as they are given, rounded or not. The bounds are those of results that round products and sums to
    float32 in any order, and weights and the gradients of scores to weight_bits, not below `least`.
    """
    d_out, q, k, v, out, lse = (np.asarray(x, np.float64) for x in (d_out, q, k, v, out, lse))
    heads, group = k.shape[1], q.shape[1] // k.shape[1]
    k_of, v_of = np.repeat(k, group, 1), np.repeat(v, group, 1)

    def product(x, y):
        """Sums of products over the last dimension, and what bounds their error."""
        value, size = (np.einsum("ihd,jhd->hij", *pair) for pair in ((x, y), (abs(x), abs(y))))
        return value, size * (x.shape[2] + 3) * U

    s, s_off = (x * scale for x in product(q, k_of))
    slope, slope_off = 1.0, 0.0
    if softcap:
        part = np.tanh(s / softcap)
        part_off = (1 - part**2) * s_off / softcap + 4 * U
        slope, slope_off = 1 - part**2, 2 * abs(part) * part_off + part_off**2
        s, s_off = softcap * part, softcap * part_off
    seen = mask & np.isfinite(lse)[..., None]
    top = np.where(np.isfinite(lse), lse, 0)
    p = np.where(seen, np.exp(np.where(seen, s - top[..., None], 0)), 0)
    rounding = 2.0**-weight_bits
    p_off = p * (s_off + (2 * abs(s) + 2 * abs(top[..., None]) + 8) * U)
    dp, dp_off = product(d_out, v_of)
    d, d_size = ((x * y).sum(2).T[..., None] for x, y in ((d_out, out), (abs(d_out), abs(out))))
    if d_lse is not None:
        d, d_size = d - d_lse[..., None], d_size + abs(d_lse[..., None])
    d_off = d_size * (v.shape[2] + 3) * U
    ds = p * (dp - d) * slope
    ds_off = p_off * abs(dp - d) * slope + p * (dp_off + d_off) * slope + p * abs(dp - d) * slope_off + 4 * U * abs(ds)
    p_off += p * rounding + np.where(p, least, 0)
    ds_off += abs(ds) * rounding + np.where(p, least, 0)

    def summed(form, x, x_off, y, count):
        """Sums of x y, over the heads that share a key's too, and what bounds their error."""
        value, size, off = (np.einsum(form, *pair) for pair in ((x, y), (abs(x), abs(y)), (x_off, abs(y))))
        off += size * (count + 3) * U
        if form != "hij,jhd->ihd":
            value, off = (x.reshape(x.shape[0], heads, group, -1).sum(2) for x in (value, off))
        return value, off

    rows, keys = s.shape[1] * group, s.shape[2]
    result = {"dv": summed("hij,ihd->jhd", p, p_off, d_out, rows)}
    for name, form, other, count in (("dq", "hij,jhd->ihd", k_of, keys), ("dk", "hij,ihd->jhd", q, rows)):
        result[name] = tuple(x * scale for x in summed(form, ds, ds_off, other, count))
    if sinks is not None:
        share = np.where(np.isfinite(lse), np.exp(np.asarray(sinks, np.float64)[:, None] - top), 0)
        off = share * (abs(np.asarray(sinks)[:, None]) + abs(top) + 8) * 2 * U
        d, d_size, d_off = d[..., 0], d_size[..., 0], d_off[..., 0]
        result["d_sinks"] = -(share * d).sum(1), (off * abs(d) + share * (d_off + d_size * 4 * U)).sum(1)
    return result


def differentiate(attention, d_out, q, k, v, out, lse, strides=None, **options):
    """Gradients by name, of a call with pointers; q and k as they were multiplied."""
    rope = attention.rope
    memory, dtype = memory_of(rope.device), storage(rope.dtype)
    values = {"d_out": d_out, "q": q, "k": k, "v": v, "out": out}
    shapes = {name: x.shape for name, x in values.items()} | {"dq": q.shape, "dk": k.shape, "dv": v.shape}
    blocks = {name: Block(dtype, shape, strides(shape) if strides else None, values=values.get(name))
              for name, shape in shapes.items()}  # fmt: skip
    blocks["lse"] = Block(np.float32, lse.shape, values=lse)
    if "sinks" in options:
        blocks["d_sinks"] = Block(np.float32, options["sinks"].shape)
    blocks |= {name: Block(x.dtype, x.shape, values=x) for name, x in options.items() if isinstance(x, np.ndarray)}
    buffers, arguments = put(memory, blocks, shapes if strides else ())
    ragged = "q_indptr" in options
    counts = {"num_q_tokens": q.shape[1], "num_k_tokens": k.shape[1]}
    counts["num_sequences"] = len(options["q_indptr"]) - 1 if ragged else q.shape[0]
    size = attention.backward_workspace_size(**counts, ragged=ragged)
    content = np.random.default_rng(size).integers(0, 256, size + 256, np.uint8)  # no zeros are needed there
    _workspace, of_workspace = put_workspace(memory, content, size)
    arguments = options | arguments | counts | of_workspace
    first = [arguments.pop(name) for name in ("d_out", "q", "k", "v", "out", "lse", "dq", "dk", "dv")]
    attention.backward(*first, **arguments)
    return get(memory, blocks, buffers)
