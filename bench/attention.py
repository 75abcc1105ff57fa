#!/usr/bin/env python3
"""Attention with the rotation of its queries and keys: pyrope's fused call against a rotation followed by the fastest
attention there is, in one run.

A figure is the median of the time of a call in a CUDA graph of many, on tensors that take turns. `pair` is pyrope's
rotation of q and k, out of place, and then an attention; what it is of the fastest attention over `fused` is the ratio.
Each result is checked against float64 on some rows before it is timed. On a CPU it runs too, for a test of itself.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import pyrope
import pyrope.torch

SETS = 2  # of tensors that take turns: together beyond a second-level cache
CALLS, REPEATS = 10, 30  # in a graph, at least a call of each set; of it
GRAPH_SECONDS, ALL_SECONDS = 0.02, 1.0  # fewer of long ones: a graph, and all repeats, take no more
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # of values below 2: two roundings of the weights and sums
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # [batch, tokens, heads, dim]
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(backend: SDPBackend, causal: bool) -> Call:
    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, enable_gqa=q.shape[2] != k.shape[2]
            ).transpose(1, 2)

    return call


def flash_attention_4(causal: bool) -> Call:
    from flash_attn.cute import flash_attn_func

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = flash_attn_func(q, k, v, causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return call


def flashinfer(causal: bool) -> Call:
    import flashinfer

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if len(q) != 1:
            raise ValueError("a batch of one sequence")
        return flashinfer.single_prefill_with_kv_cache(q[0], k[0], v[0], causal=causal, backend="fa3")[None]

    return call


def cores(device: str, causal: bool) -> Iterator[tuple[str, Call]]:
    """Attentions of the peers that are there."""
    if device == "cpu":
        yield "sdpa", sdpa(SDPBackend.MATH, causal)
        return
    yield "cudnn", sdpa(SDPBackend.CUDNN_ATTENTION, causal)
    yield "flash", sdpa(SDPBackend.FLASH_ATTENTION, causal)
    for name, make in (("fa4", flash_attention_4), ("flashinfer", flashinfer)):
        try:
            yield name, make(causal)
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)


def expected(attention: pyrope.RopeAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: int,
             head: int) -> torch.Tensor:  # fmt: skip
    """A row of one head of the first sequence in float64, from rotated q and k."""
    group = q.shape[2] // k.shape[2]
    keys = row + 1 + k.shape[1] - q.shape[1] if attention.causal else k.shape[1]
    one = [x[0, :keys, head // group].double() for x in (k, v)]
    return torch.softmax(one[0] @ q[0, row, head].double() * attention.scale, 0) @ one[1]


def check(name: str, attention: pyrope.RopeAttention, turned: Tensors, out: torch.Tensor) -> None:
    q = turned[0]
    for row in {0, q.shape[1] // 3, q.shape[1] - 1}:
        for head in {0, q.shape[2] - 1}:
            want = expected(attention, *turned, row, head)
            error = (out[0, row, head].double() - want).abs().max().item()
            if not error <= TOLERANCE[q.dtype]:
                raise SystemExit(f"{name}: row {row} of head {head} is off by {error}")


def seconds(device: str, call: Callable[[int], object], sets: int = SETS, stream: Any = None) -> float:
    """Of one call, the median. call: takes the number of a set. stream: to capture on; None: any."""
    with torch.cuda.stream(stream):
        for i in range(sets):
            call(i)
    if device == "cpu":
        times = []
        for i in range(3):
            begin = time.perf_counter()
            call(i % sets)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        begin.record()
        call(0)
        end.record()
    end.synchronize()
    once = begin.elapsed_time(end) / 1e3
    calls = max(sets, min(CALLS, int(GRAPH_SECONDS / once)))
    repeats = max(5, min(REPEATS, int(ALL_SECONDS / (once * calls))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(calls):
            call(i % sets)
    times = []
    for i in range(repeats + 3):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) / calls / 1e3)
    return statistics.median(times)


class Case:
    """A shape, its tensors and what is timed of it."""

    def __init__(self, args: argparse.Namespace, tokens: int, heads: tuple[int, int]):
        self.args, self.tokens, self.heads = args, tokens, heads
        self.batch = max(1, min(args.batch, args.batch * 4096 // tokens))
        rope = pyrope.Rope(args.head_dim, *heads, dtype=args.dtype, device=args.device, theta=5e5)
        self.attention = pyrope.RopeAttention(rope, causal=not args.full)
        torch.manual_seed(0)
        self.sets = [self.random() for _ in range(SETS)]
        self.turned = [(*pyrope.torch.apply(rope, q, k), v) for q, k, v in self.sets]
        self.outputs = [torch.empty_like(q) for q, _, _ in self.sets]
        size = self.attention.workspace_size(tokens, num_sequences=self.batch)
        self.workspace = torch.zeros(size + 256, dtype=torch.uint8, device=args.device)

    def random(self) -> Tensors:
        q_heads, k_heads = self.heads
        shape = (self.batch, self.tokens), (self.args.head_dim,)
        make = {"dtype": DTYPES[self.args.dtype], "device": self.args.device}
        q, k, v = (torch.randn(*shape[0], n, *shape[1], **make) for n in (q_heads, k_heads, k_heads))
        return q, k, v

    def own(self, i: int, rotated: bool) -> torch.Tensor:
        q, k, v = self.turned[i] if rotated else self.sets[i]
        options = {"q_rotated": rotated, "k_rotated": rotated}
        if self.args.device != "cpu":
            start = -self.workspace.data_ptr() % 256
            options |= {"workspace": self.workspace[start:], "stream": torch.cuda.current_stream().cuda_stream}
        self.attention.apply(q, k, v, self.outputs[i], **options)
        return self.outputs[i]

    def pair(self, i: int, core: Call) -> torch.Tensor:
        q, k, v = self.sets[i]
        return core(*pyrope.torch.apply(self.attention.rope, q, k), v)

    def measure(self) -> dict:
        device, times = self.args.device, {}
        calls: dict[str, Callable[[int], torch.Tensor]] = {
            "fused": lambda i: self.own(i, False), "core": lambda i: self.own(i, True),
        }  # fmt: skip
        for name, core in cores(device, not self.args.full):
            calls[name] = lambda i, core=core: core(*self.turned[i])
            calls[f"pair {name}"] = lambda i, core=core: self.pair(i, core)
        for name, call in calls.items():
            try:
                check(name, self.attention, self.turned[0], call(0))
                times[name] = seconds(device, call)
            except (RuntimeError, ValueError) as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
        rope = self.attention.rope
        times["pass"] = seconds(device, lambda i: pyrope.torch.apply(rope, *self.sets[i][:2]))
        return times

    def flops(self) -> float:
        """Of the two products."""
        whole = 4 * self.batch * self.heads[0] * self.tokens**2 * self.args.head_dim
        return whole if self.args.full else whole / 2


def report(case: Case, times: dict) -> dict:
    pairs = {name: t for name, t in times.items() if name.startswith("pair ")}
    fastest = min(pairs, key=lambda name: pairs[name])
    ratio = pairs[fastest] / times["fused"]
    text = "  ".join(
        f"{name} {t * 1e6:.1f}" + (f" ({case.flops() / t / 1e12:.0f} TF)" if name != "pass" else "")
        for name, t in times.items()
    )
    shape = f"{case.batch} x {case.tokens}, {case.heads[0]}/{case.heads[1]} heads of {case.args.head_dim}"
    print(f"{shape}: {fastest} / fused {ratio:.2f}\n    {text}", flush=True)
    return {
        "batch": case.batch,
        "tokens": case.tokens,
        "heads": case.heads,
        "head_dim": case.args.head_dim,
        "causal": not case.args.full,
        "us": {name: t * 1e6 for name, t in times.items()},
        "ratio": ratio,
    }


def parse(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192, 16384])
    p.add_argument("--heads", nargs="+", default=["32/32", "32/8"], metavar="Q/K")
    p.add_argument("--head-dim", type=int, default=128)
    p.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    p.add_argument("--batch", type=int, default=4, help="sequences up to 4096 tokens, fewer beyond (default: 4)")
    p.add_argument("--full", action="store_true", help="without a causal mask")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--json", type=pathlib.Path, metavar="FILE")
    return p.parse_args(argv)


def main(argv: list[str] | None = None, make: type[Case] = Case, description: str | None = __doc__) -> int:
    args = parse(argv, description)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}, {args.dtype}, {'full' if args.full else 'causal'}, microseconds; {pyrope.build_info()}")
    rows = []
    for heads in args.heads:
        q_heads, _, k_heads = heads.partition("/")
        for tokens in args.tokens:
            case = make(args, tokens, (int(q_heads), int(k_heads)))
            rows.append(report(case, case.measure()))
    mean = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))
    print(f"pair / fused, geometric mean: {mean:.2f}")
    if args.json:
        args.json.write_text(json.dumps({"device": name, "dtype": args.dtype, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
