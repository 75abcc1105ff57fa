"""Groups and blocks that cannot be: each refusal names the argument, and nothing is written."""

import numpy as np
import pytest

import pyrope
from kit.blocks import Block, call, index, rows_block
from kit.memory import Buffers
from kit.refusals import DIM, TOKENS, T, V, refused, rows, small

E4M3, E2M1 = "float8_e4m3fn", "float4_e2m1fn"
GROUPS = pyrope.GroupScales(32)
MX, NV = pyrope.GroupScales(32, "float8_e8m0fnu"), pyrope.GroupScales(16, E4M3)


def q_out(out_dtype, scale_kind=None):
    return {"q_out_dtype": out_dtype, "q_scale_kind": scale_kind}


CONSTRUCTOR = rows(
    ("size of 8", q_out(E4M3, pyrope.GroupScales(8)), V, "size: 8, must be 16, 32, 64 or 128 and divide the 64 elem"),
    ("size of 128 for 64", q_out(E4M3, pyrope.GroupScales(128)), V, "size: 128, must be .* divide the 64 elements of"),
    ("size that does not divide", q_out("int8", GROUPS) | {"head_dim": 80}, V, "size: 32, must be .* the 80 elements"),
    ("size float", q_out(E4M3, pyrope.GroupScales(32.0)), T, "size: 32.0 is not an integer"),
    ("scales' dtype", q_out(E4M3, pyrope.GroupScales(32, "float16")), V, "dtype: 'float16', must be one of 'float32'"),
    ("strides", q_out(E4M3, pyrope.GroupScales(32, strides=4)), T, "strides: 4, must be a tuple of integers"),
    ("groups alone", {"k_scale_kind": GROUPS}, V, "k_scale_kind: only allowed with k_out_dtype"),
    ("e2m1 without groups", q_out(E2M1), V, "q_scale_kind: None, must be a pyrope.GroupScales with 'float4_e2m1fn'"),
    ("e2m1 with one scale", q_out(E2M1, "head"), V, "q_scale_kind: 'head', must be a pyrope.GroupScales"),
    ("blocks with scales", q_out("q8_0", "dynamic"), V, "q_scale_kind: not allowed with 'q8_0', whose blocks"),
    ("blocks with groups", q_out("q4_0", GROUPS), V, "q_scale_kind: not allowed with 'q4_0', whose blocks"),
    ("blocks of a head of 80", q_out("q8_0") | {"head_dim": 80}, V, "q_out_dtype: 'q8_0' has blocks of 32 elements"),
    ("values of 48", {"v_out_dtype": "q4_0", "v_head_dim": 48}, V, "v_out_dtype: 'q4_0' has blocks of 32"),
)  # fmt: skip


@pytest.mark.parametrize(("options", "error", "text"), CONSTRUCTOR)
def test_constructor(options, error, text):
    with refused(error, text):
        small(fused=True, **options)


CALLS = rows(
    ("no scales", q_out(E4M3, GROUPS), lambda p: {}, T, "q_scale: required with q_scale_kind=GroupScales"),
    ("scales misaligned", q_out(E4M3, GROUPS), lambda p: {"q_scale": p.scale + 2}, V, "q_groups: pointer .* misalign"),
    ("scales are q", q_out(E4M3, GROUPS), lambda p: {"q_scale": p.q}, V, r"q_groups.scales: overlap q in memory"),
    ("scales are q_out", q_out(E2M1, MX), lambda p: {"q_scale": p.out + 190}, V, "q_groups.scales: overlap q_out"),
    ("scales are k", q_out(E2M1, MX), lambda p: {"q_scale": p.k}, V, "q_groups.scales: overlap k in memory"),
    ("scale a number", q_out(E4M3, GROUPS), lambda p: {"q_scale": 0.5}, T, "q_scale: 0.5 is not"),
    ("blocks and a scale", q_out("q8_0"), lambda p: {"q_scale": 1.0}, V, "q_scale: not allowed with q_out_dtype='q8"),
    ("tensor scale of MX", q_out(E2M1, MX), lambda p: {"q_scale": p.scale, "q_tensor_scale": 1.0}, V,
     "q_tensor_scale: only allowed with GroupScales of float8_e4m3fn"),
    ("tensor scale alone", {}, lambda p: {"q_out": None, "k_tensor_scale": 1.0}, V, "k_tensor_scale: only allowed wi"),
    ("tensor scale zero", q_out(E2M1, NV), lambda p: {"q_scale": p.scale, "q_tensor_scale": 0.0}, V,
     "q_tensor_scale: 0.0, must be above 0"),
    ("tensor scale an int", q_out(E2M1, NV), lambda p: {"q_scale": p.scale, "q_tensor_scale": 1}, T,
     "q_tensor_scale: 1 is an integer"),
    ("tensor scale misaligned", q_out(E2M1, NV), lambda p: {"q_scale": p.scale, "q_tensor_scale": p.out + 2}, V,
     "q_groups: pointer .* misaligned"),
    ("q_nope", q_out(E4M3, GROUPS) | {"q_nope_dim": 8}, lambda p: {"q_scale": p.scale, "q_nope": p.k,
     "q_nope_out": p.nope}, V, "q_nope: not with scales of groups"),
    ("head stride short", q_out(E4M3, pyrope.GroupScales(32, strides=(4, 1))), lambda p: {"q_scale": p.scale}, V,
     "q_groups.head_stride: 1, must be at least the groups of a row, 2"),
    ("token stride short", q_out(E4M3, pyrope.GroupScales(32, strides=(1, 2))), lambda p: {"q_scale": p.scale}, V,
     "q_groups.row_stride: 1, must be at least the groups of a row, 2"),
    ("three strides", q_out(E4M3, pyrope.GroupScales(32, strides=(8, 4, 2))), lambda p: {"q_scale": p.scale}, V,
     r"strides: \(8, 4, 2\), must be \(token stride, head stride\)"),
)  # fmt: skip


@pytest.mark.parametrize(("options", "change", "error", "text"), CALLS)
def test_refusals(device, options, change, error, text):
    rope = small(device, fused=True, dtype="float32", **options)
    arrays = {"q": np.ones((TOKENS, 2, DIM), np.float32), "k": np.ones((TOKENS, 1, DIM), np.float32),
              "out": np.ones((TOKENS, 2, DIM), np.uint8), "nope": np.ones((TOKENS, 2, 8), np.uint8),
              "scale": np.ones(64, np.float32)}  # fmt: skip
    buffers = Buffers(device, arrays)
    p = buffers.at
    with refused((error, pyrope.UnsupportedError), text):
        rope.apply(p.q, p.k, TOKENS, **{"q_out": p.out} | change(p))
    assert buffers.untouched()


def test_refused_arrays():
    rope = small(fused=True, dtype="float32", **q_out(E2M1, MX))
    x = np.ones((TOKENS, 2, DIM), np.float32)
    out, scales = np.zeros((TOKENS, 2, DIM // 2), np.uint8), np.zeros((TOKENS, 2, 2), np.uint8)
    for arguments, error, text in (
        ({"q_out": np.zeros((TOKENS, 2, DIM), np.uint8)}, V, r"q_out: shape \(3, 2, 64\), must be \[num_tokens, 2, 32"),
        ({"q_scale": scales[:, :, :1]}, V, r"q_scale: shape \(3, 2, 1\), must be \[3, 2, 2\] with contiguous rows"),
        ({"q_scale": scales.astype(np.float32)}, T, "q_scale: dtype float32, must be of one byte"),
        ({"q_scale": np.zeros((TOKENS, 2, 4), np.uint8)[:, :, ::2]}, V, r"q_scale: shape .* contiguous rows"),
    ):
        with refused(error, text):
            rope.apply(x, None, **{"q_out": out, "q_scale": scales} | arguments)
    assert not out.any() and not scales.any()


@pytest.mark.parametrize(("method", "head_dim", "fails"), [("apply", 4096, True), ("apply", 2048, False),
                         ("rotate_cache", 2048, False), ("rotate_cache", 4096, True)])  # fmt: skip
def test_heads_too_long(device, method, head_dim, fails):
    """For a block of the kernels: with float32 of 4096 bytes, in a cache of 2048 elements."""
    options = {"dtype": "bfloat16" if method == "apply" and not fails else "float32", "rotary_dim": 64}
    if method == "apply":
        rope = pyrope.FusedRope(head_dim, 1, 0, device=device, q_out_dtype="q4_0", **options)
        blocks = {"q": rows_block(options["dtype"], (1, 1, head_dim), values=np.ones((1, 1, head_dim)))}
        blocks["q_out"] = rows_block(np.uint8, (1, 1, head_dim // 32 * 18))
    else:
        rope = pyrope.FusedRope(head_dim, 0, 1, device=device, k_out_dtype="q4_0", cache=pyrope.PagedCache(1, 2),
                                **options)  # fmt: skip
        blocks = {"k_cache": Block(np.uint8, (2, 1, 1, head_dim // 32 * 18)), "slots": index([1]), "offset": 3}
    text = "^groups and blocks: " if device == "cuda" and fails else None
    flats = call(rope, blocks, 1, method, refused=text)
    written = "q_out" if method == "apply" else "k_cache"
    assert text or (flats[written] != blocks[written].flat).any()
