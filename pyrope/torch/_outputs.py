"""What a call without side effects returns."""

from collections.abc import Callable
from typing import Any

import torch
from torch import empty_like

import pyrope
from pyrope.torch._launch import Options, launch
from pyrope.torch._layouts import OUT, addressable

Launch = Callable[[Any, str, Any, Any, Options], None]
CACHED = ("k", "v", "k_nope")
TABULATED = ("cos_sin", "radians")  # angles that are read from rows, of which a token may have none


def may_skip(rope: Any, options: Options) -> bool:
    """Whether a call may leave tokens alone."""
    skips = "positions" in options and rope.skip is not None
    return skips or "indptr" in options or "set_ids" in options or rope.angle in TABULATED


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
        if OUT[name] in options or (fused is not None and fused.cache is not None and name in CACHED):
            continue
        out = empty_like(x) if x.stride(-1) == 1 else empty_like(x, memory_format=torch.contiguous_format)
        if fused is not None and quantised(fused, name) is not None:
            out = empty_like(out, dtype=quantised(fused, name))
        outs[name] = out
    return outs


def compute(rope: Any, layout: str, rows: dict[str, Any], options: Options, launch: Launch = launch) -> dict[str, Any]:
    """The results in tensors of their own, by name. A token that is left alone is returned as it is, where quantised as
    zeros."""
    outs = outputs_like(rope, rows, options)
    skips = may_skip(rope, options)
    call = {"q": None, "k": None, **options}
    for name, x in rows.items():
        call[name] = x if addressable(x) else x.contiguous()
    for name, out in outs.items():
        if skips and out.dtype != rows[name].dtype:
            out.zero_()
        call[OUT[name]] = out
    if skips:
        call["skipped"] = "copy"
    launch(rope, layout, call.pop("q"), call.pop("k"), call)
    return outs
