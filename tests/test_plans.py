"""Both backends give the same bits, and the right ones, at sizes between which the kernels spread their work otherwise.

Which plan a call takes cannot be seen from Python: that these sizes meet each of them is for the C++ test of the plans.
"""

import numpy as np
import pytest

import pyrope
from kit import reference as ref
from kit.blocks import Block, cache_block, index, normal_block, rows_block, same_on_both

DIM, PAGE_SIZE = 128, 16
FP8 = "float8_e4m3fn"
CHECKED = 24  # tokens of a call that are compared with float64, evenly spread
NORM = {"norm": pyrope.RMSNorm(eps=1e-6)}
QUANTISED = {f"{x}_out_dtype": FP8 for x in "qkv"}
DYNAMIC = QUANTISED | {f"{x}_scale_kind": "dynamic" for x in "qkv"}
EARLY = {"enable_pdl": True, "positions_ready": True}  # positions and slots are read before the wait: other code
# The bounds of the plan count 12 KB a token of 32/8 heads, and 2.5 KB of 8/1.
PLANS = {
    "plain": ({}, (4, 200, 500, 1000, 1700, 5300)),
    "quantised": (QUANTISED, (4, 200, 700, 3200)),
    "norm": (NORM, (3, 300, 800)),
    "norm, quantised": (NORM | QUANTISED, (3, 300, 800)),
    "dynamic": (DYNAMIC, (3, 300, 800)),
    "plain, early": (EARLY, (4, 200, 1000)),
    "quantised, early": (EARLY | QUANTISED, (4, 200, 700)),
    "norm, early": (EARLY | NORM, (3, 300, 800)),
    "norm, quantised, early": (EARLY | NORM | QUANTISED, (3, 300, 800)),
    "dynamic, early": (EARLY | DYNAMIC, (3, 300, 800)),
}


def some(tokens):
    return np.unique(np.linspace(0, tokens - 1, CHECKED).astype(int))


def turned(block, tokens, positions, layout, rotary_dim=DIM, weight=None):
    """Some tokens of an operand in float64, with a norm before where there is a weight; positions [tokens, pairs]."""
    value = ref.exact(block.view()[tokens])
    if weight is not None:
        value = ref.rms_norm(value, weight.view(), NORM["norm"].eps, 0.0)
    cos, sin = ref.cos_sin_of_phases(ref.phases(positions, "exact", rotary_dim, 10000.0))
    return ref.rotate(value, cos, sin, layout, rotary_dim, 0)


def each_pair(positions, rotary_dim=DIM):
    return np.repeat(positions[:, None], rotary_dim // 2, axis=1)


def check_written(block, flat, rows, tokens, value, form="bfloat16"):
    """Every head of these rows of a block was written, and some tokens of them hold their values."""
    before, after = (block.bytes(f)[rows] for f in (block.flat, flat))
    assert (before != after).any(-1).all()
    assert ref.within(block.view(flat)[rows][tokens], value, form).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "layout"), [((32, 8), "neox"), ((8, 1), "gptj")], ids=str)
@pytest.mark.parametrize(
    ("options", "tokens"),
    [pytest.param(options, n, id=f"{name} {n}") for name, (options, sizes) in PLANS.items() for n in sizes],
)
def test_append(options, tokens, heads, layout, rng):
    q_heads, k_heads = heads
    pages = -(-tokens // PAGE_SIZE) + 1
    form, dynamic = FP8 if "q_out_dtype" in options else "bfloat16", "q_scale_kind" in options
    heads_of = {"q": q_heads, "k": k_heads, "v": k_heads}
    blocks = {x: normal_block(rng, "bfloat16", (tokens, n, DIM)) for x, n in heads_of.items()}
    blocks |= {
        "q_out": rows_block(form, (tokens, q_heads, DIM)),
        "k_cache": cache_block(form, pages, PAGE_SIZE, k_heads, DIM),
        "v_cache": cache_block(form, pages, PAGE_SIZE, k_heads, DIM),
        "slots": index(rng.permutation(pages * PAGE_SIZE)[:tokens]),
        "positions": index(rng.integers(0, 1 << 31, tokens)),
    }
    if "norm" in options:
        blocks |= {f"{x}_weight": index(rng.standard_normal(DIM), "bfloat16") for x in "qk"}
    if dynamic:
        blocks["q_scale"] = Block(np.float32, (tokens, q_heads), (q_heads, 1))
        for x in "kv":
            blocks[f"{x}_scale"] = Block(np.float32, (pages * PAGE_SIZE, k_heads), (k_heads, 1))

    def rope_on(device):
        cache = pyrope.PagedCache(PAGE_SIZE, pages)
        return pyrope.FusedRope(DIM, *heads, dtype="bfloat16", layout=layout, device=device, cache=cache, **options)

    flats = same_on_both(rope_on, blocks, tokens)
    checked, slots = some(tokens), blocks["slots"].view()
    positions = each_pair(blocks["positions"].view()[checked])
    for x, where, rows in (
        ("q", "q_out", (slice(None),)),
        ("k", "k_cache", np.divmod(slots, PAGE_SIZE)),
        ("v", "v_cache", np.divmod(slots, PAGE_SIZE)),
    ):
        value = ref.exact(blocks[x].view()[checked])
        if x != "v":
            value = turned(blocks[x], checked, positions, layout, weight=blocks.get(f"{x}_weight"))
        if dynamic:
            scale = blocks[f"{x}_scale"].view(flats[f"{x}_scale"])[checked if x == "q" else slots[checked]]
            least, greatest = ref.dynamic_scale(value, form)
            assert ((least <= scale) & (scale <= greatest)).all()
            value = ref.scaled(value, scale.astype(np.float64)[..., None])
        check_written(blocks[where], flats[where], rows, checked, value, form)


@pytest.mark.gpu
@pytest.mark.parametrize("sections", [(16, 24, 24), (17, 24, 23)], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [40, 1000])
def test_sections(tokens, dtype, layout, interleaved, sections, rng):
    """Sections that end where a thread's chunk does, and such that do not."""
    blocks = {x: normal_block(rng, dtype, (tokens, n, DIM)) for x, n in (("q", 32), ("k", 8))}
    blocks["positions"] = index(rng.integers(0, 1 << 31, (3, tokens)))

    def rope_on(device):
        return pyrope.FusedRope(
            DIM, 32, 8, dtype=dtype, layout=layout, device=device, sections=sections, sections_interleaved=interleaved
        )

    flats = same_on_both(rope_on, blocks, tokens)
    checked = some(tokens)
    positions = blocks["positions"].view()[:, checked][ref.streams(DIM // 2, sections, interleaved)].T
    for x in "qk":
        check_written(
            blocks[x], flats[x], (slice(None),), checked, turned(blocks[x], checked, positions, layout), dtype
        )


@pytest.mark.gpu
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("heads", "rotary_dim", "sizes"),
    [((32, 8), DIM, (40, 200, 600, 1200, 2000)), ((32, 8), 32, (200, 600, 1800, 3200)), ((8, 1), DIM, (40, 500))],
    ids=str,
)
def test_rotation(heads, rotary_dim, sizes, in_place, early, rng):
    """The bounds of the plan count 10 KB a token of 32/8 heads, in place the part of it that is rotated."""
    for tokens in sizes:
        blocks = {"positions": index(rng.integers(1, 1 << 31, tokens))}
        for x, n in zip("qk", heads, strict=True):
            blocks[x] = normal_block(rng, "bfloat16", (tokens, n, DIM))
            if not in_place:
                blocks[f"{x}_out"] = rows_block("bfloat16", (tokens, n, DIM))

        def rope_on(device):
            options = EARLY if early else {}
            return pyrope.Rope(DIM, *heads, rotary_dim=rotary_dim, dtype="bfloat16", device=device, **options)

        flats = same_on_both(rope_on, blocks, tokens)
        checked = some(tokens)
        positions = each_pair(blocks["positions"].view()[checked], rotary_dim)
        for x in "qk":
            where = x if in_place else f"{x}_out"
            value = turned(blocks[x], checked, positions, "neox", rotary_dim)
            check_written(blocks[where], flats[where], (slice(None),), checked, value)
