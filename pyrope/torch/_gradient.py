"""Gradients: the inverse rotation of the outputs' gradients, and the norm's by torch operations in float32.

The rotation is linear, so that only positions are kept. The core has no operation for the backward of a norm; for that
q, k and the weights are kept and normalised anew. Both are made of differentiable operations, so that there are second
derivatives.
"""

from collections.abc import Callable
from typing import Any

import torch

import pyrope
from pyrope.torch._launch import Options
from pyrope.torch._layouts import ROWS
from pyrope.torch._norms import norm_gradients
from pyrope.torch._outputs import may_skip
from pyrope.torch._specs import marker_of, returning, rotation_of

WEIGHTS = ("q_weight", "k_weight")
DIFFERENTIABLE = (*ROWS, *WEIGHTS)

# (rope, layout, rows, options) to outputs by name, differentiable in rows and weights.
Apply = Callable[[pyrope.Rope, str, dict[str, Any], Options], dict[str, Any]]


def has_norm(rope: pyrope.Rope) -> bool:
    return getattr(rope, "norm", None) is not None


def kept(rope: pyrope.Rope, name: str) -> bool:
    """Whether the backward needs an argument that is a tensor."""
    return name not in ROWS or (has_norm(rope) and name in ("q", "k"))


def backward(apply: Apply, rope: pyrope.Rope, layout: str, saved: Options, grads: dict[str, Any],
             wanted: set[str]) -> dict[str, Any]:  # fmt: skip
    """Gradients by name.

    saved : the call's arguments that are kept
    grads : of the outputs, by name
    wanted : the names of the inputs whose gradients are asked for
    """
    result: dict[str, Any] = {name: grads[name] for name in ROWS[2:] if name in grads}
    rows = {name: grads[name] for name in ROWS[:2] if name in grads and wanted & {name, f"{name}_weight"}}
    options = {name: x for name, x in saved.items() if name not in DIFFERENTIABLE}
    if not has_norm(rope):
        options["inverse"] = not options["inverse"]
        turns = rows and rope.rotary_dim
        return {**result, **(apply(returning(rope), layout, rows, options) if turns else rows)}
    for name in rows:
        result |= _through_norm(apply, rope, layout, name, saved, options, rows[name])
    return {name: x for name, x in result.items() if name in wanted}


def _through_norm(apply: Apply, rope: Any, layout: str, name: str, saved: Options, options: Options,
                  grad: torch.Tensor) -> dict[str, Any]:  # fmt: skip
    """Gradients of q or k and its weight."""
    rotation, x, weight = rotation_of(rope), saved[name], saved.get(f"{name}_weight")

    def turn(y: torch.Tensor, inverse: bool) -> torch.Tensor:
        if not rope.rotary_dim:
            return y
        one = rotation if inverse == options["inverse"] else returning(rotation)
        return apply(one, layout, {name: y}, {**options, "inverse": inverse})[name]

    inverse = options["inverse"]
    if weight is None:  # this one is only rotated
        return {name: turn(grad.float(), not inverse).to(x.dtype)}
    # Of a token that is left alone, the gradient is the output's.
    moved = _moved(apply, rope, layout, x, options)
    y, dy = x.float(), grad.float()
    if rope.norm.after:
        dx, dw = norm_gradients(rope, layout, turn(y, inverse), weight, _where(moved, dy))
        dx = turn(dx, not inverse)
    else:
        dz = turn(dy, not inverse)
        dx, dw = norm_gradients(rope, layout, y, weight, _where(moved, dz))
    if moved is not None:
        dx = torch.where(moved, dx, dy)
    return {name: dx.to(x.dtype), f"{name}_weight": dw.to(weight.dtype)}


def _where(moved: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x if moved is None else torch.where(moved, x, 0)


def _moved(apply: Apply, rope: Any, layout: str, x: torch.Tensor, options: Options) -> torch.Tensor | None:
    """[.., 1, 1] as x: whether the call turns a token; None if it turns all.

    Read off what the core writes, since it leaves tokens alone for reasons that are data on the device: of a pair of
    infinities that turns, one element at least is NaN; those of a token that is left alone are returned as they are.
    """
    if not may_skip(rope, options):
        return None
    sizes = {"h": 1, "d": rope.rotary_dim or 2}
    letters = layout if x.ndim == len(layout) else "td"
    shape = [sizes.get(letter, n) for letter, n in zip(letters, x.shape, strict=True)]
    pairs = torch.full(shape, torch.inf, device=x.device)
    return apply(marker_of(rope), layout, {"q": pairs}, options)["q"].isnan().any(-1, keepdim=True)
