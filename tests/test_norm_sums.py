"""A norm across heads that several ranks share: its sums of squares written, and read."""

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, call, index, normal_block, rows_block, same_on_both
from kit.refusals import T, V, refused, rows, small
from kit.ropes import make

D, TOKENS, EPS = 80, 9, 1e-5
HEADS = {"q": 6, "k": 4}


def norm_of(ranks, **options):
    return pyrope.RMSNorm(EPS, across_heads=True, ranks=ranks, **options)


def rank_of(device, ranks, **options):
    heads = {f"num_{x}_heads": n // ranks for x, n in HEADS.items()}
    return make(device, "bfloat16", fused=True, head_dim=D, **heads, norm=norm_of(ranks, **options))


def parts(blocks, rank, ranks):
    """A rank's heads of q and k, and their weights."""
    own = {}
    for x, n in HEADS.items():
        mine = slice(rank * n // ranks, (rank + 1) * n // ranks)
        values = blocks[x].view()[:, mine]
        own[x] = rows_block("bfloat16", values.shape, values=values)
        own[f"{x}_weight"] = index(blocks[f"{x}_weight"].view().reshape(n, D)[mine].ravel(), "bfloat16")
        own[f"{x}_out"] = rows_block("bfloat16", values.shape)
        own[f"{x}_sums"] = Block(np.float32, (TOKENS,))
    return own


def all_heads(rng):
    blocks = {x: normal_block(rng, "bfloat16", (TOKENS, n, D)) for x, n in HEADS.items()}
    return blocks | {f"{x}_weight": index(rng.standard_normal(n * D), "bfloat16") for x, n in HEADS.items()}


@pytest.mark.parametrize("place", ["dense", "odd"])
def test_two_ranks(device, place, rng):
    """The sums of each, in float64 to their rounding; added up and read, the norm of all heads."""
    blocks, ids = all_heads(rng), index([5, 1 << 20, -1, 0, 7, 8, 9, 10, 11])
    ranks = [parts(blocks, rank, 2) for rank in range(2)]
    live = ids.view() != -1
    sums = {}
    for own in ranks:
        flats = call(rank_of(device, 2), own | {"positions": ids, "write_sums": True, "skipped": "copy"}, TOKENS)
        for name, flat in flats.items():
            if name in own and "sums" not in name:
                np.testing.assert_array_equal(flat, own[name].flat)
        for x in HEADS:
            got = own[f"{x}_sums"].view(flats[f"{x}_sums"])
            want = (own[x].view().astype(np.float64) ** 2).sum((1, 2))
            np.testing.assert_allclose(got[live], want[live], rtol=1e-6)
            np.testing.assert_array_equal(got[~live], own[f"{x}_sums"].view()[~live])
            sums.setdefault(x, []).append(got)
    whole = blocks | {f"{x}_out": rows_block("bfloat16", blocks[x].shape, place) for x in HEADS}
    flats = call(rank_of(device, 1), whole | {"positions": ids}, TOKENS)
    for rank, own in enumerate(ranks):
        for x in HEADS:
            own[f"{x}_sums"] = index(sums[x][0] + sums[x][1], np.float32)
        read = call(rank_of(device, 2), own | {"positions": ids}, TOKENS)
        for x, n in HEADS.items():
            got = own[f"{x}_out"].view(read[f"{x}_out"])[live].astype(np.float64)
            want = whole[f"{x}_out"].view(flats[f"{x}_out"])[live].astype(np.float64)
            want = want[:, rank * n // 2 : (rank + 1) * n // 2]
            assert (np.abs(got - want) <= 2**-8 * np.abs(want)).all()  # the sum's rounding may move one of bfloat16
            np.testing.assert_array_equal(read[f"{x}_sums"], own[f"{x}_sums"].flat)


@pytest.mark.parametrize("after", [False, True])
def test_sums_of_two_equal_ranks(device, after, rng):
    """Twice the sums of one: the bits of its norm without sums, behind a rotation too."""
    blocks = all_heads(rng) | {"offset": 3}
    blocks |= {f"{x}_out": rows_block("bfloat16", blocks[x].shape) for x in HEADS}
    heads = {"head_dim": D, "num_q_heads": 6, "num_k_heads": 4, "attention_factor": 1.5}
    alone, shared = (
        make(device, "bfloat16", fused=True, **heads, norm=norm_of(ranks, after=after)) for ranks in (1, 2)
    )
    want = call(alone, blocks, TOKENS)
    sums = {f"{x}_sums": Block(np.float32, (TOKENS,)) for x in HEADS}
    flats = call(shared, blocks | sums | {"write_sums": True}, TOKENS)
    both = {name: index(2 * block.view(flats[name]), np.float32) for name, block in sums.items()}
    got = call(shared, blocks | both, TOKENS)
    for x in HEADS:
        np.testing.assert_array_equal(got[f"{x}_out"], want[f"{x}_out"])


@pytest.mark.gpu
@pytest.mark.parametrize("write", [False, True])
def test_cuda_equals_cpu(write, rng):
    """Many heads and odd places; with a cache and codes, which a call that writes sums leaves alone."""
    for heads, d, place in ((1, 128, "dense"), (33, 64, "padded"), (5, 6, "odd"), (129, 128, "dense")):
        blocks = {
            "q": normal_block(rng, "bfloat16", (4, heads, d), place),
            "k": normal_block(rng, "bfloat16", (4, 2, d)),
        }
        blocks |= {"q_weight": index(rng.standard_normal(heads * d), "bfloat16"), "slots": index([3, -1, 7, 0])}
        blocks |= {"q_out": rows_block("int8", (4, heads, d)), "q_scale": Block(np.float32, (4, heads))}
        blocks |= {"k_cache": Block("bfloat16", (2, 4, 2, d)), "cache_skipped": index([40])}
        blocks["q_sums"] = index(rng.uniform(1, 1000, 4), np.float32)
        written = {"q_sums"} if write else {"q_out", "q_scale", "k_cache", "cache_skipped"}

        def rope(device, heads=heads, d=d):
            return make(device, "bfloat16", fused=True, head_dim=d, num_q_heads=heads, norm=norm_of(8),
                        q_out_dtype="int8", q_scale_kind="dynamic", cache=pyrope.PagedCache(4, 1))  # fmt: skip

        flats = same_on_both(rope, blocks | ({"write_sums": True} if write else {}), 4)
        changed = {name for name, flat in flats.items() if not np.array_equal(flat, blocks[name].flat)}
        assert changed == written


def test_tokens_without_a_place(device, rng):
    """Not appended, its sum is written; left alone as a whole, by its slot, it is not. Nothing is counted."""
    blocks = {x: normal_block(rng, "float32", (4, 2, 64)) for x in "qk"}
    blocks |= {f"{x}_weight": index(np.ones(128), np.float32) for x in "qk"}
    blocks |= {f"{x}_sums": Block(np.float32, (4,)) for x in "qk"}
    blocks |= {"slots": index([3, -1, 9, 0]), "k_cache": Block(np.float32, (1, 4, 2, 64)), "cache_skipped": index([40])}
    for skip_q in (False, True):
        rope = make(device, fused=True, num_q_heads=2, norm=norm_of(2), cache=pyrope.PagedCache(4, 1, skip_q=skip_q))
        flats = call(rope, blocks | {"write_sums": True, "offset": 3}, 4)
        for x in "qk":
            got, want = blocks[f"{x}_sums"].view(flats.pop(f"{x}_sums")), (blocks[x].view() ** 2).sum((1, 2))
            left = np.array([False, skip_q, False, False])
            np.testing.assert_allclose(got[~left], want[~left], rtol=1e-5)
            np.testing.assert_array_equal(got[left], blocks[f"{x}_sums"].view()[left])
        for name, flat in flats.items():
            np.testing.assert_array_equal(flat, blocks[name].flat)


def test_sums_are_read_as_they_are(device, rng):
    """In float64, from sums of any size."""
    q, sums = normal_block(rng, "float32", (5, 3, 64)), rng.uniform(1e-3, 1e4, 5).astype(np.float32)
    weight = rng.standard_normal(3 * 64).astype(np.float32)
    out = rows_block("float32", q.shape)
    blocks = {"q": q, "q_out": out, "q_weight": index(weight, np.float32), "q_sums": index(sums, np.float32)}
    flats = call(make(device, fused=True, norm=norm_of(16)), blocks, 5)
    flat = tuple(x.reshape(5, -1) for x in ref.exact(q.view()))
    value = ref.rms_norm(flat, weight, EPS, 0.0, (sums.astype(np.float64)[:, None], 16 * 3 * 64))
    turns = ref.phases(np.repeat(np.arange(5)[:, None], 32, axis=1), "exact", 64, 10000.0)
    value = ref.rotate(tuple(x.reshape(q.shape) for x in value), *ref.cos_sin_of_phases(turns), "neox", 64, 0)
    assert ref.within(out.view(flats["q_out"]), value, "float32").all()


ACROSS = {"norm": pyrope.RMSNorm(across_heads=True)}
SHARED = {"norm": norm_of(2)}
REFUSED = rows(
    ("ranks of 0", {"norm": norm_of(0)}, {}, V, "ranks: 0, must be 1 to 16384"),
    ("ranks of a head", {"norm": pyrope.RMSNorm(ranks=2)}, {}, V, "ranks: 2, must be 1 without across_heads"),
    ("no sums", SHARED, {"q_sums": None}, T, "q_sums: required with q_weight and ranks=2"),
    ("sums without ranks", ACROSS, {}, V, "q_sums: only allowed with norm="),
    ("write without ranks", ACROSS, {"q_sums": None, "write_sums": True}, V, "write_sums: True, only allowed with nor"),
    ("write an int", SHARED, {"write_sums": 1}, T, "write_sums: 1 is not a bool"),
    ("sums of k", SHARED, {"k_sums": np.ones(3, np.float32)}, V, "k_sums: only allowed with k_weight"),
    ("shape", SHARED, {"q_sums": np.ones(2, np.float32)}, V, r"q_sums: shape \(2,\), must be contiguous"),
    ("dtype", SHARED, {"q_sums": np.ones(3)}, T, "q_sums: dtype float64, must be float32"),
)  # fmt: skip


@pytest.mark.parametrize(("options", "arguments", "error", "text"), REFUSED)
def test_refusals(options, arguments, error, text):
    q, sums = np.ones((3, 2, 64), np.float32), np.ones(3, np.float32)
    with refused(error, text):
        small(fused=True, dtype="float32", **options).apply(
            q, None, **{"q_weight": np.ones(128, np.float32), "q_sums": sums} | arguments
        )
    assert (q == 1).all() and (sums == 1).all()


def test_sums_in_a_tensor(device):
    """Where they would be overwritten, or overwrite what is read."""
    block = rows_block("float32", (3, 3, 64), values=np.ones((3, 3, 64)))
    sums = Block(np.float32, (3,), offset=8, flat=block.flat)
    for write in (False, True):
        blocks = {"q": block, "q_sums": sums, "q_weight": index(np.ones(192), np.float32), "write_sums": write}
        call(make(device, fused=True, norm=norm_of(2)), blocks, 3, refused="^norm_sums.q: overlaps q in memory")
