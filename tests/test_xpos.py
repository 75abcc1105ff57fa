"""xPos: its magnitudes against arbitrary precision, what inner products depend on, and where numbers end."""

import copy
import functools
import pickle

import numpy as np
import pytest
from mpmath import mp, mpf

import pyrope
from kit import reference as ref
from kit.blocks import Block, call, index, rows_block, same_on_both
from kit.cases import K_HEADS, Q_HEADS
from kit.ropes import make

LARGEST, SMALLEST_NORMAL, DENORMAL = float(np.finfo(np.float32).max), 2.0**-126, 2.0**-149


def xpos_rope(device, dim, q_heads=1, k_heads=1, **options):
    return make(device, fused=True, head_dim=dim, num_q_heads=q_heads, num_k_heads=k_heads, **options)


def turned(rope, q, k, positions, method="apply", **others):
    """q and k [tokens, heads, dim] after a call, of which each may be None."""
    blocks = {name: index(x) for name, x in ({"positions": positions} | others).items()}
    for name, x in (("q", q), ("k", k)):
        if x is not None:
            blocks[name] = rows_block(x.dtype, x.shape, values=x)
            blocks[f"{name}_out"] = rows_block(x.dtype, x.shape)
    flats = call(rope, blocks, len(positions), method)
    return [np.array(blocks[x].view(flats[x])) if x in blocks else None for x in ("q_out", "k_out")]


def magnitudes(device, dim, positions, xpos, dtype="float32", **options):
    """Those of q and of k, [tokens, pairs] each: what pairs (1, 0) become that do not turn."""
    x = np.zeros((len(positions), 1, dim), ref.storage(dtype))
    x[..., : dim // 2] = 1
    rope = xpos_rope(device, dim, dtype=dtype, inv_freq=np.zeros(dim // 2), xpos=xpos, **options)
    return [y[:, 0, : dim // 2].astype(np.float64) for y in turned(rope, x, x, positions)]


def exponents(dim, distances, scale_base, gamma):
    """log2 of the magnitudes of q; the paper's zeta, arXiv:2212.10554."""
    with mp.workprec(ref.BITS):
        gamma, scale_base = mpf(gamma), mpf(scale_base)
        rates = [mp.log((mpf(2 * i) / dim + gamma) / (1 + gamma), 2) / scale_base for i in range(dim // 2)]
        return [[n * rate for rate in rates] for n in distances]


def check_magnitudes(got, wanted, sign):
    """Within 1e-7, relative, or 1.2 denormals; not finite where float32 ends."""
    for row, want_row in zip(got, wanted, strict=True):
        for y, exponent in zip(row, want_row, strict=True):
            exponent = sign * exponent
            if exponent > 200:
                assert not np.isfinite(y)
                continue
            want = float(mpf(2) ** exponent) if exponent > -200 else 0.0
            if want > LARGEST * (1 + 1e-7):
                assert not np.isfinite(y), (y, want)
            elif want < LARGEST * (1 - 1e-7):
                assert abs(y - want) <= max(1e-7 * want, 1.2 * DENORMAL if want < SMALLEST_NORMAL else 0), (y, want)


WRAPPED = [2**63 - 1, -(2**63), 2**62, -5]
CASES = [  # rotary_dim, positions, XPos
    (64, [0, 1, 2, 77, 511, 512, 2047, 5000, 30_000, -1000], {}),
    (2, [0, 3, 400, 40_000, 42_000, 2**31 - 1, 2**40], {}),
    (128, [0, 1, 4095, 8192, 100_000, 2**20], {"scale_base": 8192.5, "center": 4096}),
    (512, [0, 9, 5000], {"gamma": 3}),
    (64, [0, 9, 12, 500, 2**30 + 7], {"gamma": 1e-6, "scale_base": 100}),
    (64, [0, 9, 2**22, 2**30 + 7], {"gamma": 1e6}),
    (16, [2**40 + 3, 2**40 - 700, 2**40 + 36_000], {"center": 2**40}),
    (16, WRAPPED, {"scale_base": 1e18}),
    (16, WRAPPED, {"scale_base": 1e18, "center": -7}),
    (16, WRAPPED, {"scale_base": 1e17, "center": 2**63 - 1}),
    (16, [1, 2, 3], {"scale_base": 1e-6}),
]


@pytest.mark.parametrize(("dim", "positions", "options"), CASES)
def test_magnitudes(device, dim, positions, options):
    """At any position; position - center wraps."""
    options = {"scale_base": 512, "gamma": 0.4, "center": 0} | options
    q, k = magnitudes(device, dim, positions, pyrope.XPos(**options))
    distances = [(p - options["center"] + 2**63) % 2**64 - 2**63 for p in positions]
    wanted = exponents(dim, distances, options["scale_base"], options["gamma"])
    check_magnitudes(q, wanted, 1)
    check_magnitudes(k, wanted, -1)
    at_center = [p == options["center"] for p in positions]
    assert (q[at_center] == 1).all() and (k[at_center] == 1).all()


def test_many_magnitudes(device, rng):
    """One pair and any position: exponents of 2 from -151 to 129, which pass every fraction."""
    count = 20_000 if device == "cpu" else 2000
    exact = 1 << 40
    positions = np.sort(rng.integers(-129 * exact, 151 * exact, count))
    rate = float(-exponents(2, [1], 1, 0.4)[0][0])
    q, k = (y[:, 0] for y in magnitudes(device, 2, positions, pyrope.XPos(scale_base=rate * exact)))
    exponent = positions.astype(np.longdouble) / exact
    for got, want in ((q, np.exp2(-exponent)), (k, np.exp2(exponent))):
        normal = (want >= SMALLEST_NORMAL) & (want < LARGEST)
        tiny = want < SMALLEST_NORMAL
        assert normal.sum() > count / 2 and tiny.any()
        # The bound that math/xpos.h states; the rest is for the rounding of `rate`.
        assert np.abs(got[normal] / want[normal] - 1).max() <= 7.9e-8
        assert np.abs(got[tiny] - want[tiny]).max() <= 1.2 * DENORMAL
        assert not np.isfinite(got[want > LARGEST * (1 + 1e-7)]).any()


def test_ranges_of_the_docstring(device):
    def k(position, dtype="float32", **options):
        return magnitudes(device, 64, [position], pyrope.XPos(**options), dtype)[1][0, 0]

    assert k(283) == pytest.approx(2, rel=1e-3)
    for dtype, inside, outside in (("float16", 4500, 4540), ("float32", 36_200, 36_300), ("bfloat16", 36_200, 36_300)):
        assert np.isfinite(k(inside, dtype)) and not np.isfinite(k(outside, dtype))
        assert np.isfinite(k(2 * inside, dtype, center=inside)) and np.isfinite(k(0, dtype, center=inside))


def products(q, k):
    """Inner products of every head pair, in float64: [tokens]."""
    return (q.astype(np.float64) * k.astype(np.float64)).sum((1, 2))


@pytest.mark.parametrize("options", [{}, {"center": 2000}, {"scale_base": 300.0, "gamma": 1.5, "center": -1000}])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
def test_inner_products_depend_on_differences(device, layout, options, rng):
    """q at n with k at m: over the pairs the sum of zeta^((n - m) / scale_base) <q turned by n - m, k>."""
    dim, tokens = 64, 50
    q, k = rng.standard_normal((2, tokens, 1, dim)).astype(np.float32)
    xpos = pyrope.XPos(**options)
    rope = xpos_rope(device, dim, layout=layout, xpos=xpos)
    distances = rng.integers(0, 1000, tokens)
    magnitude = ref.xpos(np.repeat(distances[:, None], dim // 2, 1), dim, xpos.scale_base, xpos.gamma)
    angles = distances[:, None] * np.array([float(f) for f in ref.base_frequencies(dim, 10000.0)])
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    want = products(ref.rotate(ref.exact(q), cos, sin, layout, dim, 0)[0], k)
    # Each of the two rotations is off by ROTATION + XPOS of a pair's length times its magnitude.
    first, second = ref.pair_indices(dim, layout)
    length_q, length_k = (np.hypot(x[:, 0, first], x[:, 0, second]).astype(np.float64) for x in (q, k))
    error = 2.01 * (ref.ROTATION + ref.XPOS) * (length_q * length_k * magnitude).sum(1)
    for shift in (0, 1, -500, 3000, 2999):
        y = turned(rope, q, None, distances + shift)[0], turned(rope, None, k, np.full(tokens, shift))[1]
        assert (np.abs(products(*y) - want) <= error).all()


def test_each_alone(device, rng):
    """The sign is the operand's: q alone and k alone have the bits that they have together."""
    q, k = rng.standard_normal((9, Q_HEADS, 64)), rng.standard_normal((9, K_HEADS, 64))
    q, k, positions = q.astype(np.float16), k.astype(np.float16), rng.integers(0, 1000, 9)
    rope = xpos_rope(device, 64, Q_HEADS, K_HEADS, dtype="float16", xpos=pyrope.XPos())
    together = turned(rope, q, k, positions)
    np.testing.assert_array_equal(turned(rope, q, None, positions)[0], together[0])
    np.testing.assert_array_equal(turned(rope, None, k, positions)[1], together[1])
    as_k = turned(xpos_rope(device, 64, K_HEADS, 0, dtype="float16", xpos=pyrope.XPos()), k, None, positions)[0]
    assert (as_k != together[1]).any()


def test_moved_keys(device, rng):
    """positions_from: a key at one position becomes what it is at another, whatever the center."""
    k = rng.standard_normal((30, K_HEADS, 64)).astype(np.float32)
    origin, positions = rng.integers(0, 4000, (2, 30))
    rope = xpos_rope(device, 64, Q_HEADS, K_HEADS, xpos=pyrope.XPos(center=1500))
    there = turned(rope, None, turned(rope, None, k, origin)[1], positions, positions_from=origin)[1]
    want = turned(rope, None, k, positions)[1].astype(np.float64)
    length = np.hypot(want[..., :32], want[..., 32:])
    error = 3.1 * (ref.ROTATION + ref.XPOS) * np.concatenate([length, length], -1)  # of three rotations
    assert (np.abs(there - want) <= error).all()
    elsewhere = xpos_rope(device, 64, Q_HEADS, K_HEADS, xpos=pyrope.XPos(center=-(2**63)))
    np.testing.assert_array_equal(*(turned(r, None, k, positions, positions_from=origin)[1] for r in (rope, elsewhere)))


def test_the_inverse_is_the_transpose(device, rng):
    """<turned x, y> = <x, turned back y>, of q and of k: gradients."""
    x, y = rng.standard_normal((2, 40, 1, 64)).astype(np.float32)
    positions = rng.integers(0, 3000, 40)
    rope = xpos_rope(device, 64, xpos=pyrope.XPos(center=1000))
    ahead, back = turned(rope, x, x, positions), turned(rope, y, y, positions, "inverse")
    for sign, a, b in zip((1, -1), ahead, back, strict=True):
        largest = ref.xpos(sign * np.abs(positions - 1000)[:, None] * [[1] * 32], 64, 512, 0.4)
        largest = np.maximum(largest, 1 / largest).max(1)
        error = (
            2.01 * (ref.ROTATION + ref.XPOS) * largest * np.linalg.norm(x, axis=(1, 2)) * np.linalg.norm(y, axis=(1, 2))
        )
        assert (np.abs(products(a, y) - products(x, b)) <= error).all()


ENDS = [0, 3000, 36_000, 36_400, 41_000, 43_000, 60_000, 2**31 - 1, -40_000, -(2**40), 2**63 - 1, -(2**63)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "stages",
    [
        {},
        {"norm": pyrope.RMSNorm()},
        {"norm": pyrope.RMSNorm(after=True)},
        {"q_out_dtype": "float8_e4m3fn", "k_out_dtype": "float8_e5m2"},
        {"q_out_dtype": "int8", "k_out_dtype": "int8", "q_scale_kind": "dynamic", "k_scale_kind": "dynamic"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("center", [0, -39_999])
def test_ends_have_equal_bits(dtype, stages, center, rng):
    """Where magnitudes are infinite, denormal or 0, of any bit patterns too."""
    positions = np.repeat(ENDS, 3)
    tokens, dim = len(positions), 64
    blocks = {"positions": index(positions)}
    for x, heads in (("q", Q_HEADS), ("k", K_HEADS)):
        values = rng.standard_normal((tokens, heads, dim)).astype(ref.storage(dtype))
        values[1::3] = (
            rng.integers(0, 256, values[1::3].nbytes, np.uint8).view(values.dtype).reshape(values[1::3].shape)
        )
        values[2::3] = 0
        blocks[x] = rows_block(dtype, values.shape, values=values)
        blocks[f"{x}_out"] = rows_block(stages.get(f"{x}_out_dtype", dtype), values.shape)
        if "norm" in stages:
            blocks[f"{x}_weight"] = index(rng.standard_normal(dim), dtype)
        if f"{x}_scale_kind" in stages:
            blocks[f"{x}_scale"] = Block(np.float32, (tokens, heads))

    options = {"dim": dim, "dtype": dtype, "xpos": pyrope.XPos(center=center)} | stages
    same_on_both(functools.partial(xpos_rope, q_heads=Q_HEADS, k_heads=K_HEADS, **options), blocks, tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [512, 130, 6])
def test_cuda_equals_cpu(dim, dtype, layout, rng):
    """Widths of the kernel's accesses, and every pair that there may be."""
    x = rng.standard_normal((33, 2, dim)).astype(ref.storage(dtype))
    positions = rng.integers(0, 20_000, 33)
    options = {"dtype": dtype, "layout": layout, "xpos": pyrope.XPos(scale_base=4096, gamma=0.9, center=7000)}
    cpu, cuda = (turned(xpos_rope(device, dim, 2, 2, **options), x, x, positions) for device in ("cpu", "cuda"))
    for a, b in zip(cpu, cuda, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_object(remake, rng):
    xpos = pyrope.XPos(scale_base=100, center=3)
    assert repr(xpos) == "XPos(scale_base=100, gamma=0.4, center=3)"
    assert repr(pyrope.XPos()) == "XPos(scale_base=512, gamma=0.4, center=0)"
    assert remake(xpos) == xpos != pyrope.XPos() and hash(remake(xpos)) == hash(xpos)
    with pytest.raises(AttributeError, match=r"^XPos: immutable"):
        xpos.gamma = 1.0
    rope = xpos_rope("cpu", 64, xpos=xpos)
    again = remake(rope)
    assert again.xpos == rope.xpos == xpos and repr(again) == repr(rope)
    assert "xpos=XPos(scale_base=100, gamma=0.4, center=3)" in repr(rope) and "xpos" not in repr(xpos_rope("cpu", 64))
    assert xpos_rope("cpu", 64).xpos is None
    x = rng.standard_normal((3, 1, 64)).astype(np.float32)
    for a, b in zip(*(turned(r, x, x, [4, 5, 700]) for r in (rope, again)), strict=True):
        np.testing.assert_array_equal(a, b)
