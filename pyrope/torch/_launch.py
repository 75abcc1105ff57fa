"""A call of the core on tensors that autograd need not see: which device and stream, and where a batch's tokens stand.

A layout with a batch is one launch, in which the core counts the positions of each sequence; where the tokens of one do
not follow each other ("sbhd"), positions are made.
"""

from typing import Any

import torch

import pyrope
from pyrope._view import Rows
from pyrope.torch._layouts import BATCHED, IDS, check_rows, ids_of, positions_from_offset

Options = dict[str, Any]
TABLES = ("cos", "angles", "k_cos", "k_angles")  # with the sines, of the same shape
FEW = frozenset(("positions", "offset", "inverse", "stream", "skipped"))  # nothing that could require grad

# Both are private, and cheaper than what stands for them where a version of torch has them not.
current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (
    lambda index: torch.cuda.current_stream(index).cuda_stream
)
current_device = getattr(torch._C, "_cuda_getDevice", None) or torch.cuda.current_device


def launch(rope: pyrope.Rope, layout: str, q: torch.Tensor | None, k: torch.Tensor | None, options: Options) -> None:
    """As Rope.apply, with the layout's shapes. q and k are written where their outputs are not among the options.

    options : arguments by name, none of them None; the dict is used up

    This is on the path of every call: nothing here is done twice, and nothing for options that are not there.
    """
    if not FEW.issuperset(options):
        for name, x in options.items():
            # Autograd knows already, or has been told not to look.
            if isinstance(x, torch.Tensor) and x.requires_grad:
                options[name] = x.detach()
    if q is not None and q.requires_grad:
        q = q.detach()
    if k is not None and k.requires_grad:
        k = k.detach()
    index = (q if q is not None else k).get_device()  # type: ignore[union-attr]
    if index >= 0:
        if index != current_device():
            with torch.cuda.device(index):
                return launch(rope, layout, q, k, options)
        options["stream"] = current_stream(index)
    if layout == "thd":
        rope.apply(q, k, **options)
    else:
        _batch(rope, layout, q, k, options)


def _batch(rope: pyrope.Rope, layout: str, q: Any, k: Any, options: Options) -> None:
    if "indptr" in options:
        raise ValueError("indptr: only allowed with layout='thd'; a batch is not ragged")
    heads_first, stream = layout == "bhsd", options.get("stream", 0)
    tensors = {name: x for name, x in (("q", q), ("k", k)) if x is not None}
    if not BATCHED.isdisjoint(options):
        for name in BATCHED.intersection(options):
            tensors[name] = options.pop(name)
            check_rows(name, tensors[name], layout)
    first = None
    rows: Options = {}
    for name, x in tensors.items():
        rows[name] = row = Rows(name, x, heads_first, stream)
        first = first or row
        if row.outer != first.outer or row.inner != first.inner:
            sizes = first.outer, first.inner
            raise ValueError(f"{name}: shape {tuple(x.shape)}, its batch and sequence must be {sizes} as the others'")
    assert first is not None
    seq, batch = (first.outer, first.inner) if layout == "sbhd" else (first.inner, first.outer)
    for name in IDS:
        if name in options:
            streams = getattr(rope, "num_streams", 0) if name == "positions" else 0
            options[name] = ids_of(name, options[name], batch, seq, layout, streams)
    if batch > 1 and seq and "positions" not in options:
        device = next(iter(tensors.values())).device
        if layout == "sbhd" and FEW.issuperset(options):  # nothing has a value for each token in the layout's order
            for row in rows.values():
                row.swap()
            layout = "bshd"
        if not FEW.issuperset(options) and has_row_for_each(options, batch, seq):
            if layout == "sbhd" or not all(row.folded for row in rows.values()):
                numbers = torch.arange(batch * seq, device=device).view(batch, seq)
                options["positions"] = ids_of("positions", numbers, batch, seq, layout, 0)
        elif layout == "sbhd":
            options["positions"] = positions_from_offset(options.pop("offset", 0), batch, seq, layout, device)
        else:
            options["sequence_length"] = seq
    rope.apply(rows.pop("q", None), rows.pop("k", None), **rows, **options)


def has_row_for_each(options: Options, batch: int, seq: int) -> bool:
    """Whether tables have a row for each token of a batch, [batch, seq, columns]."""
    found = [name for name in TABLES if getattr(options.get(name), "ndim", 0) > 2 and options[name].shape[0] > 1]
    for name in found:
        shape = tuple(options[name].shape)
        if shape[:2] != (batch, seq):
            raise ValueError(f"{name}: shape {shape}, must be [rows, columns] or [{batch} or 1, {seq}, columns]")
        if options.get("offset"):
            raise ValueError(
                f"offset: {options['offset']}, not allowed where {name} has a row for each token of a batch"
            )
    return bool(found)
