"""The operators of torch.compile and torch.export, torch.ops.pyrope.apply and apply_.

They are defined with Library.define and impl, a sixth of a custom_op's time. Eager calls do not go through them: that
would still double their time. Rope is the text of one, see pyrope.torch._specs.
"""

from typing import Any

import torch

from pyrope.torch._gradient import backward, kept
from pyrope.torch._launch import launch
from pyrope.torch._layouts import ROWS, given
from pyrope.torch._outputs import compute, outputs_like
from pyrope.torch._specs import rope_of, spec_of

# Arguments of FusedRope.apply that are tensors. Of the functional operator, which returns its results:
READ = (
    *ROWS, "q_weight", "k_weight", "positions", "positions_from", "indptr", "offsets", "cos", "sin", "angles",
    "k_cos", "k_sin", "k_angles", "frequency_sets", "set_ids", "set_ids_from", "set_factors",
)  # fmt: skip
# Besides, of the mutating one. Dynamic scales are written, others are not.
WRITTEN = (
    "q_out", "k_out", "v_out", "q_nope_out", "k_nope_out", "k_cache", "v_cache", "k_nope_cache", "q_scale", "k_scale",
    "v_scale", "cache_skipped", "cos_sin_skipped", "q_sums", "k_sums",
)  # fmt: skip
TENSOR_SCALES = ("q_tensor_scale", "k_tensor_scale", "v_tensor_scale")
ALSO_READ = ("slots", "page_table", "page_indptr", "request_ids", "cache_positions", *TENSOR_SCALES)
NUMBERS = ("q_scale", "k_scale", "v_scale", *TENSOR_SCALES)  # or tensors
_CHOICES = "str skipped, bool? write_sums"
REST = "SymInt offset, bool inverse, str layout, str rope"
EFFECTS = frozenset((*WRITTEN, *ALSO_READ))  # an argument that makes a call one with side effects
OPTIONS = frozenset((*READ, *EFFECTS, "write_sums"))

MUTATING = (*READ, *WRITTEN, *ALSO_READ)


def _schema(names: tuple[str, ...], written: tuple[str, ...]) -> str:
    """Tensor arguments, each that is written an alias set of its own."""
    sets = {name: f"({chr(ord('a') + i)}!)" for i, name in enumerate(written)}
    return ", ".join(f"Tensor{sets.get(name, '')}? {name}" for name in names)


library = torch.library.Library("pyrope", "DEF")
library.define(f"apply({_schema(READ, ())}, {REST}) -> Tensor[]")
_numbers = ", ".join(f"float? {name}_number" for name in NUMBERS)
library.define(f"apply_({_schema(MUTATING, ('q', 'k', *WRITTEN))}, {_numbers}, {_CHOICES}, {REST}) -> ()")


def call_apply(spec: str, layout: str, rows: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The functional operator, by names."""
    options = {**options, **rows}
    results = torch.ops.pyrope.apply.default(
        *(options.get(name) for name in READ), options.get("offset", 0), options.get("inverse", False), layout, spec
    )
    return dict(zip((name for name in ROWS if rows.get(name) is not None), results, strict=True))


def call_apply_(spec: str, layout: str, options: dict[str, Any]) -> None:
    """The mutating operator, by names."""
    numbers = [options[name] if isinstance(options.get(name), float) else None for name in NUMBERS]
    options = {name: x for name, x in options.items() if name not in NUMBERS or isinstance(x, torch.Tensor)}
    torch.ops.pyrope.apply_.default(
        *(options.get(name) for name in MUTATING), *numbers, options.get("skipped", "leave"),
        options.get("write_sums") or None, options.get("offset", 0), options.get("inverse", False), layout, spec,
    )  # fmt: skip


def _named(arguments: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """Rows, options, layout and text of the functional operator's arguments."""
    tensors = given(dict(zip(READ, arguments, strict=False)))
    offset, inverse, layout, spec = arguments[len(READ) :]
    rows = {name: tensors.pop(name) for name in ROWS if name in tensors}
    return rows, {**tensors, "offset": offset, "inverse": inverse}, layout, spec


def _apply(*arguments: Any) -> list[torch.Tensor]:
    rows, options, layout, spec = _named(arguments)
    return list(compute(rope_of(spec), layout, rows, options).values())


def _apply_fake(*arguments: Any) -> list[torch.Tensor]:
    rows, options, _, spec = _named(arguments)
    return list(outputs_like(rope_of(spec), rows, options).values())


def _apply_(*arguments: Any) -> None:
    options = given(dict(zip((*MUTATING, *NUMBERS, "skipped", "write_sums"), arguments, strict=False)))
    offset, inverse, layout, spec = arguments[-4:]
    q, k = options.pop("q", None), options.pop("k", None)
    launch(rope_of(spec), layout, q, k, {**options, "offset": offset, "inverse": inverse})


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    rope = rope_of(inputs[-1])
    keep = [kept(rope, name) for name in READ]
    ctx.save_for_backward(*(x if keep[i] else None for i, x in enumerate(inputs[: len(READ)])))
    ctx.rows = [name for name, x in zip(READ, inputs, strict=False) if name in ROWS and x is not None]
    ctx.rest = inputs[len(READ) :]


def _backward(ctx: Any, grads: list[torch.Tensor | None]) -> tuple[Any, ...]:
    offset, inverse, layout, spec = ctx.rest
    saved = given(dict(zip(READ, ctx.saved_tensors, strict=True))) | {"offset": offset, "inverse": inverse}
    wanted = {name for name, needed in zip(READ, ctx.needs_input_grad, strict=False) if needed}
    by_name = given(dict(zip(ctx.rows, grads, strict=True)))

    def apply(rope: Any, layout: str, rows: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        return call_apply(spec_of(rope), layout, rows, options)

    found = backward(apply, rope_of(spec), layout, saved, by_name, wanted)
    return (*(found.get(name) for name in READ), None, None, None, None)


def each(apply: Any, batch_size: int, in_dims: Any, arguments: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
    """A map over a batch, as a call for each index: layouts may hold a batch already. Results and their dimensions."""
    results = []
    for i in range(batch_size):
        one = [x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)]
        results.append(apply(*one))
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[list[torch.Tensor], list[int]]:
    results, dims = each(torch.ops.pyrope.apply.default, info.batch_size, in_dims, arguments)
    return list(results), list(dims)


def _vmap_(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> None:
    raise RuntimeError("torch.func.vmap: not over a call that writes its arguments; use pyrope.torch.apply")


library.impl("apply", _apply, "CompositeExplicitAutograd")
library.impl("apply_", _apply_, "CompositeExplicitAutograd")
torch.library.register_fake("pyrope::apply", _apply_fake, lib=library)
torch.library.register_fake("pyrope::apply_", lambda *_: None, lib=library)
torch.library.register_autograd("pyrope::apply", _backward, setup_context=_setup_context, lib=library)
torch.library.register_vmap("pyrope::apply", _vmap, lib=library)
torch.library.register_vmap("pyrope::apply_", _vmap_, lib=library)
