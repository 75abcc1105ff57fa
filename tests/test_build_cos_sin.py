"""Tables of cos and sin that the library makes: their values, where they lie, and what is rotated by them."""

import numpy as np
import pytest

import pyrope
from kit import reference
from kit.angles import EDGES, cos_sin_by, largest_error, one_head
from kit.blocks import Block, call, equal, normal_block
from kit.memory import EMULATED, Buffers, Room, memory_of, skip_if_host_memory_is_read
from kit.objects import on
from kit.reference import DTYPES, U, within
from kit.refusals import T, V, read_only, refused, rows
from kit.scalings import SCALINGS

YARN = {"scaling": pyrope.YaRN(16.0, 4096)}
HUGE = [-(2**63), -(2**45), -1000, -2, -1, 0, 2**31 - 1, 2**31, 2**32 + 5, 2**53 + 1, 2**63 - 1]


def build(rope, num_rows, dtype="float32", *, merged=False, padding=0, lead=0, **arguments):
    """(cos, sin) as [num_rows, rotary_dim / 2]; the memory around the rows keeps its canaries."""
    memory, pairs = memory_of(rope.device), rope.rotary_dim // 2
    width = 2 * pairs if merged else pairs
    blocks = [Block(dtype, (num_rows, width), (width + padding, 1), lead) for _ in range(1 if merged else 2)]
    buffers = [memory.put(block.flat) for block in blocks]
    places = [
        memory.pointer(buffer) + lead * block.dtype.itemsize for buffer, block in zip(buffers, blocks, strict=True)
    ]
    if "positions" in arguments:
        ids = memory.put(arguments["positions"])
        arguments["positions"] = memory.pointer(ids)
    stride = width + padding if padding else None
    rope.build_cos_sin(*places, num_rows=num_rows, dtype=dtype, row_stride=stride, **arguments)
    tables = []
    for buffer, block in zip(buffers, blocks, strict=True):
        flat = memory.get(buffer)
        tables.append(block.view(flat).copy())
        block.view(flat)[...] = block.view()
        np.testing.assert_array_equal(flat, block.flat)
    return np.split(tables[0], 2, axis=1) if merged else tables


def same(tables, others):
    return all(equal(x, y) for x, y in zip(tables, others, strict=True))


# ---- values


@pytest.mark.parametrize(("options", "frequencies", "magnitude"), SCALINGS)
def test_every_scaling(device, options, frequencies, magnitude):
    positions = np.array(EDGES)
    plain = build(one_head(device, **options | {"attention_factor": 1.0}), len(EDGES), positions=positions)
    want = reference.cos_sin(EDGES, frequencies())
    assert largest_error(plain, want) <= 1e-7
    rope = one_head(device, **options)
    scaled = build(rope, len(EDGES), positions=positions)
    # Two roundings of float32: of the magnitude itself, and of the product.
    assert largest_error(scaled, [magnitude * w for w in want]) <= magnitude * (1e-7 + 2 * U)
    assert same(scaled, [np.float32(rope.attention_factor) * x for x in plain])


@pytest.mark.parametrize("options", [{}, YARN], ids=["plain", "yarn"])
def test_fp32(device, options):
    rope = one_head(device, **options | {"angle": "fp32", "attention_factor": 1.0})
    want = reference.cos_sin_fp32(EDGES, rope.inv_freq.astype(np.float32))
    assert largest_error(build(rope, len(EDGES), positions=np.array(EDGES)), want) <= 1e-7


FLOATS = np.array([0.0, 0.5, -0.5, 1 / 3, -1.0, 1e-30, 12345.678, 2**24 - 1, 2**30 + 64, -(2.0**31)], np.float32)


@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_floats(device, dtype, angle, rng):
    """Positions that are no integers: within 1e-7 of the truth, and the bits of a rotation."""
    positions = np.append(FLOATS, (rng.uniform(-1, 1, 60) * 2.0 ** rng.integers(-30, 31, 60)).astype(np.float32))
    rope = one_head(device, position_dtype="float32", angle=angle, theta=500000.0)
    got = build(rope, len(positions), dtype, positions=positions)
    if angle == "exact":
        want = reference.cos_sin(positions, reference.base_frequencies(128, 500000.0))
    else:
        want = reference.cos_sin_fp32(positions, rope.inv_freq.astype(np.float32))
    for x, w in zip(got, want, strict=True):
        assert within(x, (w, np.full_like(w, 1e-7)), dtype).all()
    assert same(got, [x.astype(DTYPES[dtype]) for x in cos_sin_by(rope, positions)])


def test_floats_that_are_integers_are_integers(device):
    positions = np.array([p for p in EDGES if int(np.float32(p)) == p])
    plain, floats = (one_head(device, **YARN, position_dtype=x) for x in ("int64", "float32"))
    want = build(plain, len(positions), positions=positions)
    assert same(build(floats, len(positions), merged=True, positions=positions.astype(np.float32)), want)


@pytest.mark.parametrize("angle", ["exact", "fp32"])
def test_floats_that_are_not_finite(device, angle):
    rope = one_head(device, head_dim=4, inv_freq=[1.0, 4.0], angle=angle, position_dtype="float32")
    for x in build(rope, 5, positions=np.array([np.inf, 1.0, -np.inf, np.nan, 3e38], np.float32)):
        assert np.isnan(x[[0, 2, 3]]).all() and np.isfinite(x[1]).all()
        assert list(np.isnan(x[4])) == [False, angle == "fp32"]  # whose product is beyond float32


def test_an_array_of_floats():
    """Brings its dtype."""
    rope, table = one_head("cpu", head_dim=64), np.zeros((10, 64), np.float32)
    rope.build_cos_sin(table, positions=FLOATS)
    floats = one_head("cpu", head_dim=64, position_dtype="float32")
    assert same(np.split(table, 2, axis=1), build(floats, 10, positions=FLOATS))


def test_too_wide_for_floats(device):
    rope = one_head(device, head_dim=2048, position_dtype="float32")
    buffers = Buffers(device, {"cos": zeros(4, 2048), "positions": np.ones(4, np.float32)})
    with refused(pyrope.UnsupportedError, "rotary_dim: 2048, must be at most 1024 with ROPE_INDEX_FLOAT32"):
        rope.build_cos_sin(**vars(buffers.at), num_rows=4)
    assert buffers.untouched()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_once(device, dtype):
    """To the nearest, from float32 and from the truth."""
    rope = one_head(device, **YARN)
    got = build(rope, 3000, dtype, offset=2**20)
    assert same(got, [x.astype(DTYPES[dtype]) for x in build(rope, 3000, offset=2**20)])
    want = reference.cos_sin(EDGES, reference.yarn_frequencies(128, 1e4, 16, 4096))
    magnitude = reference.yarn_magnitude(16)
    for x, w in zip(build(rope, len(EDGES), dtype, positions=np.array(EDGES)), want, strict=True):
        assert within(x, (magnitude * w, np.full_like(w, magnitude * (1e-7 + 2 * U))), dtype).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_beyond_the_dtype(device, dtype):
    """Magnitudes that take cosines beyond float16's range, and below its normal numbers."""
    for magnitude in (1e6, 3e-8):
        rope = one_head(device, attention_factor=magnitude)
        with np.errstate(over="ignore"):
            want = [x.astype(DTYPES[dtype]) for x in build(rope, 50)]
        assert same(build(rope, 50, dtype), want)


# ---- positions


@pytest.mark.parametrize("angle", ["exact", "fp32"])
def test_positions(device, angle, rng):
    """int32 and int64, huge and negative ones; -1 is a position like any other. The values are those of a rotation."""
    rope = one_head(device, angle=angle)
    for positions in (np.array(HUGE), rng.integers(-(2**31), 2**31, 300).astype(np.int32)):
        options = {"angle": angle, "position_dtype": positions.dtype.name}
        got = build(one_head(device, **options), len(positions), positions=positions)
        for i in [*range(11), len(positions) - 1]:
            assert same([x[i : i + 1] for x in got], build(rope, 1, offset=int(positions[i])))
        turned = positions != -1
        assert same([x[turned] for x in got], [x.astype(np.float32) for x in cos_sin_by(rope, positions[turned])])


@pytest.mark.parametrize("offset", [0, 1000, -3, 2**31 - 2, 2**63 - 3])
def test_offset(device, offset):
    positions = (np.arange(6, dtype=np.uint64) + np.uint64(offset % 2**64)).astype(np.int64)  # wraps
    rope = one_head(device)
    assert same(build(rope, 6, offset=offset), build(rope, 6, positions=positions))


# ---- memory


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary_dim", [2, 6, 64, 72, 128, 2044, 2048])
def test_places(device, rotary_dim, dtype, merged):
    """Any alignment and stride, with canaries around each row; the bits of the CPU's contiguous table."""
    options = {"head_dim": rotary_dim, **YARN}
    want = build(one_head("cpu", **options), 37, dtype, offset=5)
    for padding, lead in ((0, 0), (8, 16), (1, 0), (0, 1), (5, 3), (2**10, 8)):
        place = {"merged": merged, "padding": padding, "lead": lead}
        assert same(build(one_head(device, **options), 37, dtype, offset=5, **place), want)


@pytest.mark.gpu
@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "rotary_dim", "lead"),
    [(1, 128, 0), (2**16 + 3, 128, 0), (2**15 + 5, 128, 0), (2**20 + 5, 2, 0), (4097, 2048, 1), (20000, 70, 0)],
)
def test_cuda_equals_cpu(num_rows, rotary_dim, lead, dtype, angle):
    """Fewer rows than a block takes, more than the grid has, rows of several blocks."""
    ropes = [one_head(device, head_dim=rotary_dim, angle=angle, **YARN) for device in ("cpu", "cuda")]
    cpu, cuda = (build(rope, num_rows, dtype, lead=lead, offset=2**31 - num_rows) for rope in ropes)
    assert same(cpu, cuda)


def test_threads_do_not_matter():
    tables = [build(one_head("cpu", num_threads=n), 20000, "bfloat16", offset=7) for n in (1, 2, 7)]
    assert same(tables[0], tables[1]) and same(tables[0], tables[2])


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
def test_beyond_32_bits(device, merged):
    """The last rows lie more than 2^31 elements behind the first."""
    num_rows, stride = 2**11 + 2, 2**20
    rope = one_head(device, head_dim=64)
    room = Room(device, 2 * num_rows * stride)
    rope.build_cos_sin(
        room.address, None if merged else room.address + 200, num_rows, dtype="bfloat16", row_stride=stride, offset=9
    )
    for row in (0, 1, 2**11 - 1, 2**11, num_rows - 1):
        want = build(rope, 1, "bfloat16", offset=9 + row)
        sines = 2 * row * stride + (64 if merged else 200)
        assert equal(room.get(2 * row * stride, want[0]), want[0]) and equal(room.get(sines, want[1]), want[1])


@pytest.mark.gpu
@pytest.mark.skipif(EMULATED, reason="takes a device's speed and 8 GiB of its memory")
def test_many_rows():
    num_rows = 2**31 - 1
    rope, room = one_head("cuda", head_dim=2), Room("cuda", 4 * num_rows)
    rope.build_cos_sin(room.address, None, num_rows, dtype="float16", offset=5)
    for start in (0, 2**30 - 50, num_rows - 100):
        want = np.concatenate(build(rope, 100, "float16", offset=5 + start), axis=1)
        assert equal(room.get(4 * start, want), want)


# ---- arrays


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays(device, dtype):
    """They bring rows, stride and dtype."""
    rope, memory = one_head(device, head_dim=64), memory_of(device)
    want = build(rope, 7, dtype, positions=np.arange(7) * 1000)
    merged, held = on(device, np.zeros((7, 64), DTYPES[dtype]), dtype)
    ids, _ids = on(device, np.arange(7) * 1000, "int64")
    rope.build_cos_sin(merged, positions=ids)
    assert same(np.split(memory.get(held), 2, axis=1), want)
    tables = [on(device, np.zeros((7, 32), DTYPES[dtype]), dtype) for _ in range(2)]
    rope.build_cos_sin(tables[0][0], tables[1][0], 7, positions=ids, dtype=dtype)
    assert same([memory.get(buffer) for _, buffer in tables], want)
    empty, _empty = on(device, np.zeros((0, 64), DTYPES[dtype]), dtype)
    rope.build_cos_sin(empty)


def test_strided_arrays():
    rope, room = one_head("cpu", head_dim=64), np.full((9, 100), 7, np.float16)
    rope.build_cos_sin(room[1:8, 3:35], room[1:8, 40:72], offset=4)
    want = build(rope, 7, "float16", offset=4)
    assert same([room[1:8, 3:35].copy(), room[1:8, 40:72].copy()], want)
    room[1:8, 3:35] = room[1:8, 40:72] = 7
    assert (room == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cos_sin(dtype):
    """The NumPy arrays of Rope.cos_sin, whatever the Rope's device."""
    rope = one_head("cpu", **YARN)
    got = rope.cos_sin(50, dtype)
    assert [(x.dtype, x.shape) for x in got] == 2 * [(np.dtype("uint16" if dtype == "bfloat16" else dtype), (50, 64))]
    assert same(got, build(rope, 50, dtype))


# ---- what is rotated by them


def reader(rope, dtype="float32", **options):
    """The FusedRope that reads tables of `rope`."""
    shape = {"rotary_dim": rope.rotary_dim, "rotary_offset": rope.rotary_offset, "layout": rope.layout}
    return pyrope.FusedRope(
        rope.head_dim,
        2,
        0,
        dtype=rope.dtype,
        device=rope.device,
        angle="cos_sin",
        cos_sin_dtype=dtype,
        **shape,
        **options,
    )


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize("layout", ["neox", "gptj"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", ["exact", "fp32"])
def test_rotation_by_a_table(device, angle, dtype, layout, merged, rng):
    """By a float32 table, the bits of the rotation that forms its own angles."""
    shape = {"head_dim": 96, "rotary_dim": 64, "rotary_offset": 16, "num_q_heads": 2}
    rope = one_head(device, **shape, dtype=dtype, layout=layout, angle=angle, **YARN)
    operands = {"q": normal_block(rng, dtype, (40, 2, 96)), "positions": rng.integers(0, 500, 40)}
    want = call(rope, operands)["q"]
    parts = build(rope, 500, merged=merged)
    tables = {"cos": np.concatenate(parts, axis=1)} if merged else dict(zip(("cos", "sin"), parts, strict=True))
    got = call(reader(rope), operands | tables | {"cos_sin_rows": 500})["q"]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rotation_by_a_rounded_table(device, dtype, rng):
    rope = one_head(device, num_q_heads=2)
    operands = {"q": normal_block(rng, "float32", (40, 2, 128)), "offset": 20, "cos_sin_rows": 500}
    tables = dict(zip(("cos", "sin"), build(rope, 500, dtype), strict=True))
    wide = {name: table.astype(np.float32) for name, table in tables.items()}
    got = call(reader(rope, dtype), operands | tables)["q"]
    np.testing.assert_array_equal(got, call(reader(rope), operands | wide)["q"])


@pytest.mark.gpu
def test_chain_of_dependent_launches(rng):
    """Each kernel may start before its predecessor has ended; yet tables are written behind the rotation that reads
    their last content, and read behind that."""
    memory = memory_of("cuda")
    rope = one_head("cuda", num_q_heads=2, enable_pdl=True)
    x = normal_block(rng, "float32", (300, 2, 128))
    stream = None if EMULATED else memory.call("cudaStreamCreate")
    q, table, want = memory.put(x.flat), memory.put(np.zeros((300, 128), np.float32)), x.flat.copy()
    place = {"cos": memory.pointer(table), "cos_sin_rows": 300}
    by_table, cpu = reader(rope, enable_pdl=True), one_head("cpu", num_q_heads=2)
    if not EMULATED:
        memory.call("cudaDeviceSynchronize")
    for i in range(50):
        rope.build_cos_sin(place["cos"], None, 300, offset=1000 * i, stream=stream)
        by_table.apply(memory.pointer(q), None, 300, stream=stream, **place)
        cpu.apply(want.ctypes.data, None, 300, offset=1000 * i)
    if not EMULATED:
        memory.call("cudaStreamSynchronize", stream)
        memory.call("cudaStreamDestroy", stream)
    assert equal(memory.get(q), want)


# ---- refusals

DIM, ROWS = 64, 6
NAMED = "float32, float16, bfloat16"
REFUSED = rows(
    ("cos missing", lambda p: {"cos": None}, T, "cos: None is not a pointer"),
    ("cos null", lambda p: {"cos": 0}, V, "cos: 0x0 is not the address"),
    ("cos float", lambda p: {"cos": 1.5}, T, "cos: 1.5 is not a pointer"),
    ("cos misaligned", lambda p: {"cos": p.cos + 2}, V, "cos: pointer .* misaligned, must be a multiple of 4"),
    ("sin misaligned", lambda p: {"sin": p.sin + 1, "dtype": "float16"}, V, "sin: pointer .* multiple of 2"),
    ("num_rows missing", lambda p: {"num_rows": None}, T, "num_rows: required with pointers"),
    ("num_rows negative", lambda p: {"num_rows": -1}, V, "num_rows: -1, must be 0 to 2147483647"),
    ("num_rows large", lambda p: {"num_rows": 2**31}, V, "num_rows: 2147483648, must be 0 to 2147483647"),
    ("num_rows float", lambda p: {"num_rows": 6.0}, T, "num_rows: 6.0 is not an integer"),
    ("dtype", lambda p: {"dtype": "float64"}, V, "dtype: 'float64', must be one of 'float32', 'float16', 'bfloat16'"),
    ("stride short", lambda p: {"row_stride": 31}, V, "row_stride: 31, must be 32 to 1048576"),
    ("stride short, merged", lambda p: {"sin": None, "row_stride": 63}, V, "row_stride: 63, must be 64 to 1048576"),
    ("stride zero", lambda p: {"row_stride": 0}, V, "row_stride: 0, must be at least 1"),
    ("stride negative", lambda p: {"row_stride": -32}, V, "row_stride: -32, must be at least 1"),
    ("stride large", lambda p: {"row_stride": 2**20 + 1}, V, "row_stride: 1048577, must be 32 to 1048576"),
    ("stride float", lambda p: {"row_stride": 64.0}, T, "row_stride: 64.0 is not an integer"),
    ("positions misaligned", lambda p: {"positions": p.ids + 4}, V, "positions: pointer .* multiple of 8"),
    ("positions list", lambda p: {"positions": [1, 2]}, T, "positions: a list is no array; use numpy.asarray"),
    ("positions, offset", lambda p: {"positions": p.ids, "offset": 5}, V, "offset: 5, must be 0 with positions"),
    ("offset float", lambda p: {"offset": 1.0}, T, "offset: 1.0 is not an integer"),
    ("offset large", lambda p: {"offset": 2**63}, V, "offset: 9223372036854775808 does not fit 64 bits"),
    ("stream str", lambda p: {"stream": "0"}, T, "stream: str is not a stream"),
    ("sin is cos", lambda p: {"sin": p.cos}, V, "sin: overlaps cos in memory, must be memory that is apart"),
    ("sin in cos", lambda p: {"sin": p.cos + 4 * 31}, V, "sin: overlaps cos in memory"),
    ("sin between rows", lambda p: {"row_stride": 64, "sin": p.cos + 4 * 33}, V, "sin: overlaps cos in memory"),
    ("positions are cos", lambda p: {"positions": p.cos}, V, "positions: overlaps cos in memory, which is written"),
    ("positions end in sin", lambda p: {"positions": p.sin - 40}, V, "positions: overlaps sin in memory"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), REFUSED)
def test_refusals(device, change, error, text):
    buffers = Buffers(device, {"cos": np.ones((2 * ROWS, DIM), np.float32), "ids": np.arange(8)})
    p = buffers.at
    p.sin = p.cos + 4 * ROWS * DIM
    with refused(error, text):
        one_head(device, head_dim=DIM).build_cos_sin(**{"cos": p.cos, "sin": p.sin, "num_rows": ROWS} | change(p))
    assert buffers.untouched()


def test_between_the_rows_of_the_other(device):
    """Not refused: sines between the cosines, and positions behind them."""
    memory = memory_of(device)
    flat = memory.put(np.zeros((ROWS, 80), np.float32))
    at = memory.pointer(flat)
    one_head(device, head_dim=DIM).build_cos_sin(at + 4 * 32, at, ROWS, row_stride=80, positions=None, offset=3)
    got = memory.get(flat)
    assert (
        same([got[:, 32:64], got[:, :32]], build(one_head(device, head_dim=DIM), ROWS, offset=3))
        and not got[:, 64:].any()
    )


def zeros(rows, columns, dtype=np.float32):
    return np.zeros((rows, columns), dtype)


ARRAYS = rows(
    ("width", {"cos": zeros(6, 63)}, V, r"cos: shape \(6, 63\), must be \[rows, 64\] with contiguous rows"),
    ("half without sin", {"cos": zeros(6, 32)}, V, r"cos: shape \(6, 32\), must be \[rows, 64\]"),
    ("both with sin", {"cos": zeros(6, 64), "sin": zeros(6, 64)}, V, r"cos: shape \(6, 64\), must be \[rows, 32\]"),
    ("flat", {"cos": zeros(6, 64).ravel()}, V, r"cos: shape \(384,\), must be"),
    ("columns apart", {"cos": zeros(6, 128)[:, ::2]}, V, r"cos: shape \(6, 64\), must be .* contiguous rows"),
    ("backwards", {"cos": zeros(6, 64)[::-1]}, V, "cos: a row stride of -64, must be at least 64"),
    ("broadcast", {"cos": np.lib.stride_tricks.as_strided(zeros(6, 64), strides=(0, 4))}, V, "cos: a row stride of 0"),
    ("other rows", {"cos": zeros(6, 32), "sin": zeros(7, 32)}, V, r"sin: shape \(7, 32\), must be \[6, 32\]"),
    ("other stride", {"cos": zeros(6, 32), "sin": zeros(6, 40)[:, :32]}, V, "sin: a row stride of 40, must be that of"),
    ("num_rows", {"cos": zeros(6, 64), "num_rows": 5}, V, r"cos: shape \(6, 64\), must be \[5, 64\]"),
    ("row_stride", {"cos": zeros(6, 64), "row_stride": 64}, V, "row_stride: only allowed with pointers"),
    ("dtype", {"cos": zeros(6, 64, np.float64)}, T, f"cos: dtype float64, must be {NAMED}"),
    ("dtype int", {"cos": zeros(6, 64, np.uint16)}, T, f"cos: dtype uint16, must be {NAMED}"),
    ("other dtype", {"cos": zeros(6, 32), "sin": zeros(6, 32, np.float16)}, T, "sin: dtype float16, must be float32"),
    ("not that dtype", {"cos": zeros(6, 64), "dtype": "bfloat16"}, T, "cos: dtype float32, must be bfloat16"),
    ("read-only", {"cos": read_only(zeros(6, 64))}, V, "cos: the array is read-only"),
    ("positions", {"cos": zeros(6, 64), "positions": np.arange(5)}, V, "positions: 6 are needed; got 5"),
    ("float positions", {"cos": zeros(6, 64), "positions": np.ones(6)}, T, "positions: dtype float64, must be int32"),
)  # fmt: skip


@pytest.mark.parametrize(("arrays", "error", "text"), ARRAYS)
def test_refused_arrays(arrays, error, text):
    with refused(error, text):
        one_head("cpu", head_dim=DIM).build_cos_sin(**arrays)
    assert not any(np.any(arrays.get(name)) for name in ("cos", "sin"))


class Unnamed:
    """A CUDA array of a two-byte type, for which the interface has no name."""

    def __init__(self, address, shape):
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<V2", "data": (address, False), "version": 3}


@pytest.mark.gpu
def test_a_dtype_without_a_name():
    rope, memory = one_head("cuda", head_dim=DIM), memory_of("cuda")
    buffer = memory.put(zeros(ROWS, DIM, np.uint16))
    table = Unnamed(int(memory.pointer(buffer)), (ROWS, DIM))
    with refused(TypeError, r"dtype: required, cos has a type of two bytes that it does not name"):
        rope.build_cos_sin(table)
    assert not memory.get(buffer).any()
    rope.build_cos_sin(table, dtype="bfloat16", offset=3)
    want = build(rope, ROWS, "bfloat16", offset=3, merged=True)
    assert same(np.split(memory.get(buffer), 2, axis=1), want)


@pytest.mark.gpu
def test_memory_of_the_wrong_device():
    with refused(ValueError, r"cos: the array is in host memory, must be on the CUDA device"):
        one_head("cuda", head_dim=DIM).build_cos_sin(zeros(ROWS, DIM))
    table, _held = on("cuda", zeros(ROWS, DIM), "float32")
    with refused(ValueError, r"cos: the array is on a CUDA device, must be in host memory"):
        one_head("cpu", head_dim=DIM).build_cos_sin(table)
    with refused(ValueError, r"stream: only allowed with device='cuda'"):
        one_head("cpu", head_dim=DIM).build_cos_sin(zeros(ROWS, DIM), stream=8)


def test_without_frequencies(device):
    rope = pyrope.FusedRope(DIM, 1, 1, angle="cos_sin", device=device)
    with refused(ValueError, r"build_cos_sin: not with angle='cos_sin', which has no frequencies"):
        rope.build_cos_sin(0, None, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cos", "sin", "positions"])
def test_host_pointer_on_cuda(name):
    skip_if_host_memory_is_read()
    buffers, host = Buffers("cuda", {x: zeros(ROWS, DIM) for x in ("cos", "sin", "positions")}), zeros(ROWS, DIM)
    with refused(ValueError, f"{name}: .* is host memory, which the CUDA backend cannot read"):
        one_head("cuda", head_dim=DIM).build_cos_sin(**vars(buffers.at) | {name: host.ctypes.data}, num_rows=ROWS)
    assert buffers.untouched() and not host.any()
