"""DecodeAttention against float64: every option with every other, and what a result does not depend on."""

import copy
import pickle

import numpy as np
import pytest

import pyrope
from kit.attention import check, normal, rotated
from kit.decode import Filled, expected, run, workspace_of
from kit.memory import memory_of, real_device
from kit.pairwise import Rows
from kit.places import PLACES
from kit.reference import decode

LENGTHS = [0, 1, 77, 3, 601, 256]
FP8 = ("float8_e4m3fn", "float8_e5m2")
FACTORS = {
    "dtype": ("bfloat16", "float16", "float32"),
    "head_dim": (64, 128, 40, 256),
    "heads": ((2, 2), (6, 2), (8, 1), (12, 1)),
    "q_tokens": (1, 2, 5, 16),
    "form": ("same", *FP8, "int8"),
    "scale": ("none", "host", "tensor"),
    "page_size": (1, 5, 16, 64),
    "cache_layout": ("NHD", "HND"),
    "place": ("dense", "padded", "odd"),
    "table": ("rows", "indptr"),
    "window_left": (-1, 0, 30, 300),
    "softcap": (0.0, 5.0),
    "sinks": (False, True),
    "layout": ("neox", "gptj"),
    "rotary": ("whole", "part", "rotated"),
    "angle": ("exact", "fp32"),
    "positions": ("keys", "offset", "int32", "int64"),
    "split": (0, 256),
}
RULES = [
    {"form": ("same",), "scale": ("host", "tensor")},
    {"rotary": ("rotated",), "positions": ("offset", "int32", "int64")},
]
ROWS = Rows(FACTORS, RULES, seed=11)
# What the kernels for CUDA have: rows of the cache are on multiples of 16 bytes.
SERVED = Rows(
    FACTORS
    | {"dtype": ("bfloat16", "float16"), "head_dim": (64, 128), "form": ("same", *FP8), "place": ("dense", "padded")},
    [*RULES, {"form": FP8, "place": ("padded",)}, {"scale": ("host", "tensor"), "place": ("padded",)}],
    seed=12,
)


def rope_of(row, cache, device):
    form = None if row["form"] == "same" else row["form"]
    options = {"dtype": row["dtype"], "layout": row["layout"], "angle": row["angle"], "device": device, "cache": cache}
    options |= {"k_out_dtype": form, "v_out_dtype": form}
    if row["scale"] == "tensor":
        options |= {"k_scale_kind": "tensor", "v_scale_kind": "tensor"}
    if row["rotary"] == "part":
        options |= {"rotary_dim": row["head_dim"] // 4 * 2, "rotary_offset": 4}
    if row["positions"][:3] == "int":
        options["position_dtype"] = row["positions"]
    return pyrope.FusedRope(row["head_dim"], *row["heads"], **options)


def weight_bits(row, device):
    """On CUDA, weights are factors of the matrix units: of dtype, or of what codes become."""
    half = row["form"] != "same" or row["dtype"] == "float16"
    return 24 if device == "cpu" else 11 if half else 8


@pytest.mark.parametrize("number", range(len(ROWS)), ids=ROWS.name)
def test_values(number):
    check_values(ROWS[number], np.random.default_rng(number), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(len(SERVED)), ids=SERVED.name)
def test_values_of_kernels(number):
    check_values(SERVED[number], np.random.default_rng(number), "cuda")


def check_values(row, rng, device):
    (heads, k_heads), dim, tokens = row["heads"], row["head_dim"], row["q_tokens"]
    scale = 1.0 if row["scale"] == "none" else 0.0371
    form = row["dtype"] if row["form"] == "same" else row["form"]
    filled = Filled(rng, LENGTHS, row["page_size"], k_heads, dim, form, row["cache_layout"], row["place"], scale)
    rope = rope_of(row, filled.cache(row["cache_layout"]), device)
    q = normal(rng, row["dtype"], len(LENGTHS) * tokens, heads, dim)
    place = filled.lengths[:, None] - tokens + np.arange(tokens)
    blocks, options = dict(filled.blocks), {"max_length": 640}
    if row["table"] == "rows":
        width = -(-640 // row["page_size"])
        blocks["page_table"] = np.full((len(LENGTHS), width), -1, np.int32)
        blocks["page_table"][:, : filled.table.shape[1]] = filled.table[:, :width]
    else:
        blocks |= {"page_table": filled.pages, "page_indptr": filled.indptr}
    if row["positions"] == "offset":
        place = place + 1_000_003
        options["offset"] = 1_000_003
    elif row["positions"][:3] == "int":
        place = rng.integers(-1, 1000, place.shape)
        blocks["positions"] = place.astype(row["positions"])
    if row["scale"] == "host":
        options |= {"k_scale": scale, "v_scale": scale}
    elif row["scale"] == "tensor":
        blocks |= {name: np.array([scale], np.float32) for name in ("k_scale", "v_scale")}
    sinks = rng.standard_normal(heads).astype(np.float32) if row["sinks"] else None
    if row["sinks"]:
        blocks["sinks"] = sinks
    strides = None if row["place"] == "dense" else lambda shape: PLACES[row["place"]](*shape)[0]
    options["q_rotated"] = row["rotary"] == "rotated"
    attention = pyrope.DecodeAttention(rope, **{name: row[name] for name in ("window_left", "softcap", "split")})
    out, lse = run(attention, q, blocks, filled.lengths, strides, **options)
    turned = q
    if row["rotary"] != "rotated":
        turned = rotated(plain(rope), "q", q[None], positions=place.reshape(-1).astype(np.int64))[0]
    for r in range(len(LENGTHS)):
        rows = slice(r * tokens, (r + 1) * tokens)
        want = expected(decode(turned[rows]), filled.values["k"][r], filled.values["v"][r], row["window_left"],
                        attention.scale, row["softcap"], sinks, weight_bits(row, device))  # fmt: skip
        check(out[rows], *want[:2], row["dtype"])
        some = np.isfinite(want[2])
        assert (abs(lse[r][some] - want[2][some]) <= want[3][some]).all()
        assert np.isneginf(lse[r][~some]).all()


def plain(rope):
    """Its rotation alone."""
    names = ("rotary_dim", "rotary_offset", "layout", "dtype", "angle")
    return pyrope.FusedRope(rope.head_dim, rope.num_q_heads, rope.num_k_heads, device="cpu",
                            **{name: getattr(rope, name) for name in names})  # fmt: skip


def test_pairs_of_options():
    assert ROWS.uncovered() == SERVED.uncovered() == []


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("head_dim: 64 or 128 on CUDA", {"head_dim": 256}),
        ("dtype: float16 or bfloat16 on CUDA", {"dtype": "float32"}),
        ("k_quantize.out_dtype: ROPE_OUT_SAME or fp8 on CUDA", {"form": "int8"}),
        (r"cache\.k: an address and strides that are multiples of 16 bytes", {"place": "odd"}),
    ],
)
def test_not_served_on_cuda(text, options, rng):
    row = SERVED[0] | {"dtype": "float16", "form": "same", "scale": "none", "rotary": "rotated"} | options
    filled = Filled(rng, [5], 16, row["heads"][1], row["head_dim"], "float16", place=row["place"])
    rope = rope_of(row, filled.cache(), "cuda")
    q = normal(rng, row["dtype"], 1, row["heads"][0], row["head_dim"])
    with pytest.raises(pyrope.UnsupportedError, match=f"^{text}"):
        run(
            pyrope.DecodeAttention(rope),
            q,
            filled.blocks | {"page_table": filled.table},
            filled.lengths,
            q_rotated=True,
        )


def test_bits_of_a_rotation(device, rng):
    """Queries that turn on their way give the bits of those that rope.apply turned."""
    filled = Filled(rng, [300, 5], 16, 2, 128, "float16")
    rope = pyrope.FusedRope(128, 6, 2, dtype="float16", device=device, cache=filled.cache())
    q, blocks = normal(rng, "float16", 4, 6, 128), filled.blocks | {"page_table": filled.table}
    positions = np.array([298, 299, 3, 4])
    fused = run(pyrope.DecodeAttention(rope), q, blocks, filled.lengths)
    turned = rotated(plain(rope), "q", q[None], positions=positions)[0]
    apart = run(pyrope.DecodeAttention(rope), turned, blocks, filled.lengths, q_rotated=True)
    for x, y in zip(fused, apart, strict=True):
        np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))
    assert not np.array_equal(fused[0], run(pyrope.DecodeAttention(rope), q, blocks, filled.lengths, q_rotated=True)[0])


@pytest.mark.parametrize("form", [None, "float8_e4m3fn"])
def test_decodes_what_apply_appended(form, rng):
    """One FusedRope appends keys token by token and serves the attention, which is RopeAttention's over all of them."""
    cache = pyrope.PagedCache(4, 12)
    rope = pyrope.FusedRope(32, 4, 2, dtype="float32", device="cpu", cache=cache, k_out_dtype=form, v_out_dtype=form)
    k_cache, v_cache = np.zeros((2, 12, 4, 2, 32), np.float32 if form is None else np.uint8)
    q, k, v = (normal(rng, "float32", 2, 9, heads, 32) for heads in (4, 2, 2))
    table, ids = np.array([[3, 1, 7], [0, 11, 4]], np.int32), np.arange(2, dtype=np.int32)
    attention, scales = pyrope.DecodeAttention(rope), {} if form is None else {"k_scale": 0.02, "v_scale": 0.03}
    whole = pyrope.RopeAttention(pyrope.Rope(32, 4, 2, dtype="float32", device="cpu"), causal=True)
    want = np.empty((2, 9, 4, 32), np.float32)
    whole.apply(q, k, v, want)
    for i in range(9):
        at = np.full(2, i)
        rope.apply(None, k[:, i], v=v[:, i], k_cache=k_cache, v_cache=v_cache, positions=at, page_table=table,
                   request_ids=ids, cache_positions=at, **scales)  # fmt: skip
        out = np.empty((2, 4, 32), np.float32)
        attention.apply(q[:, i].copy(), out, k_cache, v_cache, table, np.full(2, i + 1, np.int32), **scales)
        # Keys and values are codes then, each within 2^-4 of its number, which is below 4.
        np.testing.assert_allclose(out, want[:, i], atol=2e-6 if form is None else 0.15)


@pytest.mark.parametrize(("form", "heads"), [("bfloat16", (4, 1)), ("float8_e5m2", (2, 2))])
def test_a_request_depends_on_itself_alone(form, heads, device, rng):
    """In a batch, by itself, and with another max_length: the same bits, as splits are the same."""
    lengths = [700, 31, 256, 257]
    filled = Filled(rng, lengths, 16, heads[1], 64, form)
    options = {} if form == "bfloat16" else {"k_out_dtype": form, "v_out_dtype": form}
    rope = pyrope.FusedRope(64, *heads, device=device, cache=filled.cache(), **options)
    attention, q = pyrope.DecodeAttention(rope, split=256), normal(rng, "bfloat16", 4, heads[0], 64)
    together = run(attention, q, filled.blocks | {"page_table": filled.table}, filled.lengths)
    for r, n in enumerate(lengths):
        blocks = filled.blocks | {"page_table": filled.table[r : r + 1]}
        alone = run(attention, q[r : r + 1], blocks, filled.lengths[r : r + 1], max_length=n)
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_array_equal(x[r : r + 1].view(np.uint8), y.view(np.uint8))


def test_one_workspace_serves_all(device, rng):
    """Calls of any shapes, one behind the other, leave what the next one needs."""
    calls = []
    for lengths, tokens in (([600, 20, 300], 1), ([900], 9), ([5, 800], 2), ([600, 20, 300], 1)):
        filled = Filled(np.random.default_rng(len(calls) % 3), lengths, 16, 2, 64, "float16")
        rope = pyrope.FusedRope(64, 4, 2, dtype="float16", device=device, cache=filled.cache())
        q = normal(np.random.default_rng(5), "float16", len(lengths) * tokens, 4, 64)
        calls.append(
            (pyrope.DecodeAttention(rope, split=256), q, filled.blocks | {"page_table": filled.table}, filled.lengths)
        )
    shared = workspace_of(calls[0][0], 3, 1024, 16)
    results = [run(*call, workspace=shared) for call in calls]
    for call, result in zip(calls, results, strict=True):
        for x, y in zip(run(*call), result, strict=True):
            np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


@pytest.mark.gpu
@real_device
def test_a_graph_serves_all_lengths(rng):
    """Lengths and pages are read when the graph runs."""
    filled = Filled(rng, [900, 90], 16, 2, 128, "bfloat16")
    rope = pyrope.FusedRope(128, 8, 2, device="cuda", cache=filled.cache())
    attention, q = pyrope.DecodeAttention(rope), normal(rng, "bfloat16", 2, 8, 128)
    arrays = {name: block.flat for name, block in filled.blocks.items()}
    arrays |= {"q": q, "out": np.zeros_like(q), "table": filled.table, "lengths": filled.lengths}
    arrays["workspace"] = np.zeros(attention.workspace_size(2, 912), np.uint8)
    memory = memory_of("cuda")
    buffers = {name: memory.put(x) for name, x in arrays.items()}
    at = {name: buffer.address for name, buffer in buffers.items()}
    stream = memory.call("cudaStreamCreate")
    memory.call("cudaStreamBeginCapture", stream, memory.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
    attention.apply(at["q"], at["out"], at["k_cache"], at["v_cache"], at["table"], at["lengths"], num_requests=2,
                    page_table_stride=filled.table.shape[1], max_length=912, workspace=at["workspace"],
                    workspace_size=arrays["workspace"].size, stream=int(stream))  # fmt: skip
    graph = memory.call("cudaGraphInstantiate", memory.call("cudaStreamEndCapture", stream), 0)
    for lengths in ([900, 90], [33, 0], [900, 1]):
        lengths = np.array(lengths, np.int32)
        kind = memory.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        memory.call("cudaMemcpy", at["lengths"], lengths.ctypes.data, lengths.nbytes, kind)
        memory.call("cudaGraphLaunch", graph, stream)
        memory.call("cudaStreamSynchronize", stream)
        want = run(attention, q, filled.blocks | {"page_table": filled.table}, lengths, max_length=912)[0]
        np.testing.assert_array_equal(memory.get(buffers["out"]).view(np.uint16), want.view(np.uint16))
    memory.call("cudaStreamDestroy", stream)


def test_outside(device, rng):
    """A page that the cache does not have, and a length beyond max_length: refused on the CPU, NaN on CUDA."""
    filled = Filled(rng, [40, 40], 16, 2, 64, "float16")
    rope = pyrope.FusedRope(64, 4, 2, dtype="float16", device=device, cache=filled.cache())
    attention, q = pyrope.DecodeAttention(rope), normal(rng, "float16", 2, 4, 64)
    good = run(attention, q, filled.blocks | {"page_table": filled.table}, filled.lengths)[0]
    table = filled.table.copy()
    table[1, 1] = filled.num_pages
    wrong = [({"page_table": table}, filled.lengths, {}, "page_table: key 16 of request 1 has no page of the")]
    long = np.array([40, 70], np.int32)
    wrong.append(({"page_table": filled.table}, long, {"max_length": 64}, r"lengths\[1\]: 70, must be 0 to max_length"))
    for blocks, lengths, options, text in wrong:
        if device == "cpu":
            with pytest.raises(ValueError, match=text):
                run(attention, q, filled.blocks | blocks, lengths, **options)
            continue
        out = run(attention, q, filled.blocks | blocks, lengths, **options)[0]
        np.testing.assert_array_equal(out[0], good[0])
        assert np.isnan(out[1].astype(np.float32)).all()


def test_pages_before_a_window_are_not_read(device, rng):
    filled = Filled(rng, [100], 16, 1, 64, "float16")
    rope = pyrope.FusedRope(64, 2, 1, dtype="float16", device=device, cache=filled.cache())
    attention, q = pyrope.DecodeAttention(rope, window_left=20), normal(rng, "float16", 1, 2, 64)
    want = run(attention, q, filled.blocks | {"page_table": filled.table}, filled.lengths)
    table = filled.table.copy()
    table[0, :4] = -1  # keys below 64; 79 is the first one seen
    got = run(attention, q, filled.blocks | {"page_table": table}, filled.lengths)
    np.testing.assert_array_equal(got[0], want[0])


def test_arrays(rng):
    """NumPy arrays, of other strides too; no workspace on the CPU."""
    filled = Filled(rng, [30, 9], 8, 2, 32, "float32")
    rope = pyrope.FusedRope(32, 4, 2, dtype="float32", device="cpu", cache=filled.cache())
    q, attention = normal(rng, "float32", 4, 4, 32), pyrope.DecodeAttention(rope)
    want, want_lse = run(attention, q, filled.blocks | {"page_table": filled.table}, filled.lengths)
    out, lse = np.empty((4, 4, 40), np.float32)[..., :32], np.empty((2, 4, 2), np.float32)
    caches = [np.ascontiguousarray(filled.blocks[name].view()) for name in ("k_cache", "v_cache")]
    attention.apply(q, out, *caches, filled.table, filled.lengths, lse=lse)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)
    attention.apply(q, out, *caches, filled.pages, filled.lengths, page_indptr=filled.indptr, max_length=30)
    np.testing.assert_array_equal(out, want)


def test_nothing_to_do(device):
    filled = Filled(np.random.default_rng(0), [4], 16, 1, 64, "float16")
    rope = pyrope.FusedRope(64, 1, 1, dtype="float16", device=device, cache=filled.cache())
    q, none = np.empty((0, 1, 64), np.float16), np.empty(0, np.int32)
    run(pyrope.DecodeAttention(rope), q, filled.blocks | {"page_table": filled.table}, none)


def test_workspace(device):
    """None on the CPU; on CUDA one that is too small, or missing, is refused and nothing is written."""
    filled = Filled(np.random.default_rng(0), [600], 16, 1, 64, "float16")
    rope = pyrope.FusedRope(64, 1, 1, dtype="float16", device=device, cache=filled.cache())
    attention, q, memory = pyrope.DecodeAttention(rope, split=256), np.ones((1, 1, 64), np.float16), memory_of(device)
    size = attention.workspace_size(1, 608)
    assert (size == 0) == (device == "cpu")
    if device == "cpu":
        return
    blocks = filled.blocks | {"page_table": filled.table}
    small = memory.put(np.zeros(size + 256, np.uint8)), size - 1
    with pytest.raises(ValueError, match=f"workspace_bytes: {size - 1}, must be at least {size}"):
        run(attention, q, blocks, filled.lengths, workspace=small, max_length=608)
    with pytest.raises(TypeError, match="workspace: required on CUDA"):
        run(attention, q, blocks, filled.lengths, workspace=(None, 0), max_length=608)


def test_object():
    rope = pyrope.FusedRope(64, 4, 2, device="cpu", cache=pyrope.PagedCache(16, 8))
    attention = pyrope.DecodeAttention(rope, window_left=9, softcap=30, split=512)
    assert (attention.rope, attention.window_left, attention.scale, attention.softcap, attention.split) == (
        rope, 9, 0.125, 30, 512)  # fmt: skip
    for same in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert same == attention and hash(same) == hash(attention) and repr(same) == repr(attention)
    assert attention != pyrope.DecodeAttention(rope)
