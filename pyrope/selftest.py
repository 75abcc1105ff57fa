"""``python -m pyrope selftest``: the installed library against independent arithmetic, in plain Python."""

import itertools
import math
import random
import struct
from array import array
from collections.abc import Callable
from decimal import Decimal, localcontext

import pyrope
from pyrope import _device

PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170680")
POSITIONS = [0, 1, 70001, 2**24 + 1, 2**31 - 1, -5]
HEADS, DIM, ROTARY, OFFSET = 2, 24, 16, 4
# Bytes of an element, rounding step, smallest normal number.
DTYPES = {"float32": (4, 2.0**-23, 2.0**-126), "float16": (2, 2.0**-10, 2.0**-14), "bfloat16": (2, 2.0**-7, 2.0**-126)}


class WrongResultError(Exception):
    """A check found a wrong result."""


def require(condition: bool, text: str) -> None:
    if not condition:
        raise WrongResultError(text)


def encode(values: list[float], dtype: str) -> bytes:
    if dtype == "bfloat16":  # the upper half of a float32; callers give numbers that fit
        return b"".join(struct.pack("<f", x)[2:] for x in values)
    return struct.pack(f"<{len(values)}{'f' if dtype == 'float32' else 'e'}", *values)


def decode(data: bytes, dtype: str) -> list[float]:
    if dtype == "bfloat16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    size = DTYPES[dtype][0]
    return list(struct.unpack(f"<{len(data) // size}{'f' if dtype == 'float32' else 'e'}", data))


def cos_sin(position: int, pair: int, rotary_dim: int, theta: float) -> tuple[float, float]:
    """Of position * theta^(-2 pair / rotary_dim), reduced to one turn in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        angle = float((position * Decimal(theta) ** (Decimal(-2 * pair) / rotary_dim)) % (2 * PI))
    return math.cos(angle), math.sin(angle)


def run(
    device: str,
    data: bytes,
    *,
    head_dim: int,
    heads: int = 1,
    apart: bool = False,
    inverse: bool = False,
    positions: list[int] = POSITIONS,
    **options: object,
) -> bytes:
    """The bytes of q after a call on the device."""
    rope = pyrope.Rope(head_dim, heads, 0, device=device, **options)  # type: ignore[arg-type]
    memory = _device.memory(device)
    q, ids = memory(data), memory(array("q", positions).tobytes())
    out = memory(bytes(len(data))) if apart else q
    (rope.inverse if inverse else rope.apply)(q.address, None, len(positions), positions=ids.address, q_out=out.address)
    return out.read()


def check_angles(device: str) -> str:
    """Rotating (1, 0) gives cos and sin themselves."""
    worst = 0.0
    for theta in (1e4, 5e5):
        data = encode(([1.0] * 32 + [0.0] * 32) * len(POSITIONS), "float32")
        got = decode(run(device, data, head_dim=64, dtype="float32", theta=theta), "float32")
        for (t, position), pair in itertools.product(enumerate(POSITIONS), range(32)):
            c, s = cos_sin(position, pair, 64, theta)
            worst = max(worst, abs(got[64 * t + pair] - c), abs(got[64 * t + 32 + pair] - s))
    require(worst <= 1e-7, f"cos or sin is off by {worst:.3g}, more than 1e-7")
    return f"largest error of cos and sin {worst:.1e}"


def check_rotation(device: str, dtype: str, layout: str) -> str:
    """Partial rotation, in place, out of place and inverse."""
    _, eps, normal = DTYPES[dtype]
    draw = random.Random(7)
    x = [draw.randrange(-128, 129) / 32 for _ in range(len(POSITIONS) * HEADS * DIM)]
    data = encode(x, dtype)
    shape = {
        "head_dim": DIM,
        "heads": HEADS,
        "rotary_dim": ROTARY,
        "rotary_offset": OFFSET,
        "dtype": dtype,
        "layout": layout,
    }
    for inverse in (False, True):
        result = run(device, data, inverse=inverse, **shape)  # type: ignore[arg-type]
        apart = run(device, data, inverse=inverse, apart=True, **shape)  # type: ignore[arg-type]
        require(result == apart, "in place and out of place differ")
        got, want, bound = decode(result, dtype), list(x), [0.0] * len(x)
        for (t, position), head, pair in itertools.product(enumerate(POSITIONS), range(HEADS), range(ROTARY // 2)):
            first = (t * HEADS + head) * DIM + OFFSET + (pair if layout == "neox" else 2 * pair)
            second = first + (ROTARY // 2 if layout == "neox" else 1)
            c, s = cos_sin(position, pair, ROTARY, 1e4)
            s = -s if inverse else s
            want[first], want[second] = x[first] * c - x[second] * s, x[first] * s + x[second] * c
            for i in (first, second):  # arithmetic in float32, and one rounding to the dtype
                bound[i] = 3e-7 * math.hypot(x[first], x[second])
                bound[i] += max(abs(want[i]) + bound[i], normal) * eps / 2
        wrong = sum(abs(g - w) > b for g, w, b in zip(got, want, bound, strict=True))
        require(not wrong, f"{wrong} of {len(x)} elements are wrong")
    return f"{len(x)} elements, apply and inverse, in and out of place"


def check_equal(dtype: str, layout: str, angle: str) -> str:
    """The same bits from both backends, whatever the bits of the input."""
    draw = random.Random(11)
    for tokens in (1, 9, 300):
        positions = [draw.getrandbits(63) for _ in range(tokens)]
        data = draw.randbytes(tokens * 3 * 80 * DTYPES[dtype][0])
        results = [
            run(
                device,
                data,
                head_dim=80,
                heads=3,
                rotary_dim=64,
                rotary_offset=8,
                positions=positions,
                dtype=dtype,
                layout=layout,
                angle=angle,
            )
            for device in ("cpu", "cuda")
        ]
        require(results[0] == results[1], f"CPU and CUDA differ at {tokens} tokens")
    return "same bits on CPU and CUDA"


def main() -> int:
    """Run every check and say what came of it; 0 if all passed."""
    failed = 0

    def report(name: str, check: Callable[..., str], *arguments: str) -> None:
        nonlocal failed
        try:
            verdict = "ok      " + check(*arguments)
        except (WrongResultError, pyrope.RopeError, ValueError) as error:
            failed += 1
            verdict = f"FAILED  {error}"
        print(f"{name:34}{verdict}")

    without = _device.why_not_cuda()
    layouts = ("neox", "gptj")
    for device in ("cpu",) if without else ("cpu", "cuda"):
        report(f"{device} angle", check_angles, device)
        for dtype, layout in itertools.product(DTYPES, layouts):
            report(f"{device} {dtype} {layout}", check_rotation, device, dtype, layout)
    if not without:
        for dtype, layout, angle in itertools.product(DTYPES, layouts, ("exact", "fp32")):
            report(f"cpu = cuda {dtype} {layout} {angle}", check_equal, dtype, layout, angle)
    passed = f"passed on the CPU; CUDA not checked: {without}" if without else "all checks passed"
    print(f"pyrope {pyrope.__version__}: {f'{failed} checks FAILED' if failed else passed}")
    return int(failed > 0)
