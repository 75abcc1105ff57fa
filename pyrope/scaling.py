"""Frequency scalings: how a model's context was stretched, as data.

Each class names the parameters of one method; the library turns them into one frequency per pair
(:attr:`pyrope.Rope.inv_freq`) and one magnitude (:attr:`pyrope.Rope.attention_factor`).
"""

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Linear", "Llama3", "Scaling"]


@dataclass(frozen=True)
class Scaling:
    """Base class. ``kind`` is the ``ROPE_SCALING_*`` value of roperope.h; fields have the descriptor's names."""

    kind: ClassVar[int]


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation (Chen et al., arXiv:2306.15595): every frequency divided by ``factor`` (> 0)."""

    kind: ClassVar[int] = 1
    factor: float


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1 (``apply_scaling`` in Meta's llama-models).

    Pairs that turn fewer than ``low_freq_factor`` times within ``original_max_position`` tokens are slowed down by
    ``factor``, those that turn more than ``high_freq_factor`` times are kept, and those between are interpolated.
    """

    kind: ClassVar[int] = 2
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
