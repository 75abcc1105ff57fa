"""Tables of cos and sin that cannot be made: each argument named, and nothing written."""

import numpy as np
import pytest

import pyrope
from kit.angles import one_head
from kit.memory import Buffers, memory_of, skip_if_host_memory_is_read
from kit.objects import on
from kit.refusals import T, V, read_only, refused, rows
from kit.tables import build, same


def zeros(rows, columns, dtype=np.float32):
    return np.zeros((rows, columns), dtype)


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


def test_too_wide_for_floats(device):
    rope = one_head(device, head_dim=2048, position_dtype="float32")
    buffers = Buffers(device, {"cos": zeros(4, 2048), "positions": np.ones(4, np.float32)})
    with refused(pyrope.UnsupportedError, "rotary_dim: 2048, must be at most 1024 with ROPE_INDEX_FLOAT32"):
        rope.build_cos_sin(**vars(buffers.at), num_rows=4)
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
