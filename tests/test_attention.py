"""RopeAttention against float64: every option with every other, sequences by themselves, and what is kept."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import pyrope
from kit.attention import attend, check, normal, reference, rotated, seen, spare
from kit.memory import memory_of
from kit.pairwise import Rows
from kit.reference import storage

FACTORS = {
    "dtype": ("bfloat16", "float16", "float32"),
    "head_dim": (64, 96, 128, 192, 40, 256),
    "v_head_dim": (0, 64, 128),  # 0: head_dim
    "heads": ((2, 2), (6, 2), (8, 1)),
    "q_tokens": (1, 65, 130, 200),
    "k_tokens": (0, 1, 77, 333),  # 0: those of q
    "sequences": (1, 3),
    "causal": (False, True),
    "window_size": ((-1, -1), (0, 0), (40, -1), (100, 0), (3, 17)),
    "softcap": (0.0, 5.0),
    "sinks": (False, True),
    "place": ("dense", "heads first", "gaps"),
    "layout": ("neox", "gptj"),
    "rotary": ("whole", "part"),
}
RULES = [{"causal": (True,), "window_size": ((3, 17),)}]
ROWS = Rows(FACTORS, RULES, seed=3)


def strides_of(place, shape):
    _, tokens, heads, dim = shape
    if place == "dense":
        return None
    if place == "heads first":
        return heads * tokens * dim, dim, tokens * dim, 1
    return tokens * heads * (dim + 8) + 16, heads * (dim + 8), dim + 8, 1


def make(row, device="cpu"):
    part = {"rotary_dim": row["head_dim"] // 4 * 2, "rotary_offset": 4} if row["rotary"] == "part" else {}
    rope = pyrope.Rope(row["head_dim"], *row["heads"], dtype=row["dtype"], layout=row["layout"], device=device, **part)
    names = ("causal", "window_size", "softcap")
    return pyrope.RopeAttention(rope, v_head_dim=row["v_head_dim"] or None, **{name: row[name] for name in names})


def weight_bits(dtype, device):
    """On CUDA, weights are factors of the matrix units: of dtype."""
    return 24 if device == "cpu" else {"bfloat16": 9, "float16": 12}[dtype]


def served(row, device):
    """Whether the kernels for CUDA have it."""
    sizes = row["head_dim"], row["v_head_dim"] or row["head_dim"]
    wide = sizes == (192, 128) and not row["softcap"]
    return device == "cpu" or ((sizes in ((64, 64), (96, 96), (128, 128)) or wide) and row["dtype"] != "float32")


def assert_same(got, want):
    """Bits of what is not kept: whoever turns q, and wherever to."""
    for name in ("out", "lse"):
        np.testing.assert_array_equal(got[name].view(np.uint8), want[name].view(np.uint8), err_msg=name)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=ROWS.name)
def test_values(number, device):
    spare(number, device)
    row, rng = ROWS[number], np.random.default_rng(number)
    attention, (q_heads, k_heads) = make(row, device), row["heads"]
    q_tokens, same = row["q_tokens"], row["k_tokens"] == 0
    k_tokens = q_tokens if same else row["k_tokens"]
    q = normal(rng, row["dtype"], row["sequences"], q_tokens, q_heads, row["head_dim"])
    k = normal(rng, row["dtype"], row["sequences"], k_tokens, k_heads, row["head_dim"])
    v = normal(rng, row["dtype"], row["sequences"], k_tokens, k_heads, attention.v_head_dim)
    sinks = rng.standard_normal(q_heads).astype(np.float32) if row["sinks"] else None
    offset = 1_000_000
    turned = {"q": rotated(attention.rope, "q", q, offset + k_tokens - q_tokens), "k": k}
    if same:
        turned["k"] = rotated(attention.rope, "k", k, offset)
    options = {"offset": offset, "k_rotated": not same} | ({"sinks": sinks} if row["sinks"] else {})
    place = (lambda shape: strides_of(row["place"], shape)) if row["place"] != "dense" else None
    if not served(row, device):
        with pytest.raises(
            pyrope.UnsupportedError, match=r"head_dim, v_head_dim: 64, 96 or 128 both|dtype: float16 or bfloat16"
        ):
            attend(attention, q, k, v, place, **options)
        return
    got = attend(attention, q, k, v, place, ("q_out", "k_out") if same else ("q_out",), **options)
    np.testing.assert_array_equal(got["q_out"].view(np.uint8), turned["q"].view(np.uint8))
    if same:
        np.testing.assert_array_equal(got["k_out"].view(np.uint8), turned["k"].view(np.uint8))
    assert_same(attend(attention, q, k, v, place, **options), got)
    mask = seen(q_tokens, k_tokens, row["causal"], row["window_size"])
    for s in range(row["sequences"]):
        out, bound, lse, lse_bound = reference(turned["q"][s], turned["k"][s], v[s], mask, attention.scale,
                                               row["softcap"], sinks, weight_bits(row["dtype"], device))  # fmt: skip
        check(got["out"][s], out, bound, row["dtype"])
        some = np.isfinite(lse)
        assert (abs(got["lse"][s][some] - lse[some]) <= lse_bound[some]).all()
        assert np.isneginf(got["lse"][s][~some]).all()


def test_pairs_of_options():
    assert ROWS.uncovered() == []


@pytest.mark.parametrize("wrong", ["a key too many", "no scale", "sinks", "half of a head"])
def test_check_rejects(wrong, rng):
    q, k, v = (normal(rng, "bfloat16", 30, 2, 64) for _ in range(3))
    mask, sinks = seen(30, 30, True, (-1, -1)), None
    got = reference(q, k, v, mask, 0.125)[0].astype(storage("bfloat16"))
    check(got, *reference(q, k, v, mask, 0.125)[:2], "bfloat16")
    if wrong == "a key too many":
        mask = seen(30, 30, False, (-1, 1))
    elif wrong == "sinks":
        sinks = np.full(2, -4.0)
    elif wrong == "half of a head":
        got[7, 1, 32:] = got[6, 1, 32:]
    with pytest.raises(AssertionError, match="are off"):
        check(got, *reference(q, k, v, mask, 1.0 if wrong == "no scale" else 0.125, 0.0, sinks)[:2], "bfloat16")


LENGTHS = [(5, 5), (0, 0), (130, 130), (64, 64), (1, 1), (33, 33)]


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_ragged_is_each_sequence(heads, device, rng):
    """With NaNs beyond the last sequence, and with the bits of a call for each."""
    rope = pyrope.Rope(64, *heads, dtype="bfloat16", device=device)
    attention = pyrope.RopeAttention(rope, causal=True)
    indptr = np.cumsum([0, *(n for n, _ in LENGTHS)], dtype=np.int32)
    total = indptr[-1] + 40
    q, k, v = (normal(rng, "bfloat16", 1, total, h, 64) for h in (heads[0], heads[1], heads[1]))
    for x in (q, k, v):
        x[:, indptr[-1] :] = np.nan
    got = attend(attention, q, k, v, q_indptr=indptr, max_q_tokens=130)
    for begin, end in itertools.pairwise(indptr):
        if begin == end:
            continue
        one = attend(attention, *(x[:, begin:end] for x in (q, k, v)))
        np.testing.assert_array_equal(got["out"][:, begin:end].view(np.uint16), one["out"].view(np.uint16))
        np.testing.assert_array_equal(got["lse"][:, begin:end], one["lse"][0])
    assert (got["out"][:, indptr[-1] :].view(np.uint8) == 0xA5).all()  # written for no sequence


def test_ragged_keys_of_their_own(device, rng):
    """Chunks of prompts over keys that a cache had: lengths of q and k differ, and offsets say where queries stand."""
    rope = pyrope.FusedRope(64, 4, 2, dtype="float16", device=device)
    attention = pyrope.RopeAttention(rope, causal=True, window_size=(50, 0))
    q_indptr, k_indptr = np.array([0, 7, 7, 47], np.int32), np.array([0, 90, 100, 140], np.int32)
    q, k, v = (normal(rng, "float16", 1, n, h, 64) for n, h in ((47, 4), (140, 2), (140, 2)))
    positions = np.concatenate([np.arange(83, 90), np.arange(40)])
    got = attend(attention, q, k, v, q_indptr=q_indptr, k_indptr=k_indptr, max_q_tokens=40, max_k_tokens=90,
                 positions=positions, k_rotated=True)  # fmt: skip
    turned = rotated(rope, "q", q, positions=positions)
    for s in range(3):
        of_q, of_k = slice(*q_indptr[s : s + 2]), slice(*k_indptr[s : s + 2])
        mask = seen(of_q.stop - of_q.start, of_k.stop - of_k.start, True, (50, 0))
        out, bound, lse, lse_bound = reference(turned[0, of_q], k[0, of_k], v[0, of_k], mask, attention.scale,
                                               weight_bits=weight_bits("float16", device))  # fmt: skip
        check(got["out"][0, of_q], out, bound, "float16")
        assert (abs(got["lse"][:, of_q] - lse) <= lse_bound).all()


@pytest.mark.parametrize("options", [{"layout": "gptj"}, {"angle": "fp32"}, {"rotary_dim": 32, "rotary_offset": 8}])
@pytest.mark.parametrize("positions", ["offset", "ids", "ragged", "ragged ids"])
def test_queries_that_turn_on_the_way(options, positions, device, rng):
    """With the bits of those that a rotation turned before, where it leaves tokens alone too."""
    attention = pyrope.RopeAttention(pyrope.Rope(64, 6, 2, dtype="bfloat16", device=device, **options), causal=True)
    q, k, v = (normal(rng, "bfloat16", 3, 130, h, 64) for h in (6, 2, 2))
    arguments = {"offset": 100_000} if positions == "offset" else {}
    if "ids" in positions:
        ids = rng.integers(-1, 1 << 20, 390)
        ids[7:9] = -1
        arguments = {"positions": ids}
    if "ragged" in positions:
        q, k, v = (x.reshape(1, 390, -1, 64) for x in (q, k, v))
        arguments |= {"q_indptr": np.array([0, 200, 201, 390], np.int32), "max_q_tokens": 200}
    kept = attend(attention, q, k, v, keeps=("q_out", "k_out"), **arguments)
    assert_same(attend(attention, q, k, v, **arguments), kept)
    rotated_keys = attend(attention, q, kept["k_out"], v, k_rotated=True, **arguments)
    assert_same(rotated_keys, kept)


def test_a_query_depends_on_its_sequence_alone(device, rng):
    """In a batch, by itself, and behind other queries of its sequence."""
    rope = pyrope.Rope(64, 6, 2, dtype="float16", device=device)
    attention = pyrope.RopeAttention(rope, causal=True)
    q, k, v = (normal(rng, "float16", 3, 100, h, 64) for h in (6, 2, 2))
    got = attend(attention, q, k, v, keeps=("q_out", "k_out"))
    for s in range(3):
        one = attend(attention, *(x[s : s + 1] for x in (q, k, v)))
        np.testing.assert_array_equal(one["out"][0], got["out"][s])
    last = attend(attention, got["q_out"][:, -1:], got["k_out"], v, q_rotated=True, k_rotated=True)
    np.testing.assert_array_equal(last["out"][:, 0], got["out"][:, -1])


def test_arrays(rng):
    """NumPy arrays of any strides; out, lse and the kept q as arrays; no workspace on the CPU."""
    rope = pyrope.Rope(32, 4, 2, dtype="float32", device="cpu")
    attention = pyrope.RopeAttention(rope, causal=True)
    packed = normal(rng, "float32", 2, 50, 8 * 32)
    q, k, v = (packed[..., a * 32 : b * 32].reshape(2, 50, b - a, 32) for a, b in ((0, 4), (4, 6), (6, 8)))
    want = attend(attention, q, k, v)
    out, lse, kept = np.empty((2, 4, 50, 32), np.float32).transpose(0, 2, 1, 3), np.empty_like(want["lse"]), q.copy()
    attention.apply(kept, k, v, out, lse=lse, q_out=kept)
    np.testing.assert_array_equal(out, want["out"])
    np.testing.assert_array_equal(lse, want["lse"])
    np.testing.assert_array_equal(kept, rotated(rope, "q", q))
    alone = np.empty((50, 4, 32), np.float32)
    attention.apply(q[0], k[0], v[0], alone)
    np.testing.assert_array_equal(alone, out[0])


def test_positions_and_tables(rng):
    """Positions of each token, those that leave a token alone, and rows of cos and sin."""
    rope = pyrope.Rope(64, 2, 2, dtype="float32", device="cpu")
    q, k, v = (normal(rng, "float32", 2, 20, 2, 64) for _ in range(3))
    positions = rng.integers(-1, 1000, (2, 20))
    positions[0, 3] = -1
    attention = pyrope.RopeAttention(rope)
    got = attend(attention, q, k, v, positions=positions.reshape(-1), keeps=("q_out",))
    want = rotated(rope, "q", q, positions=positions.reshape(-1))
    np.testing.assert_array_equal(got["q_out"], want)
    np.testing.assert_array_equal(got["q_out"][0, 3], q[0, 3])
    cos, sin = rope.cos_sin(1000)
    tabled = pyrope.RopeAttention(pyrope.FusedRope(64, 2, 2, dtype="float32", device="cpu", angle="cos_sin"))
    out, positions = np.empty_like(q), abs(positions)
    tabled.apply(q, k, v, out, positions=positions, cos=cos, sin=sin)
    np.testing.assert_array_equal(out, attend(attention, q, k, v, positions=positions.reshape(-1))["out"])


def test_refused_before_anything_is_written(device, rng):
    """What the backend alone can refuse: q rotated in place stays as it was."""
    attention = pyrope.RopeAttention(pyrope.Rope(40, 2, 2, dtype="float16", device=device))
    q, k, v = (normal(rng, "float16", 1, 9, 2, 40) for _ in range(3))
    if device == "cpu":
        attention.apply(q, k, v, np.empty_like(q), q_out=q)
        assert not np.array_equal(q, normal(np.random.default_rng(20260717), "float16", 1, 9, 2, 40))
        return
    memory = memory_of(device)
    buffers = [memory.put(x) for x in (q, k, v, q)]
    pointers = [memory.pointer(x) for x in buffers]
    workspace = memory.put(np.zeros(8192, np.uint8))
    place = {"workspace": (memory.pointer(workspace) + 255) // 256 * 256, "workspace_size": 7936, "num_q_tokens": 9}
    with pytest.raises(pyrope.UnsupportedError, match="head_dim, v_head_dim: 64, 96 or 128 both"):
        attention.apply(*pointers, q_out=pointers[0], **place)
    np.testing.assert_array_equal(memory.get(buffers[0]), q)


def test_nothing_to_do(rng):
    attention = pyrope.RopeAttention(pyrope.Rope(64, 2, 2, dtype="float32", device="cpu"))
    q, none = normal(rng, "float32", 1, 5, 2, 64), np.empty((1, 0, 2, 64), np.float32)
    attention.apply(none, none, none, none.copy())
    got = attend(attention, q, none, none, k_rotated=True)
    assert (got["out"] == 0).all() and np.isneginf(got["lse"]).all()


def test_object():
    rope = pyrope.Rope(64, 4, 2, device="cpu")
    attention = pyrope.RopeAttention(rope, v_head_dim=32, causal=True, window_size=(9, -1), softcap=30)
    assert (attention.rope, attention.v_head_dim, attention.causal, attention.window_size) == (rope, 32, True, (9, -1))
    assert (attention.scale, attention.softcap) == (0.125, 30)
    for same in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert same == attention and hash(same) == hash(attention) and repr(same) == repr(attention)
    assert attention != pyrope.RopeAttention(rope, v_head_dim=32, causal=True, window_size=(9, -1))
    assert attention.workspace_size(10) == 10 * (4 + 2) * 64 * 2
    assert attention.workspace_size(10, 30, num_sequences=2, k_rotated=True) == 2 * 10 * 4 * 64 * 2
    assert attention.workspace_size(10, keeps_q=True, keeps_k=True) == 0
