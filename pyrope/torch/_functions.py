"""pyrope.torch.apply and apply_."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling
from torch.nn import Parameter

import pyrope
from pyrope.torch._gradient import DIFFERENTIABLE, WEIGHTS, backward, kept
from pyrope.torch._launch import FEW, Options, launch
from pyrope.torch._layouts import DIMENSIONS, OUT, ROWS, Layout, check_layout, check_rows, given
from pyrope.torch._operators import EFFECTS, OPTIONS, call_apply, call_apply_, each
from pyrope.torch._outputs import compute
from pyrope.torch._specs import constant_spec_of, like

_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


def traced(x: Any) -> bool:
    """Whether a call must be an operator: something records it."""
    return (type(x) is not Tensor and type(x) is not Parameter) or is_compiling() or _modes() > 0


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor. Their module takes a while to import."""
    return type(x) is not Tensor and hasattr(x, "device_mesh")


def evaluate(
    rope: pyrope.Rope, layout: str, rows: dict[str, Any], options: Options, changes: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """Results by name, with gradients; without side effects. changes: what `like` takes, of another Rope like it."""
    first = next(iter(rows.values()))
    if traced(first):
        if is_sharded(first):
            from pyrope.torch._sharded import evaluate_sharded

            return evaluate_sharded(evaluate, rope, layout, rows, options, changes)
        return call_apply(constant_spec_of(rope, *changes), layout, rows, options)
    if changes:
        rope = like(rope, *changes)
    function: Any = None
    if _transformed():
        function = TransformedRotation
    elif is_grad_enabled() and needs_gradient(rows, options):
        function = Rotation
    if function is None:
        return compute(rope, layout, rows, options)
    tensors = rows | {name: x for name, x in options.items() if isinstance(x, Tensor)}
    rest = {name: x for name, x in options.items() if name not in tensors}
    results = function.apply(Call(rope, layout, tuple(rows), tuple(tensors), rest), *tensors.values())
    return dict(zip(rows, results, strict=True))


def needs_gradient(rows: dict[str, Any], options: Options) -> bool:
    for x in rows.values():
        if x.requires_grad:
            return True
    return not FEW.issuperset(options) and any(options[name].requires_grad for name in WEIGHTS if name in options)


class Call(NamedTuple):
    """What a call has besides tensors."""

    rope: pyrope.Rope
    layout: str
    rows: tuple[str, ...]
    names: tuple[str, ...]  # of the tensors, rows first
    options: Options


class Rotation(torch.autograd.Function):
    """The gradient of eager calls: the same as the operator's, at a fifth of its time."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Any) -> Any:
        _keep(ctx, call, tensors)
        return _results(call, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call = ctx.call
        saved = given(dict(zip(call.names, ctx.saved_tensors, strict=True))) | call.options
        wanted = {name for name, needed in zip(call.names, ctx.needs_input_grad[1:], strict=True) if needed}
        by_name = given(dict(zip(call.rows, grads, strict=True)))
        found = backward(evaluate, call.rope, call.layout, saved, by_name, wanted)
        return (None, *(found.get(name) for name in call.names))


class TransformedRotation(Rotation):
    """The same in the form that torch.func's transforms take, which costs more."""

    @staticmethod
    def forward(call: Call, *tensors: Any) -> Any:  # type: ignore[override]
        return _results(call, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, *tensors = inputs
        _keep(ctx, call, tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Any) -> Any:
        apply = partial(TransformedRotation.apply, call)
        return each(apply, info.batch_size, in_dims[1:], tensors)


def _results(call: Call, tensors: Any) -> tuple[torch.Tensor, ...]:
    arguments = dict(zip(call.names, tensors, strict=True))
    rows = {name: arguments.pop(name) for name in call.rows}
    return tuple(compute(call.rope, call.layout, rows, call.options | arguments).values())


def _keep(ctx: Any, call: Call, tensors: Any) -> None:
    ctx.save_for_backward(*(x if kept(call.rope, name) else None for name, x in zip(call.names, tensors, strict=True)))
    ctx.set_materialize_grads(False)
    ctx.call = call


def launch_or_record(
    rope: pyrope.Rope, layout: str, q: Any, k: Any, options: Options, changes: tuple[Any, ...] = ()
) -> None:
    """What writes its arguments."""
    first = q if q is not None else k
    if is_sharded(first):
        from pyrope.torch._sharded import launch_sharded

        launch_sharded(launch_or_record, rope, layout, given({"q": q, "k": k}), options, changes)
    elif traced(first) or _transformed():
        call_apply_(constant_spec_of(rope, *changes), layout, {**options, "q": q, "k": k})
    else:
        launch(like(rope, *changes) if changes else rope, layout, q, k, options)


def refuse_grad(tensors: dict[str, Any], reason: str, allowed: tuple[str, ...] = ()) -> None:
    """Where gradients are recorded. allowed: names of those that have one."""
    for name, x in tensors.items():
        if isinstance(x, Tensor) and x.requires_grad and name not in allowed:
            raise RuntimeError(f"{name}: requires grad, {reason}")


def has_effects(rope: pyrope.Rope, options: Options) -> bool:
    """Whether a call writes what it is given, or what has no gradient."""
    if isinstance(rope, pyrope.FusedRope) and (
        rope.cache is not None or any(getattr(rope, f"{x}_out_dtype") is not None for x in "qkv")
    ):
        return True
    return not EFFECTS.isdisjoint(options)


def check_call(layout: str, q: Any, k: Any, options: Options) -> None:
    if layout not in DIMENSIONS:
        check_layout(layout)
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name}: not an argument of pyrope.torch; of Rope.apply it has those that are tensors")
    if q is None and k is None:
        raise TypeError("q and k: both None, at least one must be given")
    rank = len(layout)
    if q is not None and not (isinstance(q, Tensor) and q.ndim == rank):
        check_rows("q", q, layout)
    if k is not None and not (isinstance(k, Tensor) and k.ndim == rank):
        check_rows("k", k, layout)


def apply(
    rope: pyrope.Rope,
    q: torch.Tensor | None,
    k: torch.Tensor | None = None,
    *,
    layout: Layout = "bshd",
    positions: torch.Tensor | None = None,
    offset: int = 0,
    inverse: bool = False,
    **options: Any,
) -> tuple[torch.Tensor | None, ...]:
    """Rotate q and k into new tensors, with gradients; torch.compile and torch.export trace it.

    Parameters
    ----------
    rope : pyrope.Rope or pyrope.FusedRope
        Its dtype is that of q and k, its device theirs. Make it once: torch.compile compiles anew for every object.
    q, k : torch.Tensor or None
        In the layout; any strides. None leaves that one out.
    layout : {"bshd", "sbhd", "bhsd", "thd"}
        The dimensions: ``b`` sequences of ``s`` tokens, or one of ``t``; ``h`` heads of ``d`` elements. ``thd`` may be
        ``[tokens, heads * head_dim]``.
    positions : torch.Tensor, optional
        int32 or int64: one a token, in the order of the layout's dimensions; or what broadcasts to ``[batch, seq]``, as
        ``[seq]`` does. With sections, ``[sections, ...]``. A token of position -1 is returned as it is.
    offset : int
        Without positions, each sequence's first token has position ``offset``.
    inverse : bool
        The transposed rotation.
    **options
        Tensors that ``apply`` of the Rope takes, by its names: ``indptr`` and ``offsets`` (``thd`` alone); of a
        FusedRope v, weights, scales, caches and so on, v and q_nope in the layout. What has a value for each token is
        one-dimensional, in their order; rows of ``cos``, ``sin`` and ``angles`` may be ``[batch, seq, columns]``, one
        for each token.

    Returns
    -------
    tuple of torch.Tensor
        q and k, then v and q_nope where they were given; None for what was left out or went to a cache. Strides are
        those of ``torch.empty_like``. An output that was given (``q_out=``) is returned itself.

    Notes
    -----
    The call works on the current stream of the tensors' device. Gradients are those of q, k, v, q_nope and of the
    norm's weights, any number of times; nothing but positions is kept for them, with a norm also q, k and the weights.
    The backward of a norm is made of torch operations in float32. Each element is read and written once, but for a
    tensor whose last dimension is not contiguous, which is copied first.

    DTensors, sharded by heads or by tokens, are rotated where they are: each rank its part, by its heads and from its
    first position on. Tensors beside them are DTensors of the same mesh; where ranks hold tokens in another order,
    ``positions`` has :func:`rank_positions` of each. Other shardings are made whole first.

    A batch is one launch if its tokens have one stride (contiguous, or a transposed view of what is, in every layout);
    otherwise one launch a sequence, and what has a value for each token, but for positions, is refused.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it.
    RuntimeError
        A tensor requires grad that has none here, such as ``cos``, or q of a call with a cache or a quantised output.
    """
    return call(rope, q, k, layout, positions, offset, inverse, options)


def call(
    rope: pyrope.Rope,
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    layout: str,
    positions: torch.Tensor | None,
    offset: int,
    inverse: bool,
    options: Options,
    changes: tuple[Any, ...] = (),
) -> tuple[torch.Tensor | None, ...]:
    """apply, by the Rope or by one like it."""
    check_call(layout, q, k, options)
    rows: dict[str, Any] = {}
    if q is not None:
        rows["q"] = q
    if k is not None:
        rows["k"] = k
    names: tuple[str, ...] = ROWS[:2]
    if options:
        options = given(options)
        rows |= {name: options.pop(name) for name in ROWS[2:] if name in options}
        for name in ROWS[2:]:
            if name in rows:
                names = (*names, name)
                check_rows(name, rows[name], layout)
    if positions is not None:
        options["positions"] = positions
    recorded = is_grad_enabled()
    if recorded and options:
        refuse_grad(options, "which has no gradient", DIFFERENTIABLE)
    effects = has_effects(rope, options)
    options["offset"], options["inverse"] = offset, inverse
    if effects:
        refuse_grad(
            rows if recorded else {},
            "a call with a cache, a quantised output or an output that is given has no gradient",
        )
        results = compute(rope, layout, rows, options, partial(launch_or_record, changes=changes))
    else:
        results = evaluate(rope, layout, rows, options, changes)
    return tuple([results[name] if name in results else options.get(OUT[name]) for name in names])


def apply_(
    rope: pyrope.Rope,
    q: torch.Tensor | None,
    k: torch.Tensor | None = None,
    *,
    layout: Layout = "bshd",
    positions: torch.Tensor | None = None,
    offset: int = 0,
    inverse: bool = False,
    **options: Any,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Rotate q and k where they are, without a gradient. Returns them.

    Parameters are those of :func:`apply`. The last dimension must be contiguous and no dimension broadcast. What a
    FusedRope quantises needs an output (``q_out=``), and so do v and q_nope.

    Raises
    ------
    ValueError, TypeError
        An argument is not allowed; the text names it. Nothing is written.
    RuntimeError
        Gradients are recorded and a tensor requires one.
    """
    check_call(layout, q, k, options)
    options = given(options) if options else options
    recorded = is_grad_enabled()
    if recorded and (options or (q is not None and q.requires_grad) or (k is not None and k.requires_grad)):
        reason = "which an in-place call has not; use pyrope.torch.apply or torch.no_grad()"
        refuse_grad({"q": q, "k": k, **options}, reason)
    options["offset"], options["inverse"] = offset, inverse
    if positions is not None:
        options["positions"] = positions
    launch_or_record(rope, layout, q, k, options)
    return q, k
