"""RopeAttention.backward against float64 and against differences of the forward: every option with every other."""

import copy
import itertools

import numpy as np
import pytest

import pyrope
from kit.attention import attend, check, cpu_options, full, normal, seen, spare
from kit.attention_backward import differentiate, gradients
from kit.blocks import Block, call
from kit.memory import real_device
from kit.pairwise import Rows

FACTORS = {
    "dtype": ("bfloat16", "float16", "float32"),
    "head_dim": (64, 128, 40, 192),
    "v_head_dim": (0, 64),  # 0: head_dim
    "heads": ((2, 2), (6, 2), (4, 1)),
    "q_tokens": (1, 65, 150),
    "k_tokens": (0, 1, 77, 200),  # 0: those of q
    "sequences": (1, 2),
    "causal": (False, True),
    "window_size": ((-1, -1), (0, 0), (40, -1), (3, 17)),
    "softcap": (0.0, 5.0),
    "sinks": (False, True),
    "d_lse": (False, True),
    "place": ("dense", "heads first", "gaps"),
    "layout": ("neox", "gptj"),
    "deterministic": (False, True),
}
RULES = [{"causal": (True,), "window_size": ((3, 17),)}]
ROWS = Rows(FACTORS, RULES, seed=5)
# What the kernels for CUDA have.
NARROW = FACTORS | {"dtype": FACTORS["dtype"][:2], "head_dim": (64, 128), "v_head_dim": (0,), "softcap": (0.0,),
                    "q_tokens": (1, 65, 128, 300)}  # fmt: skip
NARROW_ROWS = Rows(NARROW, RULES, seed=6)
ALL = [*ROWS, *NARROW_ROWS]


def strides_of(place):
    """As a function of a shape."""
    if place == "dense":
        return None
    if place == "heads first":
        return lambda s: (s[2] * s[1] * s[3], s[3], s[1] * s[3], 1)
    return lambda s: (s[1] * s[2] * (s[3] + 8) + 16, s[2] * (s[3] + 8), s[3] + 8, 1)


def on_cpu(attention):
    """The same on the CPU, whose forward serves all shapes."""
    rope = attention.rope
    make, _ = attention.__reduce__()
    shape = rope.head_dim, rope.num_q_heads, rope.num_k_heads
    return pyrope.RopeAttention(type(rope)(*shape, **cpu_options(rope)), **make.keywords)


def weights_of(dtype, device):
    """On CUDA, weights and gradients of scores are factors of matrix units, of dtype: their bits, and least error."""
    on_cuda = {"bfloat16": (8, 0.0), "float16": (11, 2.0**-25)}
    return (24, 0.0) if device == "cpu" else on_cuda[dtype]


UNSERVED = (
    r"head_dim, v_head_dim: 64 or 128 both, for gradients|softcap: 0, for gradients|dtype: float16 or bfloat16 on CUDA"
)


def served(row, device):
    """Whether the kernels for CUDA have it."""
    sizes = row["head_dim"], row["v_head_dim"] or row["head_dim"]
    wide = sizes in ((64, 64), (128, 128))
    return device == "cpu" or (wide and row["dtype"] != "float32" and not row["softcap"])


def turned_back(rope, name, x, offset):
    """By the inverse rotation, on the CPU."""
    rope = type(rope)(rope.head_dim, rope.num_q_heads, rope.num_k_heads, **cpu_options(rope))
    operands = {name: Block(rope.dtype, x.shape, values=x), "sequence_length": x.shape[1], "offset": offset}
    return operands[name].view(call(rope, operands, x.shape[0] * x.shape[1], "inverse")[name])


def make(row, device):
    rope = pyrope.FusedRope(row["head_dim"], *row["heads"], dtype=row["dtype"], layout=row["layout"], device=device)
    options = {name: row[name] for name in ("causal", "window_size", "softcap")}
    return pyrope.RopeAttention(rope, v_head_dim=row["v_head_dim"] or None, **options)


def values(row, attention, rng):
    k_tokens = row["k_tokens"] or row["q_tokens"]
    (q_heads, k_heads), dim = row["heads"], attention.v_head_dim
    of_q, of_k = (row["sequences"], row["q_tokens"], q_heads), (row["sequences"], k_tokens, k_heads)
    shapes = (*of_q, row["head_dim"]), (*of_k, row["head_dim"]), (*of_k, dim), (*of_q, dim)
    return [normal(rng, row["dtype"], *shape) for shape in shapes]


@pytest.mark.parametrize("number", range(len(ALL)))
def test_values(number, device):
    spare(number, device)
    row, rng = ALL[number], np.random.default_rng(number)
    attention = make(row, device)
    q, k, v, d_out = values(row, attention, rng)
    sinks = {"sinks": rng.standard_normal(q.shape[2]).astype(np.float32)} if row["sinks"] else {}
    rotations = {"q_rotated": True, "k_rotated": True}
    forward = attend(on_cpu(attention), q, k, v, **sinks, **rotations)
    given = d_out, q, k, v, forward["out"], forward["lse"], strides_of(row["place"])
    options = sinks | {"deterministic": row["deterministic"]}
    if row["d_lse"]:
        options["d_lse"] = rng.standard_normal(forward["lse"].shape).astype(np.float32)
    if not served(row, device):
        with pytest.raises(pyrope.UnsupportedError, match=UNSERVED):
            differentiate(attention, *given, **options, **rotations)
        return
    got = differentiate(attention, *given, **options, **rotations)
    mask = seen(q.shape[1], k.shape[1], row["causal"], row["window_size"])
    rest = mask, attention.scale, row["softcap"], sinks.get("sinks"), *weights_of(row["dtype"], device)
    d_lse = options.get("d_lse", np.zeros_like(forward["lse"]))
    want = [gradients(*(x[s] for x in given[:6]), *rest, d_lse[s]) for s in range(q.shape[0])]
    for s, name in itertools.product(range(q.shape[0]), ("dq", "dk", "dv")):
        check(got[name][s], *want[s][name], row["dtype"])
    if sinks:
        value, bound = (sum(w["d_sinks"][i] for w in want) for i in range(2))
        check(got["d_sinks"], value, bound, "float32")
    if row["k_tokens"] == 0:  # of q and k that were rotated the same, turned back
        turned = differentiate(attention, *given, **options, offset=1000)
        if row["deterministic"] or device == "cpu":
            for name in ("q", "k"):
                back = turned_back(attention.rope, name, got[f"d{name}"], 1000)
                np.testing.assert_array_equal(turned[f"d{name}"].view(np.uint8), back.view(np.uint8))
            np.testing.assert_array_equal(turned["dv"].view(np.uint8), got["dv"].view(np.uint8))


def test_pairs_of_options():
    assert ROWS.uncovered() == NARROW_ROWS.uncovered() == []


@pytest.mark.parametrize("wrong", ["a key too many", "no scale", "no output's sum", "half of a head"])
def test_bounds_reject(wrong, rng):
    attention = pyrope.RopeAttention(pyrope.Rope(64, 2, 2, dtype="bfloat16", device="cpu"), causal=True)
    q, k, v, d_out = (normal(rng, "bfloat16", 1, 30, 2, 64) for _ in range(4))
    forward = attend(attention, q, k, v, q_rotated=True, k_rotated=True)
    given = [d_out, q, k, v, forward["out"], forward["lse"]]
    got = differentiate(attention, *given, q_rotated=True, k_rotated=True)
    mask = seen(30, 30, True, (-1, -1))
    for name in ("dq", "dk", "dv"):
        check(got[name][0], *gradients(*(x[0] for x in given), mask, 0.125, weight_bits=9)[name], "bfloat16")
    if wrong == "a key too many":
        mask = seen(30, 30, False, (-1, 1))
    elif wrong == "no output's sum":
        given[4] = np.zeros_like(forward["out"])
    elif wrong == "half of a head":
        got["dq"][0, 7, 1, 32:] = got["dq"][0, 6, 1, 32:]
    want = gradients(*(x[0] for x in given), mask, 1.0 if wrong == "no scale" else 0.125, weight_bits=9)
    with pytest.raises(AssertionError, match="are off"):
        check(got["dq"][0], *want["dq"], "bfloat16")


def scalar(attention, q, k, v, d_out, sinks, d_lse):
    """What the gradients are of, and what the backward is given."""
    result = attend(attention, q, k, v, keeps=("q_out", "k_out"), sinks=sinks, offset=7)
    return sum((result[name].astype(np.float64) * x).sum() for name, x in (("out", d_out), ("lse", d_lse))), result


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 2.0}, {"window_size": (1, 0), "v_head_dim": 6}])
def test_differences(options, rng):
    """Of the whole forward, its rotation included, along random directions."""
    rope = pyrope.FusedRope(8, 4, 2, dtype="float32", device="cpu")
    attention = pyrope.RopeAttention(rope, **options)
    dim = attention.v_head_dim
    shapes = {"q": (2, 5, 4, 8), "k": (2, 5, 2, 8), "v": (2, 5, 2, dim)}
    given = {name: normal(rng, "float32", *shape) for name, shape in shapes.items()}
    given |= {"d_out": normal(rng, "float32", 2, 5, 4, dim), "sinks": normal(rng, "float32", 4)}
    given["d_lse"] = normal(rng, "float32", 2, 4, 5)
    _, kept = scalar(attention, **given)
    rest = given["v"], kept["out"], kept["lse"]
    options = {name: given[name] for name in ("sinks", "d_lse")} | {"offset": 7}
    got = differentiate(attention, given["d_out"], kept["q_out"], kept["k_out"], *rest, **options)
    step = 2.0**-7
    for name, gradient in (("q", "dq"), ("k", "dk"), ("v", "dv"), ("sinks", "d_sinks")):
        for _ in range(4):
            direction = normal(rng, "float32", *given[name].shape)
            ends = [scalar(attention, **given | {name: given[name] + sign * step * direction})[0] for sign in (-1, 1)]
            slope = (ends[1] - ends[0]) / (2 * step)
            # Most of it is the third derivative's.
            assert abs(slope - (got[gradient].astype(np.float64) * direction).sum()) < 1e-3, name


def test_ragged_is_each_sequence(device, rng):
    """With NaNs beyond the last sequence, and with the bits of a call for each."""
    rope = pyrope.Rope(64, 6, 2, dtype="bfloat16", device=device)
    attention = pyrope.RopeAttention(rope, causal=True)
    q_indptr, k_indptr = np.array([0, 5, 5, 135, 199], np.int32), np.array([0, 5, 40, 170, 234], np.int32)
    q, k, v, d_out = (normal(rng, "bfloat16", 1, n, h, 64) for n, h in ((220, 6), (250, 2), (250, 2), (220, 6)))
    for x in (q, k, v, d_out):
        x[:, 234 if x.shape[1] == 250 else 199 :] = np.nan
    rotations = {"q_rotated": True, "k_rotated": True}
    ragged = {"q_indptr": q_indptr, "k_indptr": k_indptr, "max_q_tokens": 130, "max_k_tokens": 130}
    forward = attend(on_cpu(attention), q, k, v, **rotations, **ragged)
    rotations["deterministic"] = True
    got = differentiate(attention, d_out, q, k, v, forward["out"], forward["lse"], **rotations, **ragged)
    for s in range(4):
        of_q, of_k = slice(*q_indptr[s : s + 2]), slice(*k_indptr[s : s + 2])
        if of_q.start == of_q.stop:
            assert (got["dk"][:, of_k] == 0).all() and (got["dv"][:, of_k] == 0).all()
            continue
        lse = np.ascontiguousarray(forward["lse"][None, :, of_q])
        given = d_out[:, of_q], q[:, of_q], k[:, of_k], v[:, of_k], forward["out"][:, of_q], lse
        one = differentiate(attention, *given, **rotations)
        for name, rows in (("dq", of_q), ("dk", of_k), ("dv", of_k)):
            np.testing.assert_array_equal(got[name][:, rows].view(np.uint16), one[name].view(np.uint16))
    for name, end in (("dq", 199), ("dk", 234), ("dv", 234)):
        assert (got[name][:, end:].view(np.uint8) == 0xA5).all()  # written for no sequence


def test_threads(rng):
    """Bits are one, however many threads there are."""
    results = []
    for threads in (1, 3):
        rope = pyrope.Rope(64, 4, 2, dtype="float16", device="cpu", num_threads=threads)
        attention = pyrope.RopeAttention(rope, causal=True)
        generator = np.random.default_rng(1)
        q, k, v, d_out = (normal(generator, "float16", 2, 200, h, 64) for h in (4, 2, 2, 4))
        forward = attend(attention, q, k, v, q_rotated=True, k_rotated=True)
        results.append(differentiate(attention, d_out, q, k, v, forward["out"], forward["lse"]))
    for name in ("dq", "dk", "dv"):
        np.testing.assert_array_equal(results[0][name].view(np.uint16), results[1][name].view(np.uint16))


@real_device
@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_deterministic(causal):
    """The same bits in every run, on a device that is full."""
    rng = np.random.default_rng(2)
    attention = pyrope.RopeAttention(pyrope.Rope(128, 16, 4, dtype="bfloat16", device="cuda"), causal=causal)
    q, k, v, d_out = (normal(rng, "bfloat16", 4, 1000, h, 128) for h in (16, 4, 4, 16))
    rotations = {"q_rotated": True, "k_rotated": True}
    forward = attend(attention, q, k, v, **rotations)
    given = d_out, q, k, v, forward["out"], forward["lse"]
    first, *others = (differentiate(attention, *given, **rotations, deterministic=True) for _ in range(20))
    for name, other in itertools.product(("dq", "dk", "dv"), others):
        np.testing.assert_array_equal(other[name].view(np.uint16), first[name].view(np.uint16))
    free = differentiate(attention, *given, **rotations)
    for name in ("dk", "dv"):  # whose sums have one order always
        np.testing.assert_array_equal(free[name].view(np.uint16), first[name].view(np.uint16))
    distance = abs(free["dq"].astype(np.float32) - first["dq"].astype(np.float32)).max()
    assert distance <= 2.0**-7 * abs(first["dq"].astype(np.float32)).max()


def test_nothing_to_do(device, rng):
    attention = pyrope.RopeAttention(pyrope.Rope(64, 2, 2, dtype="float16", device=device))
    q, none = normal(rng, "float16", 1, 5, 2, 64), np.empty((1, 0, 2, 64), np.float16)
    lse, sinks = np.full((1, 2, 5), -np.inf, np.float32), np.zeros(2, np.float32)
    got = differentiate(attention, q, q, none, none, q, lse, sinks=sinks, q_rotated=True, k_rotated=True)
    assert (got["dq"] == 0).all() and (got["d_sinks"] == 0).all()
    no_lse = np.empty((1, 2, 0), np.float32)
    got = differentiate(attention, none, none, q, q, none, no_lse, sinks=sinks, q_rotated=True, k_rotated=True)
    assert (got["dk"] == 0).all() and (got["dv"] == 0).all() and (got["d_sinks"] == 0).all()


# ---- what is refused; nothing is written


def refused(text, error=ValueError, **changed):
    attention = pyrope.RopeAttention(pyrope.Rope(64, 4, 2, dtype="float32", device="cpu"), causal=True)
    full = {"d_out": 4, "q": 4, "k": 2, "v": 2, "out": 4, "dq": 4, "dk": 2, "dv": 2}
    arguments = {name: np.full((2, 10, heads, 64), 7, np.float32) for name, heads in full.items()}
    arguments["lse"] = np.zeros((2, 4, 10), np.float32)
    arguments |= changed
    before = copy.deepcopy(changed)
    with pytest.raises(error, match=text):
        attention.backward(**arguments)
    for name in ("dq", "dk", "dv", "d_sinks"):
        if name not in changed:
            assert name not in arguments or (arguments[name] == 7).all(), name
        elif isinstance(changed[name], np.ndarray):
            np.testing.assert_array_equal(changed[name], before[name])


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        (r"d_out: shape \(2, 10, 2, 64\), must be \[sequences, tokens, 4, 64\]", {"d_out": full(2, 10, 2, 64)}),
        ("dk: 9 tokens, must be 10", {"dk": full(2, 9, 2, 64)}),
        ("lse: shape .*, must be contiguous .*, 80 elements", {"lse": full(2, 4, 9)}),
        ("d_lse: shape .*, must be contiguous .*, 80 elements", {"d_lse": full(2, 4, 9)}),
        ("^d_sinks: given, but forward.sinks is NULL", {"d_sinks": full(4)}),
        (r"d_sinks: shape \(3,\), must be contiguous", {"d_sinks": full(3), "sinks": full(4)}),
        ("^positions: shape", {"positions": np.arange(10)}),
        ("^offset: given", {"q_rotated": True, "k_rotated": True, "offset": 3}),
        ("k_indptr: only allowed with q_indptr", {"k_indptr": np.zeros(3, np.int32)}),
        ("d_out_strides: only allowed with pointers", {"d_out_strides": (1, 2)}),
        ("deterministic: 1 is not a bool", {"deterministic": 1}),
        ("stream: only allowed with device='cuda'", {"stream": 5}),
    ],
)  # fmt: skip
def test_call(text, changed):
    refused(text, (ValueError, TypeError), **changed)


def test_missing():
    refused("lse: required by backward", TypeError, lse=None)
    refused("dv: dtype float64, must be float32", TypeError, dv=np.zeros((2, 10, 2, 64)))
    refused("num_q_tokens: required with pointers", TypeError, q=full(2, 10, 4, 64).ctypes.data)
    read_only = full(2, 10, 4, 64)
    read_only.flags.writeable = False
    refused("dq: .*read-only", (ValueError, TypeError), dq=read_only)


@pytest.mark.parametrize(("written", "other"), [("dq", "q"), ("dq", "d_out"), ("dq", "out"), ("dk", "k"), ("dv", "v"),
                                                ("dk", "dv")])  # fmt: skip
def test_overlaps(written, other):
    x = full(2, 10, 4 if written == "dq" else 2, 64)
    name = {"q": "q_out", "k": "k_out", "out": "o", "d_out": "d_o"}.get(other, other)
    refused(f"^{written}: overlaps {name} in memory", **{written: x, other: x})


def test_small_memory_overlaps():
    lse, dq, sinks = np.zeros((2, 4, 10), np.float32), full(2, 10, 4, 64), full(4)
    refused("^dq: overlaps lse in memory", dq=dq, lse=dq.reshape(-1)[:80])
    refused("^d_sinks: overlaps sinks in memory", sinks=sinks, d_sinks=sinks)
    refused("^d_sinks: overlaps lse in memory", sinks=sinks, d_sinks=lse.reshape(-1)[:4], lse=lse)


def test_rotation_is_checked_first():
    """A position too many is refused before anything is written."""
    refused("positions", (ValueError, TypeError), positions=np.zeros((2, 11), np.int64))
