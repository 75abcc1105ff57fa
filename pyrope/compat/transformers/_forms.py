"""The forms in which transformers' models rotate q and k, and a function of each."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

from pyrope.compat._training import Tensors, first_half, readable, rotate
from pyrope.compat.transformers._angles import Angles
from pyrope.torch._layouts import Layout

Pair = tuple[torch.Tensor, torch.Tensor]
Table: TypeAlias = torch.Tensor | Angles
Take = Callable[[torch.Tensor], torch.Tensor]


def whole(table: torch.Tensor) -> torch.Tensor:
    return table


class Values(NamedTuple):
    """Where rows of cos and of sin have the values of a pair."""

    cos: Take
    sin: Take
    columns: str = "pairs"


# In both halves, next to each other, once, in a complex number.
HALVES, NEIGHBOURS = Values(first_half, first_half), Values(whole, whole, "elements")
ONCE, COMPLEX = Values(whole, whole), Values(torch.real, torch.imag)


class Form(NamedTuple):
    """How a model's function reads q, k, cos and sin."""

    pairing: str = "neox"
    values: Values = HALVES
    rest: bool = True  # whether a head may be longer than what turns
    dense: bool = False  # whether results are contiguous, whatever the strides of q and k
    last: bool = False  # whether the last elements turn instead of the first
    backward: bool = False  # whether it turns the other way
    out_pairing: str | None = None  # where results have another one

    def turn(self, xs: tuple[torch.Tensor | None, ...], cos: Table, sin: Table, unsqueeze_dim: int) -> Tensors:
        """unsqueeze_dim : where cos and sin get a dimension for the heads, before they broadcast"""
        x = next(x for x in xs if x is not None)
        if self.dense:
            xs = tuple(None if x is None else x.contiguous() for x in xs)
        if isinstance(cos, Angles):
            # As if it had cos's dimensions. What turns backward does so in the configuration too.
            return cos.turn(xs, "bhsd" if unsqueeze_dim in (1, -3) else "bshd", self.out_pairing)
        assert not isinstance(sin, Angles)
        return self.by_tables(xs, x, cos, sin, layout_of(x, cos, unsqueeze_dim))

    def by_tables(
        self, xs: tuple[torch.Tensor | None, ...], x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: Layout
    ) -> Tensors:
        batch, seq = x.shape[0] if x.ndim == 4 else 1, x.shape[-2 if layout == "bhsd" else -3]
        columns = self.values.columns
        rows = {name: rows_of(name, table, take, batch, seq) for name, take, table in (
            ("cos", self.values.cos, cos), ("sin", self.values.sin, sin))}  # fmt: skip
        rotary_dim, dim = rows["cos"].shape[-1] * (2 if columns == "pairs" else 1), x.shape[-1]
        if rotary_dim > dim or (rotary_dim < dim and not self.rest):
            raise ValueError(f"cos: {rotary_dim} elements of a head turn, of q's {dim}")
        heads = -3 if layout == "bhsd" else -2
        for other in xs:
            if other is not None and tokens_of(other, heads) != tokens_of(x, heads):
                raise ValueError(f"k: shape {tuple(other.shape)}, must have the tokens of q, {tuple(x.shape)}")
        batched = tuple(x[None] if x is not None and x.ndim < len(layout) else x for x in xs)
        outs = rotate(
            batched, rows, layout, {}, neox=self.pairing == "neox", columns=columns, inverse=self.backward,
            rotary_offset=dim - rotary_dim if self.last else 0, out_layout=self.out_pairing,
        )  # fmt: skip
        return [y if y is None or x is None else y.view(x.shape) for x, y in zip(xs, outs, strict=True)]


def tokens_of(x: torch.Tensor, heads: int) -> list[int]:
    """Batch, if there is one, and sequence."""
    return [n for i, n in enumerate(x.shape[:-1], -x.ndim) if i != heads]


def layout_of(x: torch.Tensor, cos: torch.Tensor, unsqueeze_dim: int) -> Layout:
    """Of x as four dimensions, where the heads are at unsqueeze_dim of cos."""
    heads = unsqueeze_dim if unsqueeze_dim < 0 else unsqueeze_dim - cos.ndim - 1
    if x.ndim not in (3, 4) or heads not in (-3, -2):
        raise ValueError(
            f"unsqueeze_dim: {unsqueeze_dim}, must name the heads of q, {tuple(x.shape)}, in cos, {tuple(cos.shape)}"
        )
    return "bhsd" if heads == -3 else "bshd"


def rows_of(name: str, table: torch.Tensor, take: Take, batch: int, seq: int) -> torch.Tensor:
    """[seq, columns], or [batch, seq, columns], where the core can read it."""
    *lead, rows, width = table.shape
    sequences = lead[-1] if lead else 1
    if rows not in (1, seq) or sequences not in (1, batch) or any(n != 1 for n in lead[:-1]):
        raise ValueError(f"{name}: shape {tuple(table.shape)}, must have a row for each of {batch} x {seq} tokens")
    taken = take(table if rows == seq else table.expand(*lead, seq, width))
    flat = readable(taken).reshape(sequences * seq, taken.shape[-1])
    return flat if sequences == 1 else flat.view(batch, seq, taken.shape[-1])


def q_and_k(form: Form) -> Callable[..., Pair]:
    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> Pair:
        return tuple(form.turn((q, k), cos, sin, unsqueeze_dim))

    return apply_rotary_pos_emb


def with_position_ids(form: Form) -> Callable[..., Pair]:
    """Which are not used."""

    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, position_ids: Any = None,
        unsqueeze_dim: int = 1,
    ) -> Pair:  # fmt: skip
        return tuple(form.turn((q, k), cos, sin, unsqueeze_dim))

    return apply_rotary_pos_emb


def k_optional(form: Form) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def apply_rotary_pos_emb_interleave(
        q: torch.Tensor, k: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return tuple(form.turn((q, k), cos, sin, unsqueeze_dim))

    return apply_rotary_pos_emb_interleave


def k_left_out(form: Form) -> Callable[..., torch.Tensor | Pair]:
    """q alone is returned as itself."""

    def apply_rotary_pos_emb(
        q: torch.Tensor, k: Any = None, cos: Any = None, sin: Any = None, unsqueeze_dim: int = 1
    ) -> torch.Tensor | Pair:
        if k is None:
            return form.turn((q,), cos, sin, unsqueeze_dim)[0]
        return tuple(form.turn((q, k), cos, sin, unsqueeze_dim))

    return apply_rotary_pos_emb


def q_at_the_end(form: Form) -> Callable[..., Pair]:
    """q may be the last tokens of k's."""

    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> Pair:
        n = q.shape[-2]
        (turned_q,) = form.turn((q,), cos[..., -n:, :], sin[..., -n:, :], unsqueeze_dim)
        (turned_k,) = form.turn((k,), cos, sin, unsqueeze_dim)
        return turned_q, turned_k

    return apply_rotary_pos_emb


def q_k_and_v(form: Form) -> Callable[..., tuple[torch.Tensor, ...]]:
    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
        position_ids: torch.Tensor, unsqueeze_dim: int = 1,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        cos, sin = cos[position_ids], sin[position_ids]
        return *form.turn((q, k), cos, sin, unsqueeze_dim), *form.turn((v,), cos, sin, unsqueeze_dim)

    return apply_rotary_pos_emb


def one_tensor(form: Form) -> Callable[..., torch.Tensor]:
    def apply_rotary_pos_emb(
        x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> torch.Tensor:
        return form.turn((x,), cos, sin, unsqueeze_dim)[0]

    return apply_rotary_pos_emb


def sin_first(form: Form) -> Callable[..., torch.Tensor]:
    def apply_rotary_pos_emb(tensor: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        return form.turn((tensor,), cos, sin, 2)[0]

    return apply_rotary_pos_emb


def vision(form: Form) -> Callable[..., Pair]:
    def apply_rotary_pos_emb_vision(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Pair:
        return tuple(form.turn((q, k), cos, sin, -2))

    return apply_rotary_pos_emb_vision


def patches(form: Form) -> Callable[..., Pair]:
    """Tokens before the patches stay; cos and sin broadcast over heads."""

    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **kwargs: Any
    ) -> Pair:
        n = q.shape[-2] - sin.shape[-2]
        parts = [x.split((n, sin.shape[-2]), dim=-2) for x in (q, k)]
        turned = form.turn((parts[0][1], parts[1][1]), *over_heads(cos, sin), -3)
        outs = [torch.cat((part[0], y), dim=-2) for part, y in zip(parts, turned, strict=True)]
        return outs[0], outs[1]

    return apply_rotary_pos_emb


def over_heads(cos: torch.Tensor, sin: torch.Tensor) -> Pair:
    """Without the dimension of size 1 for heads that broadcasting does not need."""
    if cos.ndim < 4:
        return cos, sin
    if cos.shape[1] != 1:
        raise ValueError(f"cos: shape {tuple(cos.shape)}, must be the same for all heads")
    return cos.squeeze(1), sin.squeeze(1)


def two_dimensions(form: Form) -> Callable[..., Pair]:
    def apply_rotary_pos_emb_2d(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Pair:
        return tuple(form.turn((q, k), *over_heads(cos, sin), -3))

    return apply_rotary_pos_emb_2d


def complex_behind(form: Form) -> Callable[..., Pair]:
    """[batch, heads, seq, head_dim]."""

    def apply_rotary_emb(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> Pair:
        return tuple(form.turn((xq, xk), freqs_cis, freqs_cis, 1))

    return apply_rotary_emb


def complex_in_front(form: Form) -> Callable[..., Pair]:
    """[batch, seq, heads, head_dim]."""

    def apply_rotary_emb(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> Pair:
        return tuple(form.turn((xq, xk), freqs_cis, freqs_cis, 2))

    return apply_rotary_emb
