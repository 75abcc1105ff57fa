"""Calls with pointers that are refused: each refusal names the argument, and nothing is written; what is allowed."""

from types import SimpleNamespace

import numpy as np
import pytest

import pyrope
from kit.memory import HAS_CUDA, Buffers, skip_if_host_memory_is_read
from kit.refusals import DIM, K_HEADS, Q_HEADS, ROW, TOKENS, T, V, refused, rows, small

# ---- calls with pointers

STREAM = SimpleNamespace(__cuda_stream__=lambda: (1, 0))

# Each row: the Rope's options, what differs from apply(q=, k=, num_tokens=3), the error. p has the addresses.
POINTERS = rows(
    ("q null", {}, lambda p: {"q": 0}, V, "q: 0x0 is not the address .*; pass None"),
    ("k null", {}, lambda p: {"k": 0}, V, "k: 0x0 is not the address .*; pass None"),
    ("q_out null", {}, lambda p: {"q_out": 0}, V, "q_out: 0x0 is not the address"),
    ("positions null", {}, lambda p: {"positions": 0}, V, "positions: 0x0 is not the address"),
    ("q negative", {}, lambda p: {"q": -8}, V, "q: -0x8 is not the address of any memory"),
    ("q beyond 64 bits", {}, lambda p: {"q": 2**64}, V, "q: 0x10000000000000000 is not the address"),
    ("q float", {}, lambda p: {"q": float(p.q)}, T, "q: .* is not a pointer; pass an int, a cuda-python handle or"),
    ("q bool", {}, lambda p: {"q": True}, T, "q: True is not a pointer; pass an int"),
    ("q numpy bool", {}, lambda p: {"q": np.True_}, T, "q: bool is not a pointer; pass an int"),
    ("q numpy float", {}, lambda p: {"q": np.float64(p.q)}, T, "q: .* is not a pointer; pass an int"),
    ("q numpy float32", {}, lambda p: {"q": np.float32(p.q)}, T, "q: float32 is not a pointer; pass an int"),
    ("q str", {}, lambda p: {"q": str(p.q)}, T, "q: str is not a pointer; pass an int"),
    ("q bytes", {}, lambda p: {"q": bytes(8)}, T, "q: bytes is not a pointer; pass an int"),
    ("q list", {}, lambda p: {"q": [p.q]}, T, "q: a list is no array; use numpy.asarray"),
    ("k complex", {}, lambda p: {"k": 1j}, T, "k: complex is not a pointer; pass an int"),
    ("positions float", {}, lambda p: {"positions": 1.0}, T, "positions: 1.0 is not a pointer; pass an int"),
    ("positions bool", {}, lambda p: {"positions": False}, T, "positions: False is not a pointer; pass an int"),
    ("positions list", {}, lambda p: {"positions": [0, 1, 2]}, T, "positions: a list is no array; use numpy.asarray"),
    ("neither q nor k", {}, lambda p: {"q": None, "k": None}, T, "q and k: both None, at least one"),
    ("q misaligned", {}, lambda p: {"q": p.q + 2}, V, "q: pointer .* misaligned, must be a multiple .* 4 bytes"),
    (
        "q misaligned bfloat16",
        {"dtype": "bfloat16"},
        lambda p: {"q": p.q + 1},
        V,
        "q: pointer .* misaligned, must be a multiple .* 2 bytes",
    ),
    ("k misaligned", {}, lambda p: {"k": p.k + 1}, V, "k: pointer .* misaligned, must be a multiple"),
    ("q_out misaligned", {}, lambda p: {"q_out": p.q_out + 2}, V, "q_out: pointer .* misaligned, must be"),
    ("k_out misaligned", {}, lambda p: {"k_out": p.k_out + 3}, V, "k_out: pointer .* misaligned, must be"),
    (
        "positions misaligned",
        {},
        lambda p: {"positions": p.positions + 4},
        V,
        "positions: pointer .* misaligned, must be a multiple of 8 bytes",
    ),
    (
        "positions misaligned int32",
        {"position_dtype": "int32"},
        lambda p: {"positions": p.positions + 2},
        V,
        "positions: pointer .* misaligned, must be a multiple of 4 bytes",
    ),
    (
        "indptr misaligned",
        {},
        lambda p: {"indptr": p.indptr + 4, "num_requests": 2},
        V,
        "indptr: pointer .* multiple of 8",
    ),
    (
        "offsets misaligned",
        {},
        lambda p: {"indptr": p.indptr, "num_requests": 2, "offsets": p.offsets + 1},
        V,
        "offsets: pointer .* misaligned, must be a multiple of 8",
    ),
    ("num_tokens missing", {}, lambda p: {"num_tokens": None}, T, "num_tokens: required with pointers"),
    ("num_tokens negative", {}, lambda p: {"num_tokens": -1}, V, "num_tokens: -1, must be 0 to 2.*31 - 1"),
    ("num_tokens large", {}, lambda p: {"num_tokens": 2**31}, V, "num_tokens: 2147483648, must be 0 to 2147483647"),
    ("num_tokens beyond 64 bits", {}, lambda p: {"num_tokens": 2**63}, V, "num_tokens: .* does not fit 64 bits"),
    ("num_tokens float", {}, lambda p: {"num_tokens": 3.0}, T, "num_tokens: 3.0 is not an integer"),
    ("num_tokens bool", {}, lambda p: {"num_tokens": True}, T, "num_tokens: True is not an integer"),
    ("q without heads", {"num_q_heads": 0}, lambda p: {}, V, "q: given, but the Rope has num_q_heads=0"),
    ("k without heads", {"num_k_heads": 0}, lambda p: {}, V, "k: given, but the Rope has num_k_heads=0"),
    ("q_out without q", {}, lambda p: {"q": None, "q_out": p.q_out}, V, "q_out: given without q"),
    ("k_out without k", {}, lambda p: {"k": None, "k_out": p.k_out}, V, "k_out: given without k"),
    # positions
    (
        "positions and indptr",
        {},
        lambda p: {"positions": p.positions, "indptr": p.indptr, "num_requests": 2},
        V,
        "indptr: not allowed together with positions",
    ),
    (
        "positions and offset",
        {},
        lambda p: {"positions": p.positions, "offset": 5},
        V,
        "offset: 5, must be 0 with positions or indptr",
    ),
    (
        "indptr and offset",
        {},
        lambda p: {"indptr": p.indptr, "num_requests": 2, "offset": -5},
        V,
        "offset: -5, must be 0 with positions or indptr",
    ),
    ("offsets without indptr", {}, lambda p: {"offsets": p.offsets}, V, "offsets: only allowed with indptr"),
    ("num_requests without indptr", {}, lambda p: {"num_requests": 2}, V, "num_requests: only allowed with indptr"),
    ("num_requests missing", {}, lambda p: {"indptr": p.indptr}, T, "num_requests: required with indptr as a pointer"),
    (
        "num_requests zero",
        {},
        lambda p: {"indptr": p.indptr, "num_requests": 0},
        V,
        "num_requests: 0, must be 1 to 2147483647",
    ),
    (
        "num_requests negative",
        {},
        lambda p: {"indptr": p.indptr, "num_requests": -1},
        V,
        "num_requests: -1, must be 1 to",
    ),
    (
        "num_requests large",
        {},
        lambda p: {"indptr": p.indptr, "num_requests": 2**31},
        V,
        "num_requests: 2147483648, must be 1 to 2147483647",
    ),
    (
        "num_requests float",
        {},
        lambda p: {"indptr": p.indptr, "num_requests": 2.0},
        T,
        "num_requests: 2.0 is not an integer",
    ),
    ("offset beyond 64 bits", {}, lambda p: {"offset": 2**63}, V, "offset: 9223372036854775808 does not fit 64 bits"),
    (
        "offset below 64 bits",
        {},
        lambda p: {"offset": -(2**63) - 1},
        V,
        "offset: -9223372036854775809 does not fit 64 bits",
    ),
    ("offset float", {}, lambda p: {"offset": 1.5}, T, "offset: 1.5 is not an integer"),
    ("offset bool", {}, lambda p: {"offset": True}, T, "offset: True is not an integer"),
    ("offset None", {}, lambda p: {"offset": None}, T, "offset: None is not an integer"),
    # strides
    ("q_strides int", {}, lambda p: {"q_strides": 128}, T, r"q_strides: 128, must be \(token stride, head stride\)"),
    ("k_strides float", {}, lambda p: {"k_strides": (64.0, 64)}, T, "k_strides: 64.0 is not an integer"),
    (
        "q_out_strides bool",
        {},
        lambda p: {"q_out": p.q_out, "q_out_strides": (True, 64)},
        T,
        "q_out_strides: True is not",
    ),
    (
        "q_strides zero",
        {},
        lambda p: {"q_strides": (0, 64)},
        V,
        r"q_strides: \(0, 64\), a stride of what is written must not",
    ),
    (
        "k_out_strides zero",
        {},
        lambda p: {"k_out": p.k_out, "k_out_strides": (64, 0)},
        V,
        "k_out_strides: .* must not be 0",
    ),
    ("q_strides beyond 64 bits", {}, lambda p: {"q_strides": (2**63, 64)}, V, "q_strides: .* does not fit 64 bits"),
    (
        "q_strides reach far",
        {},
        lambda p: {"q_strides": (2**60, 64)},
        V,
        r"q: strides \(token .* reach beyond 2.62 bytes",
    ),
    (
        "q_strides reach far back",
        {},
        lambda p: {"q_strides": (-(2**62), 64)},
        V,
        "q: strides .* reach beyond 2.62 bytes",
    ),
    ("q_strides of the least number", {}, lambda p: {"q_strides": (-(2**63), 64)}, V, "q_strides: .* reach beyond"),
    ("q_strides of three", {}, lambda p: {"q_strides": (128, 64, 1)}, T, r"q_strides: .* or \(sequence stride"),
    (
        "q_strides of overlapping sequences",
        {},
        lambda p: {"q_strides": (64, 128, 64, 1), "sequence_length": 1},
        V,
        "q: strides overlap",
    ),
    (
        "q_strides of overlapping elements",
        {},
        lambda p: {"q_strides": (0, 128, 64, 2)},
        V,
        "q_strides: .* must not be 0",
    ),
    ("q_strides of elements in the next head", {}, lambda p: {"q_strides": (999, 256, 64, 2)}, V, "q: strides overlap"),
    (
        "sequence_length that divides not",
        {},
        lambda p: {"sequence_length": 2},
        V,
        "sequence_length: 2, must be 0 or divide num_tokens, 3",
    ),
    ("sequence_length zero", {}, lambda p: {"sequence_length": 0}, V, "sequence_length: 0, must be 1 to"),
    ("sequence_length float", {}, lambda p: {"sequence_length": 1.0}, T, "sequence_length: 1.0 is not an integer"),
    ("skipped", {}, lambda p: {"skipped": "zero"}, V, "skipped: 'zero', must be one of 'leave', 'copy'"),
    ("skipped None", {}, lambda p: {"skipped": None}, V, "skipped: None, must be one of"),
    (
        "k_out_strides reach far",
        {},
        lambda p: {"k_out": p.k_out, "k_out_strides": (2**61, 64)},
        V,
        "k_out: strides .* 2.62",
    ),
    (
        "q tokens overlap",
        {},
        lambda p: {"q_strides": (127, 64)},
        V,
        "q: strides overlap .* every row .* its own memory",
    ),
    ("q heads overlap", {}, lambda p: {"q_strides": (128, 63)}, V, "q: strides overlap .* every row .* its own memory"),
    ("q same stride twice", {}, lambda p: {"q_strides": (64, 64)}, V, "q: strides overlap"),
    ("k_out tokens overlap", {}, lambda p: {"k_out": p.k_out, "k_out_strides": (-63, 64)}, V, "k_out: strides overlap"),
    ("q_strides without q", {}, lambda p: {"q": None, "q_strides": (128, 64)}, V, "q_strides: given without q"),
    ("k_out_strides without k_out", {}, lambda p: {"k_out_strides": (64, 64)}, V, "k_out_strides: given without k_out"),
    # overlaps
    ("k is q", {}, lambda p: {"k": p.q}, V, "k: overlaps q in memory; .* in place, or memory that is apart"),
    ("k inside q", {}, lambda p: {"k": p.q + 5 * ROW + 4, "num_tokens": 3}, V, "k: overlaps q in memory"),
    ("k on q's last byte", {}, lambda p: {"k": p.q + 6 * ROW - 4}, V, "k: overlaps q in memory"),
    (
        "k between q's rows",
        {},
        lambda p: {"q_strides": (256, 64), "k": p.q + 2 * ROW - 4, "k_strides": (256, 64)},
        V,
        "k: overlaps q in memory",
    ),
    ("q_out shifted", {}, lambda p: {"q_out": p.q + 4}, V, "q_out: overlaps q in memory; pass the same pointer"),
    ("q_out shifted back", {}, lambda p: {"q": p.q + ROW, "q_out": p.q}, V, "q_out: overlaps q in memory"),
    (
        "q_out other token stride",
        {},
        lambda p: {"q_out": p.q, "q_out_strides": (192, 64)},
        V,
        "q_out: overlaps q in memory",
    ),
    (
        "q_out other head stride",
        {},
        lambda p: {"q_out": p.q, "q_out_strides": (192, 96)},
        V,
        "q_out: overlaps q in memory",
    ),
    ("q_out mirrored", {}, lambda p: {"q_out": p.q + 5 * ROW, "q_out_strides": (-128, -64)}, V, "q_out: overlaps q in"),
    ("q_out is k", {}, lambda p: {"q_out": p.k}, V, "k: overlaps q_out in memory"),
    ("k_out is q", {}, lambda p: {"k_out": p.q}, V, "k_out: overlaps q in memory"),
    ("k_out is q_out", {}, lambda p: {"q_out": p.q_out, "k_out": p.q_out}, V, "k_out: overlaps q_out in memory"),
    ("outputs crossed", {}, lambda p: {"q_out": p.k, "k_out": p.q}, V, "q_out: overlaps k in memory"),
    # streams
    ("stream float", {}, lambda p: {"stream": 1.0}, T, "stream: 1.0 is not a stream; pass an int, None or"),
    ("stream bool", {}, lambda p: {"stream": False}, T, "stream: False is not a stream; pass an int, None or"),
    ("stream str", {}, lambda p: {"stream": "0"}, T, "stream: str is not a stream; pass an int, None or an object"),
    ("stream negative", {}, lambda p: {"stream": -1}, V, "stream: -1 is not a stream handle"),
    (
        "stream beyond 64 bits",
        {},
        lambda p: {"stream": 2**64},
        V,
        "stream: 18446744073709551616 is not a stream handle",
    ),
    (
        "stream of a new protocol",
        {},
        lambda p: {"stream": STREAM},
        V,
        "stream: __cuda_stream__ protocol version 1, must be 0",
    ),
)


def buffers_of(device):
    """Room for three times what the call touches."""
    sizes = {"q": Q_HEADS, "k": K_HEADS, "q_out": Q_HEADS, "k_out": K_HEADS}
    arrays = {name: np.arange(3 * TOKENS * heads * DIM, dtype=np.float32) for name, heads in sizes.items()}
    arrays |= {"positions": np.arange(4), "indptr": np.array([0, 2, 3, 3]), "offsets": np.array([7, 8, 9])}
    return Buffers(device, arrays)


@pytest.mark.parametrize("method", ["apply", "inverse"])
@pytest.mark.parametrize(("options", "change", "error", "text"), POINTERS)
def test_pointers(device, options, change, error, text, method):
    rope, buffers = small(device, **options), buffers_of(device)
    p = buffers.at
    with refused(error, text):
        getattr(rope, method)(**{"q": p.q, "k": p.k, "num_tokens": TOKENS} | change(p))
    assert buffers.untouched()


def test_no_stream_on_the_cpu():
    buffers = buffers_of("cpu")
    with refused(ValueError, "stream: only allowed with device='cuda'"):
        small().apply(buffers.at.q, buffers.at.k, TOKENS, stream=1)
    assert buffers.untouched()


# What looks alike and is allowed.
ALLOWED = rows(
    ("the rest of the row is k's", lambda p: {"q_strides": (192, 64), "k": p.q + 2 * ROW, "k_strides": (192, 64)}),
    ("k's head stride is never taken", lambda p: {"q_strides": (256, 96), "k": p.q + 3 * ROW, "k_strides": (256, 1)}),
    ("k behind q", lambda p: {"k": p.q + 6 * ROW}),
    ("q_out is q", lambda p: {"q_out": p.q, "k_out": p.k}),
    ("q_out is q, strides written out", lambda p: {"q_out": p.q, "q_out_strides": (128, 64)}),
    ("inputs share memory", lambda p: {"k": p.q, "q_out": p.q_out, "k_out": p.k_out}),
    ("input rows overlap", lambda p: {"q_strides": (1, 64), "q_out": p.q_out}),
    ("one token has no token stride", lambda p: {"num_tokens": 1, "q_strides": (1, 64), "q_out": p.q}),
    ("heads outside of tokens", lambda p: {"q_strides": (64, 192)}),
    ("backwards", lambda p: {"q": p.q + 5 * ROW, "q_strides": (-128, -64)}),
    ("position array unused", lambda p: {"num_tokens": 0, "positions": p.positions}),
)


@pytest.mark.parametrize("change", ALLOWED)
def test_allowed(device, change):
    buffers = buffers_of(device)
    call = {"q": buffers.at.q, "k": buffers.at.k, "num_tokens": TOKENS} | change(buffers.at)
    small(device).apply(**call, **{} if "positions" in call else {"offset": 1})
    assert buffers.untouched() == (call["num_tokens"] == 0)


# ---- devices


@pytest.mark.skipif(not HAS_CUDA or pyrope.device_count() > 0, reason="built without CUDA, or there is a device")
@pytest.mark.parametrize("options", [{}, {"enable_pdl": True}])
def test_no_device(options):
    rope, buffers = small("cuda", **options), buffers_of("cpu")
    for method in (rope.apply, rope.inverse):
        with pytest.raises(pyrope.CudaError, match=r"no CUDA device: .*cudaError.*; for the CPU pass device='cpu'"):
            method(buffers.at.q, buffers.at.k, TOKENS)
    assert buffers.untouched()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["q", "k", "q_out", "k_out", "positions", "indptr", "offsets"])
def test_host_pointer_on_cuda(name):
    skip_if_host_memory_is_read()
    buffers = buffers_of("cuda")
    p = buffers.at
    host = np.zeros(3 * TOKENS * Q_HEADS * DIM, np.float32)
    call = {"q": p.q, "k": p.k, "num_tokens": TOKENS, name: host.ctypes.data}
    if name in ("indptr", "offsets"):
        call = {"indptr": p.indptr, "num_requests": 2} | call
    with refused(ValueError, f"{name}: .* is host memory, which the CUDA backend cannot read"):
        small("cuda").apply(**call)
    assert buffers.untouched() and not host.any()
