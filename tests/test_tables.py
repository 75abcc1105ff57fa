"""Rows of angles, of cosines and sines for each element, for k apart from q, and for each token, in float64."""

import numpy as np
import pytest

from kit import reference as ref
from kit.blocks import Block, call, index, normal_block, rows_block, same_on_both
from kit.memory import memory_of
from kit.objects import on
from kit.refusals import T, V, refused, rows
from kit.ropes import make

TOKENS, ROWS, R = 7, 50, 64


ATOL = 2e-6  # of values up to 5: cos and sin within 1e-7, and two products and a sum in float32


def turned(x, first, second, cos, sin, transposed=False):
    """Elements by columns of their own: cos and sin are [tokens, elements]."""
    y, c, s = x.astype(np.float64), cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    a, b = y[..., first].copy(), y[..., second].copy()
    if transposed:
        y[..., first] = a * c[..., first] + b * s[..., second]
        y[..., second] = b * c[..., second] - a * s[..., first]
    else:
        y[..., first] = a * c[..., first] - b * s[..., first]
        y[..., second] = b * c[..., second] + a * s[..., second]
    return y


def table(rng, width, dtype="float32", low=-1.0, high=1.0, count=ROWS):
    values = rng.uniform(low, high, (count, width)).astype(ref.storage(dtype))
    return Block(dtype, values.shape, values=values)


def scalars(block):
    return {"cos_sin_rows": block.shape[0], "cos_sin_stride": block.shape[1]}


def test_ernie_image():
    """d = 4, x = e0, angles (0.1, 0.1, 0.2, 0.2), pairs (i, i + 2)."""
    angles, q = np.array([[0.1, 0.1, 0.2, 0.2]], np.float32), np.array([[[1, 0, 0, 0]]], np.float32)
    shape = {"fused": True, "head_dim": 4, "num_q_heads": 1, "cos_sin_columns": "elements"}
    for options, given in (
        ({"angle": "radians"}, {"angles": angles}),
        ({"angle": "cos_sin"}, {"cos": np.cos(angles), "sin": np.sin(angles)}),
        ({"angle": "cos_sin"}, {"cos": np.concatenate([np.cos(angles), np.sin(angles)], axis=1)}),
    ):
        y = q.copy()
        make(**shape, **options).apply(y, **given)
        np.testing.assert_allclose(y, [[[0.995004, 0, 0.198669, 0]]], atol=1e-6)


@pytest.mark.parametrize("method", ["apply", "inverse"])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize("form", ["cos_sin", "merged", "radians"])
def test_elements(device, form, layout, blocks, method, rng):
    positions = rng.integers(0, ROWS, (blocks, TOKENS))
    x = normal_block(rng, "float32", (TOKENS, 3, R))
    first, second = ref.pair_indices(R, layout, blocks)
    options = {"fused": True, "layout": layout, "num_blocks": blocks, "cos_sin_columns": "elements"}
    stream = np.zeros(R, int)
    stream[first] = stream[second] = np.arange(R // 2) * blocks // (R // 2)
    chosen = positions[stream].T, np.arange(R)
    if form == "radians":
        angles = table(rng, R, low=-1e4, high=1e4)
        operands = {"angles": angles} | scalars(angles)
        cos, sin = (f(angles.view().astype(np.float64)) for f in (np.cos, np.sin))
        rope = make(device, angle="radians", **options)
    else:
        values = table(rng, 2 * R)
        operands = {"cos": values} | scalars(values)
        if form == "cos_sin":
            operands["sin"] = Block("float32", (ROWS, R), (2 * R, 1), R, flat=values.flat)
            operands["cos"] = Block("float32", (ROWS, R), (2 * R, 1), flat=values.flat)
        cos, sin = np.split(values.view().astype(np.float64), 2, axis=1)
        rope = make(device, angle="cos_sin", **options)
    operands |= {"q": x, "positions": index(positions if blocks > 1 else positions[0])}
    got = x.view(call(rope, operands, TOKENS, method)["q"])
    want = turned(x.view(), first, second, cos[chosen], sin[chosen], method == "inverse")
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


def test_radians_of_pairs(device, rng):
    """TransformerEngine's freqs. Within 1e-7, whatever their size."""
    angles = table(rng, R // 2, low=-1, high=1)
    angles.view()[...] *= (2.0 ** rng.integers(-40, 127, angles.shape)).astype(np.float32)
    angles.view()[0, :3] = 1e-45, 3.4e38, -0.0
    x = rows_block("float32", (ROWS, 1, R), values=0)
    x.view()[..., : R // 2] = 1
    rope = make(device, fused=True, num_q_heads=1, angle="radians")
    y = x.view(call(rope, {"q": x, "angles": angles} | scalars(angles))["q"])[:, 0]
    for i, row in enumerate(angles.view()):
        cos, sin = ref.cos_sin_fp32([1], row.astype(np.float64))
        assert max(np.abs(y[i, : R // 2] - cos[0]).max(), np.abs(y[i, R // 2 :] - sin[0]).max()) <= 1e-7


def test_radians_that_are_not_finite(device):
    angles, x = Block("float32", (3, 1), values=[[np.nan], [np.inf], [1]]), rows_block("float32", (3, 1, 2), values=1)
    rope = make(device, fused=True, head_dim=2, num_q_heads=1, angle="radians")
    y = x.view(call(rope, {"q": x, "angles": angles} | scalars(angles))["q"])
    assert np.isnan(y[:2]).all() and np.isfinite(y[2]).all()


@pytest.mark.parametrize("columns", ["pairs", "elements"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_k_by_its_own(device, dtype, columns, rng):
    """q and k as two calls turn them, each by its own rows; a norm in between."""
    width = R if columns == "elements" else R // 2
    tables = {name: table(rng, width, dtype) for name in ("cos", "sin", "k_cos", "k_sin")}
    options = {"fused": True, "angle": "cos_sin", "cos_sin_dtype": dtype, "cos_sin_columns": columns}
    q, k = (normal_block(rng, "float16", (TOKENS, heads, R)) for heads in (3, 2))
    shared = {"positions": index(rng.integers(0, ROWS, TOKENS))} | scalars(tables["cos"])
    rope = make(device, "float16", **options)
    both = call(rope, {"q": q, "k": k} | tables | shared)
    one = call(rope, {"q": q, "cos": tables["cos"], "sin": tables["sin"]} | shared)
    other = call(rope, {"k": k, "cos": tables["k_cos"], "sin": tables["k_sin"]} | shared)
    np.testing.assert_array_equal(both["q"], one["q"])
    np.testing.assert_array_equal(both["k"], other["k"])
    assert (other["k"] != k.flat).any()


def test_equal_columns_are_pairs(device, rng):
    """Rows of elements whose halves agree have the bits of rows of pairs."""
    cos, sin = table(rng, R // 2), table(rng, R // 2)
    wide = [Block("float32", (ROWS, R), values=np.tile(t.view(), 2)) for t in (cos, sin)]
    operands = {"q": normal_block(rng, "bfloat16", (TOKENS, 3, R)), "positions": index(rng.integers(0, ROWS, TOKENS))}
    options = {"fused": True, "angle": "cos_sin"}
    want = call(make(device, "bfloat16", **options), operands | {"cos": cos, "sin": sin} | scalars(cos))["q"]
    given = {"cos": wide[0], "sin": wide[1]} | scalars(wide[0])
    got = call(make(device, "bfloat16", cos_sin_columns="elements", **options), operands | given)["q"]
    np.testing.assert_array_equal(got, want)


def test_skipped_rows_are_counted(device, rng):
    angles = table(rng, R // 2)
    q, positions = normal_block(rng, "float32", (4, 3, R)), index(np.array([1, ROWS, -2, -1]))
    operands = {"q": q, "positions": positions, "angles": angles, "cos_sin_skipped": index([40])} | scalars(angles)
    flats = call(make(device, fused=True, angle="radians"), operands)
    assert flats["cos_sin_skipped"].view(np.int64)[0] == 42
    np.testing.assert_array_equal(q.view(flats["q"])[1:], q.view()[1:])
    assert (q.view(flats["q"])[0] != q.view()[0]).any()


@pytest.mark.parametrize("shape", [(2, 5, 32), (1, 5, 32), (10, 32), (10, 1, 1, 32), (2, 5, 1, 32)])
def test_a_row_for_each_token(device, shape, rng):
    """Without positions; [1, tokens, columns] is for every sequence."""
    angles, x = rng.uniform(-9, 9, shape).astype(np.float32), rng.standard_normal((2, 5, 3, R)).astype(np.float32)
    if len(shape) == 2:  # rows by position, of tokens that are one sequence
        x = x.reshape(10, 3, R)
    (q, buffer), (given, _keep) = on(device, x.copy(), "float32"), on(device, angles, "float32")
    make(device, fused=True, angle="radians").apply(q, angles=given)
    full = np.broadcast_to(angles, (2, 5, 32)).reshape(10, 32) if len(shape) == 3 else angles.reshape(10, 32)
    i = np.arange(32)
    wide = np.tile(full.astype(np.float64), 2)
    want = turned(x.reshape(10, 3, R), i, i + 32, np.cos(wide), np.sin(wide))
    np.testing.assert_allclose(memory_of(device).get(buffer).reshape(10, 3, R), want, rtol=0, atol=ATOL)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 36), (6, 4)])
def test_bits(head_dim, rotary_dim, dtype, rng):
    """Equal on both backends, of every access width."""
    angles = [table(rng, rotary_dim, low=-1e4, high=1e4) for _ in range(2)]
    operands = {"q": normal_block(rng, dtype, (ROWS, 3, head_dim)), "k": normal_block(rng, dtype, (ROWS, 2, head_dim))}
    operands |= {"angles": angles[0], "k_angles": angles[1]} | scalars(angles[0])
    options = {"head_dim": head_dim, "rotary_dim": rotary_dim, "cos_sin_columns": "elements", "angle": "radians"}
    for method in ("apply", "inverse"):
        same_on_both(lambda device: make(device, dtype, fused=True, **options), operands, ROWS, method)


CONSTRUCTOR = rows(
    ("columns", {"angle": "cos_sin", "cos_sin_columns": "halves"}, V, "cos_sin_columns: 'halves', must be one of"),
    ("columns of frequencies", {"cos_sin_columns": "elements"}, V, "cos_sin_columns: 'elements', only allowed with"),
    ("radians of a dtype", {"angle": "radians", "cos_sin_dtype": "float16"}, V, "cos_sin_dtype: 'float16', must be"),
    ("radians and theta", {"angle": "radians", "theta": 5.0}, V, "theta: not allowed with angle='radians'"),
)


@pytest.mark.parametrize(("options", "error", "text"), CONSTRUCTOR)
def test_constructor(options, error, text):
    with refused(error, text):
        make(fused=True, **options)


PAIRS, RADIANS = {"angle": "cos_sin"}, {"angle": "radians"}
ELEMENTS = PAIRS | {"cos_sin_columns": "elements"}
F = np.zeros((10, 32), np.float32)
BATCH = {"q": np.ones((2, 5, 3, R), np.float32), "k": None}
CALLS = rows(
    ("angles of exact", {}, {"angles": F}, V, "angles: only allowed with angle='radians'"),
    ("k_angles of exact", {}, {"k_angles": F}, V, "k_angles: only allowed with angle='radians'"),
    ("k_cos of exact", {}, {"k_cos": F}, V, "k_cos: only allowed with angle='cos_sin'"),
    ("angles of cos_sin", PAIRS, {"angles": F, "cos": F, "sin": F}, V, "angles: only allowed with angle='radians'"),
    ("no angles", RADIANS, {}, T, "angles: required with angle='radians'"),
    ("cos of radians", RADIANS, {"angles": F, "cos": F}, V, "cos: not allowed with angle='radians'"),
    ("sin of radians", RADIANS, {"angles": F, "sin": F}, V, "sin: not allowed with angle='radians'"),
    ("angles of elements", RADIANS, {"angles": np.zeros((10, 64), np.float32)}, V, r"angles: shape \(10, 64\)"),
    ("angles in float64", RADIANS, {"angles": F.astype(float)}, T, "angles: dtype float64, must be float32"),
    ("cos of pairs", ELEMENTS, {"cos": F, "sin": F}, V, r"cos: shape \(10, 32\), must be \[rows, 64\]"),
    ("k_sin alone", PAIRS, {"cos": F, "sin": F, "k_sin": F}, T, "k_cos: required with angle='cos_sin'"),
    ("k_cos of other rows", PAIRS, {"cos": F, "sin": F, "k_cos": F[:9], "k_sin": F[:9]}, V,
     r"k_cos: shape \(9, 32\), must be \[10, 32\]"),
    ("k_cos without k", PAIRS, {"k": None, "cos": F, "sin": F, "k_cos": F, "k_sin": F}, V, "k_cos_sin: given"),
    ("rows that do not fold", RADIANS, {"angles": np.zeros((2, 9, 32), np.float32)[:, :5]}, V,
     "angles: the leading dimensions do not fold"),
    ("rows of other tokens", RADIANS, BATCH | {"angles": np.zeros((2, 6, 32), np.float32)}, V,
     r"angles: shape \(2, 6, 32\), must be \[rows, columns\], or have the leading dimensions of the 10 tokens"),
    ("rows of tokens in another order", RADIANS, BATCH | {"angles": np.zeros((5, 2, 32), np.float32)}, V,
     r"angles: shape \(5, 2, 32\), must be"),
    ("rows of tokens and an offset", RADIANS, BATCH | {"angles": np.zeros((2, 5, 32), np.float32), "offset": 3}, V,
     "offset: 3, not allowed where angles has a row for each token"),
)  # fmt: skip


@pytest.mark.parametrize(("options", "change", "error", "text"), CALLS)
def test_calls(options, change, error, text):
    q, k = np.ones((10, 3, R), np.float32), np.ones((10, 2, R), np.float32)
    with refused(error, text):
        make(fused=True, **options).apply(**{"q": q, "k": k} | change)
    assert (q == 1).all() and (k == 1).all()


def test_written_where_rows_are(device, rng):
    """What is written is apart from k's rows too."""
    angles = [table(rng, R // 2, count=TOKENS) for _ in range(2)]
    q, k = (normal_block(rng, "float32", (TOKENS, heads, R)) for heads in (3, 2))
    operands = {"q": q, "k": k, "angles": angles[0], "k_angles": Block("float32", (TOKENS, 32), flat=k.flat)}
    rope = make(device, fused=True, angle="radians")
    call(rope, operands | scalars(angles[0]), refused="^k_cos_sin.cos: overlaps k in memory, which is written")
