"""Exact angles instead of cosines and sines: positions, and the Rope of the model's configuration."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch

import pyrope
import pyrope.torch
from pyrope.compat._ropes import made_once
from pyrope.compat._training import Tensors, split_or_not
from pyrope.torch._layouts import Layout
from pyrope.torch._specs import arguments_of, rope_of, spec_of

# Frequencies that are found anew for every length: of them a model's own cosines and sines are taken.
BY_LENGTH = (pyrope.DynamicNTK, pyrope.LongRoPE)


class Angles(NamedTuple):
    """What a model passes on in the place of cos, of sin and of complex numbers."""

    spec: str  # the Rope as text: a constant of graphs
    positions: torch.Tensor  # [batch or 1, seq], with sections [sections, batch, seq]

    def to(self, *_: Any, **__: Any) -> Self:
        return self

    def turn(self, xs: tuple[torch.Tensor | None, ...], layout: Layout, out_layout: str | None) -> Tensors:
        def turn(q: torch.Tensor | None, k: torch.Tensor | None, q_heads: int, k_heads: int) -> Tensors:
            x = q if q is not None else k
            assert x is not None
            rope = rope_of_heads(self.spec, x.shape[-1], q_heads, k_heads, x.dtype, x.device.type, out_layout)
            return list(pyrope.torch.apply(rope, q, k, layout=layout, positions=self.positions))

        return split_or_not(turn, xs, layout.index("h"))


@made_once
def rope_of_heads(
    spec: str, dim: int, q_heads: int, k_heads: int, dtype: Any, device: str, out_layout: Any
) -> pyrope.Rope:
    """By the Rope for tensors of other heads; of a head's part that turns, where they hold no more."""
    rope = rope_of(spec)
    _, options = arguments_of(rope)
    options = {**options, "dtype": dtype, "device": device}
    if dim == rope.rotary_dim:
        options["rotary_offset"] = 0
    elif dim != rope.head_dim:
        raise ValueError(
            f"q: heads of {dim} elements, {rope.head_dim} or {rope.rotary_dim} of them in the configuration"
        )
    for name in ("num_v_heads", "v_head_dim"):
        options.pop(name, None)
    if out_layout is not None:
        return pyrope.FusedRope(dim, q_heads, k_heads, **options, out_layout=out_layout)
    return type(rope)(dim, q_heads, k_heads, **options)


def ropes_of(module: torch.nn.Module) -> dict[str | None, pyrope.Rope]:
    """By type of layers, of a module that makes cos and sin: those that its configuration says all of."""
    parameters = list(inspect.signature(module.forward).parameters)
    config: Any = getattr(module, "config", None)
    if parameters[:2] != ["x", "position_ids"] or config is None:
        return {}
    types = set(getattr(config, "layer_types", None) or ()) if "layer_type" in parameters else {None}
    found = {layer_type: _rope_of(config, layer_type) for layer_type in types}
    return {name: rope for name, rope in found.items() if rope is not None and not isinstance(rope.scaling, BY_LENGTH)}


def _rope_of(config: Any, layer_type: str | None) -> pyrope.Rope | None:
    """Of all layers of a type that turn; None if they differ, or if it is not known."""
    layers = [layer_type] if layer_type is not None else [None, *range(getattr(config, "num_hidden_layers", 0))]
    found = {}
    for layer in layers:
        try:
            rope: Any = pyrope.FusedRope.from_hf_config(config, layer_type=layer, device="cpu")
            if rope.sections is None:
                rope = pyrope.Rope.from_hf_config(config, layer_type=layer, device="cpu")
        except (ValueError, pyrope.UnsupportedError):
            continue
        found[spec_of(rope)] = rope
        if layer is None:
            break
    return next(iter(found.values())) if len(found) == 1 else None


def forward_of(ropes: dict[str | None, pyrope.Rope], single: bool) -> Callable[..., Any]:
    """The forward of a module that makes cos and sin, or one tensor of complex numbers."""
    specs = {name: spec_of(rope) for name, rope in ropes.items()}
    streams = {name: len(getattr(rope, "sections", None) or ()) for name, rope in ropes.items()}

    def forward(self: torch.nn.Module, x: torch.Tensor, position_ids: torch.Tensor, layer_type: Any = None) -> Any:
        if position_ids is None or layer_type not in specs:
            return type(self).forward(self, x, position_ids, layer_type)
        if streams[layer_type] and position_ids.ndim == 2:
            position_ids = position_ids.expand(streams[layer_type], *position_ids.shape)
        angles = Angles(specs[layer_type], position_ids)
        return angles if single else (angles, angles)

    return forward
