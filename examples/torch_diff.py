"""How far three rotations are from float64 and from each other, and how long each takes.

    python examples/torch_diff.py [--full] [--device cpu|cuda] [--start POSITION]

naive: torch's operations, angles formed in float32 at every call. table: the same with cos and sin made once. pyrope:
pyrope.torch.apply. All three turn x of [batch, n, m], one head of m elements a token, out of place, each sequence from
the same position, and round once to x's dtype. Differences are the largest absolute ones; half an ulp of bfloat16 is
0.016 for numbers of 4 to 8. Needs torch alone.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator

try:
    import torch

    import pyrope
    import pyrope.torch
except ModuleNotFoundError as error:
    sys.exit(f"{error}; install what this example needs: pip install 'torch>=2.11', and in the checkout pip install .")

THETA = 10000.0
NAMES = ("naive", "table", "pyrope")
PAIRS = tuple(itertools.combinations(NAMES, 2))


def cos_sin(start: int, n: int, m: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, m / 2] each, of RoFormer's frequencies (arXiv:2104.09864), in float32 or float64."""
    inv_freq = THETA ** (-torch.arange(0, m, 2, device=device, dtype=dtype) / m)
    angles = torch.arange(start, start + n, device=device).to(dtype)[:, None] * inv_freq
    return angles.cos(), angles.sin()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Halves as pairs, computed in the dtype of cos and sin."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def rotations(x: torch.Tensor, start: int) -> dict[str, Callable[[], torch.Tensor]]:
    _, n, m = x.shape
    device = x.device.type
    table = cos_sin(start, n, m, device, torch.float32)
    rope = pyrope.Rope(m, 1, 0, theta=THETA, dtype=x.dtype, device=device)

    def by_pyrope() -> torch.Tensor:
        out, _ = pyrope.torch.apply(rope, x.unsqueeze(2), offset=start)
        assert out is not None
        return out.squeeze(2)

    return {
        "naive": lambda: turn(x, *cos_sin(start, n, m, device, torch.float32)).to(x.dtype),
        "table": lambda: turn(x, *table).to(x.dtype),
        "pyrope": by_pyrope,
    }


def differences(x: torch.Tensor, start: int, results: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest ones, from float64 by name and between two by both names; a few sequences at a time."""
    exact = cos_sin(start, *x.shape[1:], x.device.type, torch.float64)
    largest = dict.fromkeys((*NAMES, *map("-".join, PAIRS)), 0.0)
    for i in range(0, len(x), 4):
        want = turn(x[i : i + 4], *exact)
        part = {name: result[i : i + 4].double() for name, result in results.items()}
        found = {name: part[name] - want for name in NAMES} | {f"{a}-{b}": part[a] - part[b] for a, b in PAIRS}
        largest = {name: max(largest[name], found[name].abs().max().item()) for name in largest}
    return largest


def milliseconds(function: Callable[[], torch.Tensor], device: str, seconds: float = 0.3) -> float:
    """The median of a call; on a GPU, of its kernels and what lies between."""
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        if device == "cuda":
            begin, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            stop.record()
            stop.synchronize()
            times.append(begin.elapsed_time(stop))
        else:
            started = time.perf_counter()
            function()
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def cases(device: str, full: bool) -> Iterator[tuple[int, int, int]]:
    if full:
        yield from itertools.product((64, 128), (512, 1024, 2048, 4096, 8192), (128, 256))
    elif device == "cuda":
        yield from ((64, 512, 128), (64, 8192, 128), (128, 2048, 256))
    else:
        yield from ((2, 512, 128), (2, 2048, 256))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="all of batch {64, 128}, n {512 .. 8192}, m {128, 256}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=int, default=0, help="position of the first token; default: 0")
    chosen = parser.parse_args(arguments)
    heads = (*(f"{n} - f64" for n in NAMES), *(f"{a} - {b}" for a, b in PAIRS), *(f"{n} ms" for n in NAMES))
    print(f"{'dtype':9}{'batch':>6}{'n':>6}{'m':>5}", *(f"{head:>15}" for head in heads), sep="")
    for dtype in (torch.float32, torch.bfloat16):
        for batch, n, m in cases(chosen.device, chosen.full):
            torch.manual_seed(0)
            x = torch.randn(batch, n, m, device=chosen.device).to(dtype)
            functions = rotations(x, chosen.start)
            found = differences(x, chosen.start, {name: function() for name, function in functions.items()})
            times = [milliseconds(function, chosen.device) for function in functions.values()]
            cells = [f"{value:15.2e}" for value in found.values()] + [f"{value:15.3f}" for value in times]
            print(f"{str(dtype).removeprefix('torch.'):9}{batch:6}{n:6}{m:5}", *cells, sep="", flush=True)


if __name__ == "__main__":
    main()
