"""Tables of cos and sin that the library makes: their values, where they lie, and what is rotated by them."""

import numpy as np
import pytest

import pyrope
from kit import reference
from kit.angles import EDGES, cos_sin_by, largest_error, one_head
from kit.blocks import call, equal, normal_block
from kit.memory import EMULATED, Room, memory_of
from kit.objects import on
from kit.reference import DTYPES, U, within
from kit.scalings import SCALINGS
from kit.tables import build, same

YARN = {"scaling": pyrope.YaRN(16.0, 4096)}
HUGE = [-(2**63), -(2**45), -1000, -2, -1, 0, 2**31 - 1, 2**31, 2**32 + 5, 2**53 + 1, 2**63 - 1]

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
