"""What a call without side effects returns."""

from collections.abc import Callable
from typing import Any

import torch

import pyrope
from pyrope.torch._launch import Options, launch
from pyrope.torch._layouts import addressable

Launch = Callable[[Any, str, Any, Any, Options], None]

TABULATED = ("cos_sin", "radians")  # angles that are read from rows, of which a token may have none
MAY_SKIP = frozenset(("positions", "indptr", "set_ids"))  # with one of them, tokens may be left alone


def quantised(rope: pyrope.FusedRope, name: str) -> torch.dtype | None:
    """What a tensor is quantised to."""
    dtype = getattr(rope, f"{name[0]}_out_dtype")
    if dtype in ("float4_e2m1fn", "q8_0", "q4_0"):
        raise ValueError(f"{name}_out: required with {name[0]}_out_dtype={dtype!r}, whose rows are bytes")
    return None if dtype is None else getattr(torch, dtype)


def outputs_like(rope: pyrope.Rope, rows: dict[str, Any], options: Options) -> dict[str, Any]:
    """Tensors for the results of what is given, has no output yet and goes to no cache; of strides that the core can
    write."""
    fused = rope if isinstance(rope, pyrope.FusedRope) else None
    outs = {}
    for name, x in rows.items():
        if f"{name}_out" in options or (fused is not None and fused.cache is not None and name in ("k", "v")):
            continue
        out = torch.empty_like(x) if addressable(x) else torch.empty_like(x, memory_format=torch.contiguous_format)
        if fused is not None and quantised(fused, name) is not None:
            out = torch.empty_like(out, dtype=quantised(fused, name))
        outs[name] = out
    return outs


def compute(rope: Any, layout: str, rows: dict[str, Any], options: Options, launch: Launch = launch) -> dict[str, Any]:
    """The results in tensors of their own, by name.

    The core leaves the output of a token that it leaves alone unwritten. Where there may be one, outputs begin as
    copies of the inputs: such a token is returned as it is.
    """
    outs = outputs_like(rope, rows, options)
    skips = not MAY_SKIP.isdisjoint(options) or rope.angle in TABULATED
    call, sources = {**options}, {**rows}
    for name, out in outs.items():
        x = rows[name]
        readable = addressable(x)
        if out.dtype != x.dtype:
            if skips:
                out.zero_()
        elif skips or not readable:
            out.copy_(x)
            if name in ("q", "k"):
                sources[name] = out  # in place
                continue
        if not readable:
            sources[name] = x.contiguous()
        call[f"{name}_out"] = out
    q, k = sources.pop("q", None), sources.pop("k", None)
    call.update(sources)
    launch(rope, layout, q, k, call)
    return outs
