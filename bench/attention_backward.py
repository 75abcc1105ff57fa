#!/usr/bin/env python3
"""Gradients of attention and of the rotation before it: pyrope's backward against the fastest there is, followed by
pyrope's inverse rotation of the gradients of q and k, in one run.

As bench/attention.py: medians of calls in a CUDA graph, each result checked against float64 before it is timed. `core`
is pyrope's backward without the inverse rotation, `deterministic` with it and the same bits in every run.
"""

import argparse
import math
import sys
from collections.abc import Callable

import attention
import torch
from attention import SETS, Case, cores, seconds

import pyrope
import pyrope.torch

TOLERANCE = {torch.bfloat16: 2**-6, torch.float16: 2**-9}  # of a gradient's norm: roundings of weights and of sums

Gradients = tuple[torch.Tensor, ...]


def expected(case: Case, i: int) -> Gradients:
    """dq, dk and dv of the first key head of the first sequence in float64, before dq and dk are turned back."""
    q, k, v, d_out = (x[0].double() for x in (*case.turned[i], case.d_out[i]))
    group, scale = q.shape[1] // k.shape[1], case.attention.scale
    k, v, dk, dv, dq = k[:, 0], v[:, 0], torch.zeros_like(k[:, 0]), torch.zeros_like(v[:, 0]), []
    for head in range(group):
        scores = q[:, head] @ k.T * scale
        if case.attention.causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), -math.inf)
        weights = scores.softmax(-1)
        d_weights = d_out[:, head] @ v.T
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * scale
        dq.append(d_scores @ k)
        dk += d_scores.T @ q[:, head]
        dv += weights.T @ d_out[:, head]
    return torch.stack(dq, 1), dk, dv


class BackwardCase(Case):
    def __init__(self, args: argparse.Namespace, tokens: int, heads: tuple[int, int]):
        super().__init__(args, tokens, heads)
        self.d_out = [torch.randn_like(out) for out in self.outputs]
        self.gradients = [tuple(map(torch.empty_like, x)) for x in self.sets]
        shape = self.batch, heads[0], tokens
        self.lse = [torch.empty(shape, dtype=torch.float32, device=args.device) for _ in range(SETS)]
        for i, (q, k, v) in enumerate(self.turned):
            options = {"q_rotated": True, "k_rotated": True} | self.on_device(self.workspace)
            self.attention.apply(q, k, v, self.outputs[i], lse=self.lse[i], **options)
        size = self.attention.backward_workspace_size(tokens, num_sequences=self.batch)
        self.workspace = torch.empty(size + 256, dtype=torch.uint8, device=args.device)

    def on_device(self, workspace: torch.Tensor) -> dict:
        if self.args.device == "cpu":
            return {}
        stream = torch.cuda.current_stream().cuda_stream
        return {"workspace": workspace[-workspace.data_ptr() % 256 :], "stream": stream}

    def differentiate(self, i: int, rotated: bool, deterministic: bool = False) -> Gradients:
        options = {"q_rotated": rotated, "k_rotated": rotated, "deterministic": deterministic}
        options |= self.on_device(self.workspace)
        given = self.d_out[i], *self.turned[i], self.outputs[i], self.lse[i]
        self.attention.backward(*given, *self.gradients[i], **options)
        return self.gradients[i]

    def check(self, name: str, got: Gradients, turned_back: bool) -> None:
        dq, dk, dv = got
        if turned_back:
            dq, dk = pyrope.torch.apply(self.attention.rope, dq, dk)
        group = self.heads[0] // self.heads[1]
        for part, x, y in zip(("dq", "dk", "dv"), (dq[0, :, :group], dk[0, :, 0], dv[0, :, 0]), self.want, strict=True):
            error = ((x.double() - y).norm() / y.norm()).item()
            if not error <= TOLERANCE[dq.dtype]:
                raise SystemExit(f"{name}: {part} is off by {error} of its norm")

    def measure(self) -> dict:
        device, times = self.args.device, {}
        self.want = expected(self, 0)
        stream = torch.cuda.Stream() if device == "cuda" else None
        calls: dict[str, Callable[[int], Gradients]] = {
            "fused": lambda i: self.differentiate(i, False),
            "core": lambda i: self.differentiate(i, True),
            "deterministic": lambda i: self.differentiate(i, False, True),
        }
        for name, core in cores(device, not self.args.full):
            # A gradient is computed on the stream on which its function was.
            with torch.cuda.stream(stream):
                inputs = [[x.detach().requires_grad_() for x in one] for one in self.turned]
                try:
                    outs = [core(*one) for one in inputs]
                except (RuntimeError, ValueError) as error:
                    print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
                    continue

            def alone(i: int, outs=outs, inputs=inputs) -> Gradients:
                return torch.autograd.grad(outs[i], inputs[i], self.d_out[i], retain_graph=True)

            def pair(i: int, alone=alone) -> Gradients:
                dq, dk, dv = alone(i)
                pyrope.torch.apply_(self.attention.rope, dq, dk, inverse=True)
                return dq, dk, dv

            calls |= {name: alone, f"pair {name}": pair}
        for name, call in calls.items():
            try:
                with torch.cuda.stream(stream):
                    got = call(0)
                if stream:
                    stream.synchronize()
                self.check(name, got, name in ("fused", "deterministic") or name.startswith("pair "))
                times[name] = seconds(device, call, stream=stream)
            except (RuntimeError, ValueError) as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return times

    def flops(self) -> float:
        """Of the five products."""
        return super().flops() * 2.5


def main(argv: list[str] | None = None) -> int:
    return attention.main(argv, BackwardCase, __doc__)


if __name__ == "__main__":
    sys.exit(main())
