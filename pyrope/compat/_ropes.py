"""Ropes of calls that say everything anew: each is made once, also for functions that dynamo traces."""

import functools
from collections.abc import Callable
from typing import Any

import torch

import pyrope


class Traced:
    """Ropes of calls that dynamo traces, as attributes: it can guard those, but not what lru_cache returns."""


TRACED = Traced()


def made_once(make: Callable[..., pyrope.Rope]) -> Callable[..., Any]:
    """The function, which runs once for equal arguments: numbers, text, dtypes, classes and tuples of them."""
    cached = functools.lru_cache(maxsize=512)(make)

    @torch.compiler.assume_constant_result
    def traced_name(*arguments: Any, **options: Any) -> str:
        rope = cached(*arguments, **options)
        name = f"rope_{id(rope)}"
        setattr(TRACED, name, rope)
        return name

    def rope_of(*arguments: Any, **options: Any) -> pyrope.Rope:
        if torch.compiler.is_dynamo_compiling():
            rope: pyrope.Rope = getattr(TRACED, traced_name(*arguments, **options))
            return rope
        return cached(*arguments, **options)

    return rope_of


@made_once
def rope_of(
    head_dim: int, q_heads: int, k_heads: int, rotary_dim: int, neox: bool, dtype: Any, device: Any,
    pages: tuple[int, int, str] | None = None, norm: tuple[Any, ...] | None = None,
    scaling: tuple[Any, ...] | None = None, xpos: tuple[Any, ...] | None = None, skip_q: bool = False, **options: Any,
) -> pyrope.FusedRope:  # fmt: skip
    """pages, norm, xpos: the first arguments of PagedCache, RMSNorm and XPos. scaling: its class and arguments. They
    are made here, once, as numbers are what is quick to look up."""
    if scaling is not None:
        make, *arguments = scaling
        options["scaling"] = make(*arguments)
    if pages is not None:
        options["cache"] = pyrope.PagedCache(*pages, skip_q=skip_q)
    if norm is not None:
        options["norm"] = pyrope.RMSNorm(*norm)
    if xpos is not None:
        options["xpos"] = pyrope.XPos(*xpos)
    return pyrope.FusedRope(
        head_dim, q_heads, k_heads, rotary_dim=rotary_dim, layout="neox" if neox else "gptj", dtype=dtype,
        device=device, **options,
    )  # fmt: skip
