"""What a call without side effects returns."""

from collections.abc import Callable
from typing import Any

import torch

import pyrope
from pyrope.torch._launch import Options, launch
from pyrope.torch._layouts import addressable

Launch = Callable[[Any, str, Any, Any, Options], None]

MAY_SKIP = ("positions", "indptr", "set_ids")  # with one of them, tokens may be left alone


def out_dtype(rope: pyrope.Rope, name: str) -> torch.dtype | None:
    """What a tensor is quantised to."""
    quantised = getattr(rope, f"{name[0]}_out_dtype", None)
    return None if quantised is None else getattr(torch, quantised)


def appended(rope: pyrope.Rope) -> tuple[str, ...]:
    """What has no output, since it goes to a cache."""
    return () if getattr(rope, "cache", None) is None else ("k", "v")


def outputs_like(rope: pyrope.Rope, rows: dict[str, Any], options: Options) -> dict[str, Any]:
    """Tensors for the results of what is given and has no output yet, of strides that the core can write."""
    left_out = appended(rope)
    return {
        name: torch.empty_like(
            x,
            dtype=out_dtype(rope, name),
            memory_format=torch.preserve_format if addressable(x) else torch.contiguous_format,
        )
        for name, x in rows.items()
        if name not in left_out and options.get(f"{name}_out") is None
    }


def compute(rope: Any, layout: str, rows: dict[str, Any], options: Options, launch: Launch = launch) -> dict[str, Any]:
    """The results in tensors of their own, by name.

    The core leaves the output of a token that it leaves alone unwritten. Where there may be one, outputs begin as
    copies of the inputs: such a token is returned as it is.
    """
    outs = outputs_like(rope, rows, options)
    skips = rope.angle == "cos_sin" or any(options.get(name) is not None for name in MAY_SKIP)
    options, sources = {**options}, dict(rows)
    for name, out in outs.items():
        x = rows[name]
        copied = out.dtype == x.dtype and (skips or not addressable(x))
        if copied:
            out.copy_(x)
        elif skips:
            out.zero_()
        if copied and name in ("q", "k"):
            sources[name] = out  # in place
            continue
        if not addressable(x):
            sources[name] = x.contiguous()
        options[f"{name}_out"] = out
    q, k = (sources.pop(name, None) for name in ("q", "k"))
    launch(rope, layout, q, k, {**options, **sources})
    return outs
