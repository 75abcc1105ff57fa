"""pyrope.torch.RotaryEmbedding."""

from typing import Any, Self

import torch

import pyrope
from pyrope.torch._functions import call
from pyrope.torch._layouts import Layout, check_layout
from pyrope.torch._norms import neutral_weight
from pyrope.torch._specs import spec_of


class RotaryEmbedding(torch.nn.Module):
    """Rotary position embedding of q and k, as :func:`pyrope.torch.apply` has it.

    Parameters
    ----------
    rope : pyrope.Rope or pyrope.FusedRope
        The parameters. Its dtype and device do not matter: each call takes those of q, so that the module follows
        ``.to(...)`` and autocast like any other.
    layout : {"bshd", "sbhd", "bhsd", "thd"}
        Of q and k.

    Attributes
    ----------
    q_weight, k_weight : torch.nn.Parameter or None
        With a norm, its weights: ``[head_dim]``, or ``[heads, head_dim]`` across heads, so that the norm multiplies by
        1. Calls take them in their own dtype, float32 beside q of another one too.

    Examples
    --------
    >>> import pyrope, torch
    >>> from pyrope.torch import RotaryEmbedding
    >>> rotary = RotaryEmbedding(pyrope.Rope(64, 8, 2, device="cpu"), layout="bhsd")
    >>> q, k = rotary(torch.randn(2, 8, 16, 64), torch.randn(2, 2, 16, 64))
    """

    q_weight: torch.nn.Parameter | None
    k_weight: torch.nn.Parameter | None

    def __init__(self, rope: pyrope.Rope, layout: Layout = "bshd") -> None:
        super().__init__()
        check_layout(layout)
        spec_of(rope)  # refuses what is none
        self.rope, self.layout = rope, layout
        norm = getattr(rope, "norm", None)
        for name, heads in (("q_weight", rope.num_q_heads), ("k_weight", rope.num_k_heads)):
            weight = None
            if norm is not None and heads:
                shape = (heads, rope.head_dim) if norm.across_heads else (rope.head_dim,)
                weight = torch.nn.Parameter(torch.full(shape, neutral_weight(norm)))
            self.register_parameter(name, weight)

    @classmethod
    def from_hf_config(cls, config: object, layout: Layout = "bhsd", *, fused: bool = False, **options: Any) -> Self:
        """The module of a Hugging Face configuration: what :meth:`pyrope.Rope.from_hf_config` reads, with its options;
        ``fused``: as a FusedRope.
        """
        kind = pyrope.FusedRope if fused else pyrope.Rope
        return cls(kind.from_hf_config(config, **{"device": "cpu", **options}), layout)

    def forward(
        self,
        q: torch.Tensor | None,
        k: torch.Tensor | None = None,
        *,
        positions: torch.Tensor | None = None,
        offset: int = 0,
        inverse: bool = False,
        **options: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """Arguments and results are those of :func:`pyrope.torch.apply`."""
        first = q if q is not None else k
        if first is None:
            raise TypeError("q and k: both None, at least one must be given")
        weight_dtype = None
        for name, x, weight in (("q_weight", q, self.q_weight), ("k_weight", k, self.k_weight)):
            if weight is not None and x is not None and name not in options:
                options[name], weight_dtype = weight, weight.dtype
        changes = first.dtype, first.device.type, weight_dtype
        return call(self.rope, q, k, self.layout, positions, offset, inverse, options, changes)

    def extra_repr(self) -> str:
        return f"{self.rope!r}, layout={self.layout!r}"
