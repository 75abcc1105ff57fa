"""The gradient of attention: of eager calls, and of the operators torch.ops.pyrope.attention and attention_backward,
which torch.compile and torch.export record.

What is kept of q and k is what was multiplied: no more memory than q and k, which themselves need not be kept.
"""

from typing import Any

import torch

import pyrope
from pyrope.torch._attention_launch import (
    NAMES,
    SCHEMA,
    TENSORS,
    compute,
    differentiate,
    gradients_like,
    options_of,
    results_like,
)  # fmt: skip
from pyrope.torch._operators import library
from pyrope.torch._specs import attention_of

library.define(
    f"attention(Tensor q, Tensor k, Tensor v, {SCHEMA}, bool keeps, str layout, str attention) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    f"attention_backward(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {SCHEMA}, "
    "str layout, str attention) -> (Tensor, Tensor, Tensor, Tensor)"
)


class Attention(torch.autograd.Function):
    """The gradient of eager calls."""

    @staticmethod
    def forward(ctx: Any, attention: pyrope.RopeAttention, layout: str, q: Any, k: Any, v: Any, *values: Any) -> Any:
        out, lse, *kept = compute(attention, layout, q, k, v, options_of(values), keeps=True)
        _keep(ctx, q, k, v, out, lse, kept, values)
        ctx.call = attention, layout
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Any, d_lse: Any) -> Any:
        attention, layout = ctx.call
        tensors, lse, values = _kept(ctx)
        d_out = torch.zeros_like(tensors[3]) if d_out is None else d_out
        found = differentiate(attention, layout, [d_out, *tensors], lse, d_lse, options_of(values))
        return None, None, *_gradients(found, values)


def _keep(ctx: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, kept: Any, values: Any) -> None:
    """kept: q and k where they were rotated, empty where they were so already."""
    *_, q_rotated, k_rotated = values
    q, k = q if q_rotated else kept[0], k if k_rotated else kept[1]
    ctx.save_for_backward(q, k, v, out, lse, *values[:TENSORS])
    ctx.set_materialize_grads(False)
    ctx.numbers = values[TENSORS:]


def _kept(ctx: Any) -> tuple[list[Any], Any, tuple[Any, ...]]:
    """q, k, v and out; lse; and values in the order of NAMES."""
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    return [q, k, v, out], lse, (*tensors, *ctx.numbers)


def _gradients(found: Any, values: Any) -> tuple[Any, ...]:
    """Of q, k, v and the values."""
    dq, dk, dv, d_sinks = found
    of_values = [d_sinks if name == "sinks" and x is not None else None for name, x in zip(NAMES, values, strict=True)]
    return dq, dk, dv, *of_values


def _attention(q: Any, k: Any, v: Any, *arguments: Any) -> Any:
    *values, keeps, layout, spec = arguments
    return compute(attention_of(spec), layout, q, k, v, options_of(values), keeps)


def _attention_fake(q: Any, k: Any, v: Any, *arguments: Any) -> Any:
    *values, keeps, layout, spec = arguments
    return results_like(attention_of(spec), q, k, layout, options_of(values), keeps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, *values, ctx.keeps, layout, spec = inputs
    out, lse, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.call = layout, spec
    _keep(ctx, q, k, v, out, lse, kept, values)


def _backward(ctx: Any, d_out: Any, d_lse: Any, *_: Any) -> tuple[Any, ...]:
    if not ctx.keeps:
        raise RuntimeError("keeps: False, must be True where a gradient is wanted")
    tensors, lse, values = _kept(ctx)
    d_out = torch.zeros_like(tensors[3]) if d_out is None else d_out
    found = torch.ops.pyrope.attention_backward.default(d_out, d_lse, *tensors, lse, *values, *ctx.call)
    return *_gradients(found, values), None, None, None


def _attention_backward(d_out: Any, d_lse: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *arguments: Any) -> Any:
    *values, layout, spec = arguments
    return tuple(differentiate(attention_of(spec), layout, [d_out, q, k, v, out], lse, d_lse, options_of(values)))


def _attention_backward_fake(d_out: Any, d_lse: Any, q: Any, k: Any, v: Any, *arguments: Any) -> Any:
    return tuple(gradients_like(q, k, v, options_of(arguments[2:-2])))


def _no_second(*_: Any) -> None:
    raise RuntimeError("attention: has no second derivative")


library.impl("attention", _attention, "CompositeExplicitAutograd")
library.impl("attention_backward", _attention_backward, "CompositeExplicitAutograd")
torch.library.register_fake("pyrope::attention", _attention_fake, lib=library)
torch.library.register_fake("pyrope::attention_backward", _attention_backward_fake, lib=library)
torch.library.register_autograd("pyrope::attention", _backward, setup_context=_setup_context, lib=library)
torch.library.register_autograd("pyrope::attention_backward", _no_second, lib=library)
