"""Frequency scalings: how a model's context was stretched, as data.

Each class names the parameters of one method; the library turns them into one frequency per pair
(:attr:`pyrope.Rope.inv_freq`) and one magnitude (:attr:`pyrope.Rope.attention_factor`).
"""

from collections.abc import Iterable

from pyrope._frozen import Frozen

__all__ = ["NTK", "DynamicNTK", "Linear", "Llama3", "LongRoPE", "PairFactors", "Proportional", "Scaling", "YaRN"]


class Scaling(Frozen):
    """Base class. Attributes have the names that roperope.h has in rope_frequencies_desc; None means its default."""


class Linear(Scaling):
    """Position interpolation (Chen et al., arXiv:2306.15595): every frequency divided by ``factor`` (> 0)."""

    factor: float

    def __init__(self, factor: float) -> None:
        vars(self).update(factor=factor)


class Llama3(Scaling):
    """Llama 3.1 (``apply_scaling`` in Meta's llama-models).

    Pairs that turn fewer than ``low_freq_factor`` times within ``original_max_position`` tokens are slowed down by
    ``factor``, those that turn more than ``high_freq_factor`` times are kept, and those between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __init__(
        self,
        factor: float = 8.0,
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        original_max_position: int = 8192,
    ) -> None:
        vars(self).update(
            factor=factor,
            low_freq_factor=low_freq_factor,
            high_freq_factor=high_freq_factor,
            original_max_position=original_max_position,
        )


class NTK(Scaling):
    """NTK-aware scaling (bloc97, 2023; arXiv:2309.00071, definition 1).

    ``theta`` is multiplied by ``factor ** (rotary_dim / (rotary_dim - 2))``: the slowest pair is divided by
    ``factor``, the fastest kept.
    """

    factor: float

    def __init__(self, factor: float) -> None:
        vars(self).update(factor=factor)


class DynamicNTK(Scaling):
    """Dynamic NTK (emozilla, 2023): NTK by how far a context of ``seq_len`` tokens exceeds ``original_max_position``.

    NTK's factor is ``factor * seq_len / original_max_position - (factor - 1)``, at least 1. A Rope is for one
    ``seq_len``; keys rotated for another must be rotated anew.
    """

    factor: float
    original_max_position: int
    seq_len: int | None

    def __init__(self, factor: float, original_max_position: int, seq_len: int | None = None) -> None:
        vars(self).update(factor=factor, original_max_position=original_max_position, seq_len=seq_len)


class YaRN(Scaling):
    """YaRN (Peng et al., arXiv:2309.00071), with the mscale of DeepSeek-V2 (arXiv:2405.04434).

    Pairs that turn fewer than ``beta_slow`` times within ``original_max_position`` tokens are slowed down by
    ``factor``, those that turn more than ``beta_fast`` times are kept, and between the two is a ramp over the pairs'
    indices, whose ends ``truncate`` rounds outwards, as the authors' code does. The magnitude is
    ``(0.1 * mscale * log(factor) + 1) / (0.1 * mscale_all_dim * log(factor) + 1)``.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float | None
    truncate: bool

    def __init__(
        self,
        factor: float,
        original_max_position: int,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        mscale: float = 1.0,
        mscale_all_dim: float | None = None,
        truncate: bool = True,
    ) -> None:
        vars(self).update(
            factor=factor,
            original_max_position=original_max_position,
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            mscale=mscale,
            mscale_all_dim=mscale_all_dim,
            truncate=truncate,
        )


class LongRoPE(Scaling):
    """LongRoPE (Ding et al., arXiv:2402.13753), with the magnitude of Phi-3.

    Pair ``i`` is divided by ``short_factors[i]``, or by ``long_factors[i]`` if a context of ``seq_len`` tokens exceeds
    ``original_max_position``. The magnitude is ``sqrt(1 + log(factor) / log(original_max_position))``, where
    ``factor`` is how many times longer than that a context may be. As with DynamicNTK, a Rope is for one ``seq_len``.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    factor: float
    original_max_position: int
    seq_len: int | None

    def __init__(
        self,
        short_factors: Iterable[float],
        long_factors: Iterable[float],
        factor: float,
        original_max_position: int,
        seq_len: int | None = None,
    ) -> None:
        vars(self).update(
            short_factors=_numbers("short_factors", short_factors),
            long_factors=_numbers("long_factors", long_factors),
            factor=factor,
            original_max_position=original_max_position,
            seq_len=seq_len,
        )


class PairFactors(Scaling):
    """Pair ``i`` divided by ``pair_factors[i]``, as the tensor ``rope_freqs`` of a GGUF file holds them."""

    pair_factors: tuple[float, ...]

    def __init__(self, pair_factors: Iterable[float]) -> None:
        vars(self).update(pair_factors=_numbers("pair_factors", pair_factors))


class Proportional(Scaling):
    """p-RoPE (Barbero et al., arXiv:2410.06205): of the pairs only the fastest turn, a ``proportion`` of them.

    Unlike a smaller ``rotary_dim``, which would give the pairs that turn the frequencies of all. Those frequencies
    are divided by ``factor``.
    """

    proportion: float
    factor: float

    def __init__(self, proportion: float, factor: float = 1.0) -> None:
        vars(self).update(proportion=proportion, factor=factor)


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name}: {values!r} is not a sequence of numbers") from None
