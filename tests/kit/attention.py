"""Attention in float64, from its definition ("Attention Is All You Need", arXiv:1706.03762), and calls of it."""

import numpy as np
import pytest

from kit.blocks import Block, call
from kit.memory import EMULATED, memory_of
from kit.reference import FORMATS, U, storage


def spare(number, device):
    """Skips two of three calls where Hopper's kernels run on the CPU: one takes seconds under the sanitizers, and
    cuda/tests has hundreds of shapes of them."""
    if EMULATED and device == "cuda" and number % 3:
        pytest.skip("a third of the calls is enough of kernels that are compiled for the CPU")


def normal(rng, dtype, *shape):
    """Numbers of that dtype, as they are stored."""
    return rng.standard_normal(shape).astype(storage(dtype))


def full(*shape):
    """Nothing in particular."""
    return np.full(shape, 7, np.float32)


def seen(q_tokens, k_tokens, causal, window):
    """[q_tokens, k_tokens]: whether a query sees a key; the last query stands at the last key."""
    place = np.arange(q_tokens)[:, None] + k_tokens - q_tokens
    ahead = np.arange(k_tokens)[None, :] - place
    mask = np.ones(ahead.shape, bool)
    if causal:
        mask &= ahead <= 0
    if window[0] >= 0:
        mask &= ahead >= -window[0]
    if window[1] >= 0:
        mask &= ahead <= window[1]
    return mask


def reference(q, k, v, mask, scale, softcap=0.0, sinks=None, weight_bits=24):
    """(out, its bound, lse, its bound) of one sequence: [tokens, heads, dim], lse [heads, tokens].

    The bounds are those of a result that rounds products and sums of scores to float32 in any order, weights to
    weight_bits, and nothing else. A relative error of all weights cancels; what does not is at most rho.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    s = np.einsum("ihd,jhd->hij", q, k) * scale
    off = np.einsum("ihd,jhd->hij", abs(q), abs(k)) * scale * (q.shape[2] + 3) * U
    if softcap:
        s = softcap * np.tanh(s / softcap)
        off = off + 4 * softcap * U
    s = np.where(mask, s, -np.inf)
    off = np.where(mask, off, 0)
    sink = np.full((s.shape[0], 1), -np.inf) if sinks is None else np.asarray(sinks, np.float64)[:, None]
    top = np.maximum(s.max(2, initial=-np.inf), sink)
    safe = np.where(np.isfinite(top), top, 0)
    weight = np.exp(s - safe[..., None])
    total = weight.sum(2) + np.exp(sink - safe)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.where(total > 0, safe + np.log(total), -np.inf)
        share = np.where(total[..., None] > 0, weight / total[..., None], 0)
    depth = np.where(mask, abs(s - safe[..., None]), 0).max(2, initial=0)  # its rounding is an error of the exponent
    each = off.max(2, initial=0) + depth * U
    rho = 2 * each + (2 * s.shape[2] + 16) * U + 2.0**-weight_bits
    out = np.einsum("hij,jhd->ihd", share, np.where(mask.any(0)[:, None, None], v, 0))
    bound = np.einsum("hij,jhd->ihd", share, abs(v)) * rho.T[..., None]
    finite = np.where(np.isfinite(lse), abs(lse), 0)
    return out, bound, lse, each + (s.shape[2] + 8) * U + 2 * finite * U


def check(got, want, bound, dtype):
    """Stored numbers within the bound and half a unit in their last place."""
    mantissa, least = FORMATS[dtype][:2]
    got = np.asarray(got, np.float64)
    unit = np.ldexp(1.0, np.maximum(np.frexp(abs(want) + bound)[1] - 1, least) - mantissa)
    wrong = abs(got - want) > bound + 0.5 * unit
    assert np.isfinite(got).all()
    most = abs(got - want).max(initial=0)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} are off, by up to {most}, first at {np.argwhere(wrong)[:1]}"


def rotated(rope, name, x, offset=0, positions=None):
    """x [sequences, tokens, heads, dim] turned on the CPU, whose bits every backend has."""
    rope = type(rope)(rope.head_dim, rope.num_q_heads, rope.num_k_heads, **cpu_options(rope))
    block = Block(rope.dtype, x.shape, values=x)
    operands = {name: block, "sequence_length": x.shape[1]}
    if positions is None:
        operands["offset"] = offset
    else:
        operands["positions"] = Block(positions.dtype, positions.shape, values=positions)
    return block.view(call(rope, operands, x.shape[0] * x.shape[1])[name])


def cpu_options(rope):
    return rope.__reduce__()[0].keywords | {"device": "cpu", "enable_pdl": False, "positions_ready": False}


def put(memory, blocks, strided=()):
    """(buffers, arguments) of blocks by name; with strides those that are tensors of attention."""
    buffers = {name: memory.put(block.flat) for name, block in blocks.items()}
    arguments = {name: memory.pointer(buffers[name]) + b.offset * b.dtype.itemsize for name, b in blocks.items()}
    arguments |= {f"{name}_strides": blocks[name].strides[:3] for name in strided if name in blocks}
    return buffers, arguments


def put_workspace(memory, content, size):
    """(the buffer, which must live on, and arguments) of `size` bytes; content: 256 more."""
    buffer = memory.put(content)
    place = (memory.pointer(buffer) + 255) // 256 * 256
    return buffer, {"workspace": place, "workspace_size": size} if size else {}


def get(memory, blocks, buffers):
    """Contents by name; nothing but the blocks' elements was written."""
    flats = {name: memory.get(buffer) for name, buffer in buffers.items()}
    for name, block in blocks.items():
        untouched = block.flat.copy()
        block.view(untouched)[...] = block.view(flats[name])
        np.testing.assert_array_equal(untouched, flats[name], err_msg=f"{name}: written beside its elements")
    return {name: block.view(flats[name]).copy() for name, block in blocks.items()}


def attend(attention, q, k, v, strides=None, keeps=(), wants_lse=True, **options):
    """Results by name, of a call with pointers; q, k, v: [sequences, tokens, heads, dim] of the dtype.

    strides : of [sequences, tokens, heads, dim] for every tensor, from its shape. Default: dense
    keeps : "q_out", "k_out", where the rotated ones are to be stored
    """
    rope = attention.rope
    memory, dtype = memory_of(rope.device), storage(rope.dtype)
    shapes = {"q": q.shape, "k": k.shape, "v": v.shape, "out": (*q.shape[:3], v.shape[3]), "q_out": q.shape,
              "k_out": k.shape}  # fmt: skip
    values = {"q": q, "k": k, "v": v}
    blocks = {}
    for name, shape in shapes.items():
        if name in ("q_out", "k_out") and name not in keeps:
            continue
        blocks[name] = Block(dtype, shape, strides(shape) if strides else None, values=values.get(name))
    ragged = "q_indptr" in options
    lse_shape = (*(() if ragged else (q.shape[0],)), q.shape[2], q.shape[1])
    if wants_lse:
        blocks["lse"] = Block(np.float32, lse_shape)
    blocks |= {name: Block(x.dtype, x.shape, values=x) for name, x in options.items() if isinstance(x, np.ndarray)}
    buffers, arguments = put(memory, blocks, shapes if strides else ())
    counts = {"num_q_tokens": q.shape[1], "num_k_tokens": k.shape[1]}
    counts["num_sequences"] = len(options["q_indptr"]) - 1 if ragged else q.shape[0]
    rotations = {name: options.get(name, False) for name in ("q_rotated", "k_rotated")}
    size = attention.workspace_size(
        q.shape[1], k.shape[1], num_sequences=1 if ragged else q.shape[0], **rotations, keeps_q="q_out" in keeps,
        keeps_k="k_out" in keeps,
    )  # fmt: skip
    _workspace, of_workspace = put_workspace(memory, np.zeros(size + 256, np.uint8), size)
    arguments = options | arguments | of_workspace
    first = [arguments.pop(name) for name in ("q", "k", "v", "out")]
    attention.apply(*first, **counts, **arguments)
    return get(memory, blocks, buffers)
