"""Attention and its gradient on tensors that autograd need not see."""

from typing import Any

import torch

import pyrope
from pyrope.torch._launch import Options, current_device, current_stream
from pyrope.torch._layouts import given

COUNTERS = 256  # bytes at the head of the forward's workspace that are zero between calls

# Of both operators, in their order; of pyrope.torch.attention.
SCHEMA = (
    "Tensor? positions, Tensor? sinks, Tensor? q_indptr, Tensor? k_indptr, SymInt offset, SymInt max_q_tokens, "
    "SymInt max_k_tokens, bool q_rotated, bool k_rotated"
)
NAMES = tuple(argument.split()[-1] for argument in SCHEMA.split(", "))
TENSORS = 4  # of them


def options_of(values: Any) -> Options:
    """The options of RopeAttention's calls, of values in the order of NAMES. Of ragged sequences the longest are 0
    where not known."""
    options = given(dict(zip(NAMES, values, strict=True)))
    if "sinks" in options:
        options["sinks"] = options["sinks"].detach()
    for name in ("q", "k"):
        if f"{name}_indptr" not in options:
            del options[f"max_{name}_tokens"]
    return options


def sequences_first(x: torch.Tensor, layout: str) -> torch.Tensor:
    """[sequences, tokens, heads, dim], or of "thd" [tokens, heads, dim]: a view."""
    if layout == "bhsd":
        return x.transpose(1, 2)
    return x.transpose(0, 1) if layout == "sbhd" else x


def rows_of(tensors: list[torch.Tensor | None], layout: str) -> list[Any]:
    return [None if x is None else sequences_first(x.detach(), layout) for x in tensors]


def batch_of(x: torch.Tensor, layout: str) -> int:
    return 1 if layout == "thd" else x.shape[layout.index("b")]


def results_like(attention: pyrope.RopeAttention, q: torch.Tensor, k: torch.Tensor, layout: str, options: Options,
                 keeps: bool) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """out, lse, and q and k as they are multiplied, not yet written; these are empty where nothing is kept."""
    out = torch.empty_like(q) if q.shape[-1] == attention.v_head_dim else q.new_empty(
        (*q.shape[:-1], attention.v_head_dim)
    )  # fmt: skip
    sizes = dict(zip(layout, q.shape, strict=True))
    shape = (sizes["h"], sizes["t"]) if layout == "thd" else (sizes["b"], sizes["h"], sizes["s"])
    kept = [torch.empty_like(x) if keeps and not options[f"{name}_rotated"] else x.new_empty(0)
            for name, x in (("q", q), ("k", k))]  # fmt: skip
    return out, torch.empty(shape, dtype=torch.float32, device=q.device), *kept


def compute(attention: pyrope.RopeAttention, layout: str, q: Any, k: Any, v: Any, options: Options,
            keeps: bool = False) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """As results_like. options: as options_of."""
    index = q.get_device()
    if index >= 0 and index != current_device():
        with torch.cuda.device(index):
            return compute(attention, layout, q, k, v, options, keeps)
    results = results_like(attention, q, k, layout, options, keeps)
    out, lse, *kept = results
    *tensors, q_out, k_out = rows_of([q, k, v, out, *(x if x.numel() else None for x in kept)], layout)
    if index >= 0:
        size = attention.workspace_size(
            tensors[0].shape[-3], tensors[1].shape[-3], num_sequences=batch_of(q, layout),
            q_rotated=options["q_rotated"], k_rotated=options["k_rotated"],
            keeps_q=q_out is not None, keeps_k=k_out is not None,
        )  # fmt: skip
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
        workspace[:COUNTERS].zero_()
        options = {**options, "workspace": workspace, "stream": current_stream(index)}
    attention.apply(*tensors, lse=lse, q_out=q_out, k_out=k_out, **options)
    return results


def gradients_like(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options) -> list[torch.Tensor]:
    """dq, dk, dv and d_sinks, not yet written; the last is empty without sinks."""
    sinks = options.get("sinks")
    return [*map(torch.empty_like, (q, k, v)), q.new_empty(0 if sinks is None else sinks.shape, dtype=torch.float32)]


def differentiate(attention: pyrope.RopeAttention, layout: str, tensors: list[torch.Tensor], lse: torch.Tensor,
                  d_lse: torch.Tensor | None, options: Options) -> list[torch.Tensor]:  # fmt: skip
    """As gradients_like. tensors: the gradient of out; q and k as they were multiplied; v and out."""
    d_out, q, k, v, out = tensors
    index = q.get_device()
    if index >= 0 and index != current_device():
        with torch.cuda.device(index):
            return differentiate(attention, layout, tensors, lse, d_lse, options)
    results, batch = gradients_like(q, k, v, options), batch_of(q, layout)
    if d_out.stride(-1) != 1 or 0 in d_out.stride():  # that of a sum is one number
        d_out = d_out.contiguous()
    d_out, q, k, v, out, dq, dk, dv = rows_of([d_out, q, k, v, out, *results[:3]], layout)
    if "sinks" in options:
        options = {**options, "d_sinks": results[3]}
    if d_lse is not None:
        options = {**options, "d_lse": d_lse.detach().contiguous()}
    if index >= 0:
        ragged = "q_indptr" in options
        sequences = options["q_indptr"].shape[0] - 1 if ragged else batch
        size = attention.backward_workspace_size(q.shape[-3], k.shape[-3], num_sequences=sequences, ragged=ragged)
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
        options = {**options, "workspace": workspace, "stream": current_stream(index)}
    deterministic = torch.are_deterministic_algorithms_enabled()
    attention.backward(d_out, q, k, v, out, lse.detach(), dq, dk, dv, deterministic=deterministic, **options)
    return results
