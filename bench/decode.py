#!/usr/bin/env python3
"""Decode attention over a paged cache: pyrope's, with the rotation of its queries, against FlashInfer's, in one run.

A figure is the median of the time of a call in a CUDA graph of many, on pages that take turns and together are beyond a
second-level cache; `of copy` is the cache that a call reads by that time, as a part of what a copy moves by its own.
Pages are shuffled. Each result is checked against float64 on some rows before it is timed; FlashInfer's with its own
rope mode (`rope`) turns keys that are turned already, so that only its time means anything. On a CPU it runs too, for a
test of itself.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import torch
from attention import DTYPES, TOLERANCE, seconds

import pyrope

POOL_BYTES = 192 << 20  # of pages at least: three times an H100's second-level cache
COPY_BYTES = 512 << 20
FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
SCALE = 0.02  # of an fp8 cache

Call = Callable[[int], torch.Tensor]  # takes the number of a set


def copy_rate(device: str) -> float:
    """Bytes a second, read and written, of a copy."""
    n = COPY_BYTES if device == "cuda" else 1 << 20
    source, target = torch.zeros(n, dtype=torch.uint8, device=device), torch.empty(n, dtype=torch.uint8, device=device)
    return 2 * n / seconds(device, lambda _: target.copy_(source))


class Case:
    """Requests of one length, the pages of each set of them, and what is timed."""

    def __init__(self, args: argparse.Namespace, requests: int, length: int):
        self.args, self.requests, self.length = args, requests, length
        self.q_heads, self.k_heads = (int(n) for n in args.heads.split("/"))
        self.element = DTYPES.get(args.cache) or FP8[args.cache]
        self.pages = -(-length // args.page_size)  # of a request
        page_bytes = 2 * args.page_size * self.k_heads * args.head_dim * self.element.itemsize
        self.bytes = 2 * requests * length * self.k_heads * args.head_dim * self.element.itemsize
        pool = POOL_BYTES if args.device == "cuda" else 4 * page_bytes * requests * self.pages
        self.sets = max(2, -(-pool // (page_bytes * requests * self.pages)))
        total = self.sets * requests * self.pages
        torch.manual_seed(0)
        make = {"dtype": DTYPES[args.dtype], "device": args.device}
        self.q = torch.randn(requests, self.q_heads, args.head_dim, **make)
        shape = (total, args.page_size, self.k_heads, args.head_dim)
        self.k, self.v = (torch.empty(shape, dtype=self.element, device=args.device) for _ in range(2))
        for cache in (self.k, self.v):
            for part in cache.split(4096):
                x = torch.randn(part.shape, **make)
                part.copy_(x if self.element == DTYPES.get(args.cache) else x / SCALE)
        numbers = torch.randperm(total, dtype=torch.int32, device=args.device)
        self.tables = numbers.view(self.sets, requests, self.pages)
        self.lengths = torch.full((requests,), length, dtype=torch.int32, device=args.device)
        self.out = torch.empty_like(self.q)
        fp8 = None if args.cache == args.dtype else args.cache
        rope = pyrope.FusedRope(
            args.head_dim, self.q_heads, self.k_heads, dtype=args.dtype, device=args.device, theta=5e5,
            cache=pyrope.PagedCache(args.page_size, total), k_out_dtype=fp8, v_out_dtype=fp8,
        )  # fmt: skip
        self.attention = pyrope.DecodeAttention(rope)
        size = self.attention.workspace_size(requests, length)
        self.workspace = torch.zeros(size + 256, dtype=torch.uint8, device=args.device)
        self.turned = self.q.clone()
        last = torch.full((requests,), length - 1, device=args.device)
        rope.apply(self.turned, positions=last, **self.stream())

    def stream(self) -> dict:
        return {} if self.args.device == "cpu" else {"stream": torch.cuda.current_stream().cuda_stream}

    def own(self, i: int, rotated: bool) -> torch.Tensor:
        options = self.stream()
        if self.args.device == "cuda":
            options["workspace"] = self.workspace[-self.workspace.data_ptr() % 256 :]
        caches = [x if self.element == DTYPES.get(self.args.cache) else x.view(torch.uint8) for x in (self.k, self.v)]
        if caches[0].dtype == torch.uint8:
            options |= {"k_scale": SCALE, "v_scale": SCALE}
        self.attention.apply(self.turned if rotated else self.q, self.out, *caches, self.tables[i], self.lengths,
                             max_length=self.length, q_rotated=rotated, **options)  # fmt: skip
        return self.out

    def flashinfer(self) -> Iterator[tuple[str, Call]]:
        import flashinfer

        args = self.args
        scales = {} if self.element == DTYPES.get(args.cache) else {"k_scale": SCALE, "v_scale": SCALE}
        memory = torch.empty(128 << 20, dtype=torch.uint8, device=args.device)
        indptr = torch.arange(self.requests + 1, dtype=torch.int32) * self.pages
        last = torch.full((self.requests,), (self.length - 1) % args.page_size + 1, dtype=torch.int32)
        modes = [(tensor_cores, mode) for mode in ("NONE", "ROPE_LLAMA") for tensor_cores in (False, True)]
        for tensor_cores, mode in modes:
            name = f"flashinfer{' tc' if tensor_cores else ''}{'' if mode == 'NONE' else ' rope'}"
            wrappers = []
            for i in range(self.sets):
                wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(memory, "NHD", use_tensor_cores=tensor_cores)
                wrapper.plan(indptr, self.tables[i].flatten(), last, self.q_heads, self.k_heads, args.head_dim,
                             args.page_size, pos_encoding_mode=mode, rope_theta=5e5, q_data_type=DTYPES[args.dtype],
                             kv_data_type=self.element)  # fmt: skip
                wrappers.append(wrapper)
            q = self.q if mode != "NONE" else self.turned
            yield name, lambda i, w=wrappers, q=q: w[i].run(q, (self.k, self.v), **scales)

    def expected(self, request: int, head: int) -> torch.Tensor:
        """A row in float64."""
        pages = self.tables[0, request].long()
        key_head = head // (self.q_heads // self.k_heads)
        k, v = (x[pages, :, key_head].to(DTYPES[self.args.dtype]).double().flatten(0, 1)[: self.length]
                for x in (self.k, self.v))  # fmt: skip
        scale = 1.0 if self.element == DTYPES.get(self.args.cache) else SCALE
        weights = torch.softmax(k @ self.turned[request, head].double() * scale * self.attention.scale, 0)
        return weights @ v * scale

    def check(self, name: str, out: torch.Tensor) -> None:
        for request in {0, self.requests // 2, self.requests - 1}:
            for head in {0, self.q_heads - 1}:
                error = (out[request, head].double() - self.expected(request, head)).abs().max().item()
                if not error <= TOLERANCE[DTYPES[self.args.dtype]]:
                    raise SystemExit(f"{name}: head {head} of request {request} is off by {error}")

    def measure(self) -> dict[str, float]:
        times = {}

        def time(name: str, call: Call) -> None:
            try:
                if "rope" not in name:
                    self.check(name, call(0))
                times[name] = seconds(self.args.device, call, self.sets)
            except (RuntimeError, ValueError) as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)

        time("fused", lambda i: self.own(i, False))
        time("core", lambda i: self.own(i, True))
        if self.args.device == "cuda":
            try:
                for name, call in self.flashinfer():
                    time(name, call)
            except (ImportError, RuntimeError, ValueError, TypeError) as error:
                print(f"flashinfer: {str(error).splitlines()[0]}", file=sys.stderr)
        return times


def report(case: Case, times: dict[str, float], rate: float) -> dict:
    text = "  ".join(f"{name} {t * 1e6:.1f} ({case.bytes / t / rate:.0%})" for name, t in times.items())
    print(f"{case.requests} x {case.length}, {case.bytes / 1e6:.0f} MB: {text}", flush=True)
    return {
        "requests": case.requests,
        "length": case.length,
        "bytes": case.bytes,
        "us": {name: t * 1e6 for name, t in times.items()},
        "of_copy": {name: case.bytes / t / rate for name, t in times.items()},
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--requests", nargs="+", type=int, default=[1, 8, 32, 128])
    p.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    p.add_argument("--heads", default="32/8", metavar="Q/K")
    p.add_argument("--head-dim", type=int, default=128)
    p.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    p.add_argument("--cache", choices=[*DTYPES, *FP8], help="element type of the cache (default: --dtype)")
    p.add_argument("--page-size", type=int, default=16)
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--json", type=pathlib.Path, metavar="FILE")
    args = p.parse_args(argv)
    args.cache = args.cache or args.dtype
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    rate = copy_rate(args.device)
    shape = f"{args.heads} heads of {args.head_dim}, q {args.dtype}, cache {args.cache}, pages of {args.page_size}"
    print(f"{name}, {shape}; copy {rate / 1e9:.0f} GB/s; microseconds (of copy); {pyrope.build_info()}")
    rows = []
    for length in args.lengths:
        for requests in args.requests:
            case = Case(args, requests, length)
            rows.append(report(case, case.measure(), rate))
            del case
    if args.json:
        args.json.write_text(
            json.dumps({"device": name, "copy": rate, "cache": args.cache, "rows": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
