"""Where the tokens of a tensor are, and where their positions."""

from typing import Any, Literal, TypeAlias

import torch

Layout: TypeAlias = Literal["thd", "bshd", "sbhd", "bhsd"]
DIMENSIONS = {
    "thd": "[tokens, heads, head_dim]",
    "bshd": "[batch, seq, heads, head_dim]",
    "sbhd": "[seq, batch, heads, head_dim]",
    "bhsd": "[batch, heads, seq, head_dim]",
}
ROWS = ("q", "k", "v", "q_nope", "k_nope")  # tensors whose leading dimensions are tokens; and their outputs'
OUT = {name: f"{name}_out" for name in ROWS}
BATCHED = frozenset((*ROWS[2:], *OUT.values()))  # among the options
# Of what has a value or more for each token, what a batch may give in [batch, seq].
IDS = ("positions", "positions_from")


def check_layout(layout: str) -> None:
    if layout not in DIMENSIONS:
        raise ValueError(f"layout: {layout!r}, must be {', '.join(map(repr, DIMENSIONS))}")


def check_rows(name: str, x: torch.Tensor, layout: str) -> None:
    """That x is a tensor with the layout's number of dimensions."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: {type(x).__name__}, must be a torch.Tensor")
    if x.ndim != len(layout) and not (layout == "thd" and x.ndim == 2):
        raise ValueError(
            f"{name}: {x.ndim} dimensions, layout={layout!r} is {DIMENSIONS[layout]}"
            + ("; for a batch pass layout='bshd', 'sbhd' or 'bhsd'" if layout == "thd" else "")
            + ("; one sequence is layout='thd'" if x.ndim == 3 else "")
        )


def ids_of(name: str, ids: torch.Tensor, batch: int, seq: int, layout: str, streams: int) -> torch.Tensor:
    """[tokens] ids in the tokens' order (with sections [streams, tokens]) of [tokens], [seq] or what broadcasts to
    [batch, seq]; without a copy where they are contiguous already, or where one row is that of all sequences."""
    shape = ids.shape
    if not streams and len(shape) == 1 and shape[0] == batch * seq:
        return ids
    if not streams and layout != "sbhd" and shape == (batch, seq) and ids.is_contiguous():
        return ids.view(-1)
    lead = (streams,) if streams else ()
    if shape == (*lead, batch * seq):
        return ids
    try:
        if streams and (ids.ndim < 2 or shape[0] != streams):
            raise RuntimeError
        if streams and ids.ndim == 2:
            ids = ids.unsqueeze(1)
        ids = ids.expand(*lead, batch, seq)
    except RuntimeError:
        tokens = ", ".join(map(str, (*lead, batch, seq)))
        raise ValueError(f"{name}: shape {tuple(shape)}, must broadcast to [{tokens}] or be one-dimensional") from None
    if not streams and layout != "sbhd" and ids.stride() == (0, 1):
        return ids
    return (ids.transpose(-1, -2) if layout == "sbhd" else ids).reshape(*lead, batch * seq).contiguous()


def positions_from_offset(offset: int, batch: int, seq: int, layout: str, device: torch.device) -> torch.Tensor:
    """[tokens] positions of sequences that all start at the offset."""
    if not isinstance(offset, int):
        raise TypeError(f"offset: {offset!r}, must be an integer")
    ids = torch.arange(offset, offset + seq, device=device)
    return ids_of("positions", ids.unsqueeze(0), batch, seq, layout, 0)


def addressable(x: torch.Tensor) -> bool:
    """Whether the core reads x where it is as fast as it may: the last dimension contiguous, or broadcast."""
    return x.stride(-1) in (0, 1)


def given(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in tensors.items() if x is not None}
