"""DTensors: what of a call each rank computes, and how its results are placed.

Heads (tensor parallelism), sequences of a batch and tokens (context parallelism) may be sharded over any dimensions of
the mesh; nothing is communicated for that. What is sharded in another way, or a sum that is not formed yet, becomes
whole first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import pyrope
from pyrope.torch._launch import Options

WEIGHTS = {"q_weight": "q", "k_weight": "k"}
TOKENS = frozenset("bst")


def evaluate_sharded(
    evaluate: Callable[..., dict[str, Any]], rope: pyrope.Rope, layout: str, rows: dict[str, Any], options: Options,
    changes: tuple[Any, ...],
) -> dict[str, Any]:  # fmt: skip
    """Results by name, DTensors."""
    mesh = _mesh_of(rows | {name: x for name, x in options.items() if isinstance(x, torch.Tensor)})
    rows = {name: x.redistribute(placements=_placements(rope, layout, x)) for name, x in rows.items()}
    options = _local_options(layout, rows, options, mesh)
    local = {name: x.to_local() for name, x in rows.items()}
    # A rank that has no heads or tokens of a tensor has no part in the call.
    some = {name: x for name, x in local.items() if x.numel()}
    results = {name: x.clone() for name, x in local.items() if name not in some}
    if some:
        results |= evaluate(rope, layout, some, options, _changes(layout, some, options, changes))
    return {
        name: DTensor.from_local(
            results[name], mesh, x.placements, run_check=False, shape=x.shape, stride=_strides(x, results[name])
        )
        for name, x in rows.items()
    }


def launch_sharded(
    launch: Callable[..., None], rope: pyrope.Rope, layout: str, rows: dict[str, Any], options: Options,
    changes: tuple[Any, ...],
) -> None:  # fmt: skip
    """In place."""
    mesh = _mesh_of(rows | {name: x for name, x in options.items() if isinstance(x, torch.Tensor)})
    for name, x in rows.items():
        if _placements(rope, layout, x) != tuple(x.placements):
            raise ValueError(
                f"{name}: placements {x.placements}, in place it must be sharded by heads or tokens, if at all"
            )
    options = _local_options(layout, rows, options, mesh)
    some = {name: x.to_local() for name, x in rows.items() if x.to_local().numel()}
    if some:
        local = _changes(layout, some, options, changes)
        launch(rope, layout, some.get("q"), some.get("k"), options, local)


def _mesh_of(tensors: dict[str, Any]) -> Any:
    mesh = next(x.device_mesh for x in tensors.values() if isinstance(x, DTensor))
    for name, x in tensors.items():
        if not isinstance(x, DTensor):
            raise TypeError(f"{name}: {type(x).__name__}, must be a DTensor as the others")
        if x.device_mesh != mesh:
            raise ValueError(f"{name}: {x.device_mesh}, must be the mesh of the others, {mesh}")
    return mesh


def _placements(rope: pyrope.Rope, layout: str, x: Any) -> tuple[Any, ...]:
    """Those that a rank can work with on its own."""
    norm = getattr(rope, "norm", None)
    allowed = TOKENS if norm is not None and norm.across_heads else TOKENS | {"h"}
    dims = {i for i, letter in enumerate(layout) if letter in allowed and x.ndim == len(layout)}
    return tuple(p if isinstance(p, Shard) and p.dim % x.ndim in dims else Replicate() for p in x.placements)


def _tokens(layout: str, x: Any) -> list[str]:
    """By dimension of the mesh: which of batch and sequence it shards, if one."""
    letters = [layout[p.dim % x.ndim] if isinstance(p, Shard) else "" for p in x.placements]
    return [letter if letter in TOKENS else "" for letter in letters]


def _local_options(layout: str, rows: dict[str, Any], options: Options, mesh: Any) -> Options:
    """A rank's part of the other arguments."""
    first, x = next(iter(rows.items()))
    tokens = _tokens(layout, x)
    for name, other in rows.items():
        if _tokens(layout, other) != tokens:
            raise ValueError(
                f"{name}: placements {other.placements}, must shard tokens as {first} does, {x.placements}"
            )
    local = dict(options)
    for name, value in options.items():
        if not isinstance(value, DTensor):
            continue
        placements: list[Any] = [Replicate()] * mesh.ndim
        grads = placements
        if name == "positions":
            placements = _positions_placements(layout, tokens, value)
        elif name in WEIGHTS:
            row = rows.get(WEIGHTS[name], x)
            grads = [Partial() if isinstance(p, Shard) else Replicate() for p in row.placements]
        elif name not in ("cos", "sin"):
            raise ValueError(f"{name}: not with DTensors")
        local[name] = value.redistribute(placements=placements).to_local(grad_placements=grads)
    if "positions" not in options:
        local["offset"] = options.get("offset", 0) + _start(layout, tokens, x, mesh)
    return local


def _positions_placements(layout: str, tokens: list[str], positions: Any) -> list[Any]:
    """As the tokens', of [.., seq] or [.., batch, seq]."""
    places = {"s": positions.ndim - 1, "t": positions.ndim - 1}
    if positions.ndim > 1 and positions.shape[-2] != 1:
        places["b"] = positions.ndim - 2
    return [Shard(places[letter]) if letter in places else Replicate() for letter in tokens]


def _start(layout: str, tokens: list[str], x: Any, mesh: Any) -> int:
    """The rank's first token of a sequence. DTensor's parts are those of torch.chunk."""
    start, size = 0, x.shape[next(layout.index(letter) for letter in "st" if letter in layout)]
    for dim, letter in enumerate(tokens):
        if letter in ("s", "t"):
            part = -(-size // mesh.size(dim))
            begin = min(mesh.get_local_rank(dim) * part, size)
            start, size = start + begin, min(part, size - begin)
    return start


def _changes(layout: str, some: dict[str, Any], options: Options, changes: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `like` takes, with the heads that the rank has."""
    x = next(iter(some.values()))
    weights = [options[name].dtype for name in WEIGHTS if name in options]
    dtype, device, weight = changes or (x.dtype, x.device.type, weights[0] if weights else None)
    heads = layout.index("h")
    return dtype, device, weight, *(some[name].shape[heads] if name in some else 0 for name in ("q", "k"))


def _strides(x: Any, local: torch.Tensor) -> tuple[int, ...]:
    """Of the whole of a result, in the order of its part's."""
    strides, size = [0] * x.ndim, 1
    for dim in sorted(range(x.ndim), key=lambda i: (local.stride(i), -i)):
        strides[dim], size = size, size * x.shape[dim]
    return tuple(strides)
