"""A call of the core on tensors that autograd need not see: which device and stream, and how many launches.

A layout with a batch is one launch where its tokens have one stride in every tensor, each sequence's positions being
made where none were given; else it is one launch a sequence, since the core knows one stride of tokens.
"""

from typing import Any

import torch

import pyrope
from pyrope.torch._layouts import (
    IDS,
    OUTPUTS,
    PER_TOKEN,
    ROWS,
    check_rows,
    fold,
    given,
    ids_of,
    outer_inner,
    positions_from_offset,
)

Options = dict[str, Any]

# Both are private, and cheaper than what stands for them where a version of torch has them not.
current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (
    lambda index: torch.cuda.current_stream(index).cuda_stream
)
current_device = getattr(torch._C, "_cuda_getDevice", None) or torch.cuda.current_device


def launch(rope: pyrope.Rope, layout: str, q: torch.Tensor | None, k: torch.Tensor | None, options: Options) -> None:
    """As Rope.apply, with the layout's shapes. q and k are written where their outputs are not among the options."""
    first = q if q is not None else k
    if first is None:
        raise TypeError("q and k: both None, at least one must be given")
    index = first.get_device()
    if index < 0:
        _on_device(rope, layout, q, k, options)
    elif index == current_device():
        _on_device(rope, layout, q, k, {**options, "stream": current_stream(index)})
    else:
        with torch.cuda.device(index):
            _on_device(rope, layout, q, k, {**options, "stream": current_stream(index)})


def _on_device(rope: pyrope.Rope, layout: str, q: Any, k: Any, options: Options) -> None:
    for name, x in options.items():
        # Autograd knows already, or has been told not to look.
        if isinstance(x, torch.Tensor) and x.requires_grad:
            options = {**options, name: x.detach()}
    if q is not None:
        check_rows("q", q, layout)
        q = q.detach() if q.requires_grad else q
    if k is not None:
        check_rows("k", k, layout)
        k = k.detach() if k.requires_grad else k
    if layout == "thd":
        rope.apply(q, k, **options)
    else:
        _batch(rope, layout, q, k, options)


def _batch(rope: pyrope.Rope, layout: str, q: Any, k: Any, options: Options) -> None:
    if options.get("indptr") is not None:
        raise ValueError("indptr: only allowed with layout='thd'; a batch is not ragged")
    options = given(options)
    rows = given({"q": q, "k": k}) | {name: options.pop(name) for name in ROWS if name in options}
    rows |= {name: options.pop(name) for name in OUTPUTS if name in options}
    sizes = None
    for name, x in rows.items():
        check_rows(name, x, layout)
        rows[name] = x = outer_inner(x, layout)
        if sizes is not None and x.shape[:2] != sizes:
            raise ValueError(
                f"{name}: shape {tuple(x.shape)}, its batch and sequence must be {tuple(sizes)} as others'"
            )
        sizes = x.shape[:2]
    assert sizes is not None
    seq, batch = sizes if layout == "sbhd" else reversed(sizes)
    sections = getattr(rope, "sections", None)
    for name in IDS:
        if name in options:
            streams = len(sections) if sections is not None and name == "positions" else 0
            options[name] = ids_of(name, options[name], batch, seq, layout, streams)
    if batch * seq == 0:  # strides of tensors without elements mean nothing
        rows = {name: x.flatten(0, 1) for name, x in rows.items()}
    if batch * seq == 0 or all(fold(x) for x in rows.values()):
        if "positions" not in options and batch > 1:
            some = next(iter(rows.values()))
            options["positions"] = positions_from_offset(options.pop("offset", 0), batch, seq, layout, some.device)
        rope.apply(rows.pop("q", None), rows.pop("k", None), **rows, **options)
    else:
        _sequences(rope, layout, rows, options, batch, seq)


def _sequences(rope: pyrope.Rope, layout: str, rows: Options, options: Options, batch: int, seq: int) -> None:
    """A launch a sequence."""
    kinds = {f"{x}_scale": getattr(rope, f"{x}_scale_kind", None) for x in "qkv"}
    refused = [n for n in PER_TOKEN if n in options]
    refused += [n for n, kind in kinds.items() if kind in ("token", "dynamic") and n in options]
    if refused:
        apart = next(name for name, x in rows.items() if not fold(x))
        raise ValueError(
            f"{apart}: strides {rows[apart].stride()}, batch and sequence must fold into one dimension of tokens with "
            f"{refused[0]}; pass what is contiguous as [batch, seq, heads, dim], or a view of that"
        )
    order, axis = ((seq, batch), 1) if layout == "sbhd" else ((batch, seq), 0)
    ids = {name: options.pop(name).unflatten(-1, order).movedim(axis - 2, 0) for name in IDS if name in options}
    for i in range(batch):
        one = {name: x.select(axis, i) for name, x in rows.items()}
        one |= {name: x[i].contiguous() for name, x in ids.items()}
        rope.apply(one.pop("q", None), one.pop("k", None), **one, **options)
