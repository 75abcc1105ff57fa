"""Frequency scalings: how a model's context was stretched, as data.

Each class names the parameters of one method; the library turns them into one frequency per pair
(:attr:`pyrope.Rope.inv_freq`) and one magnitude (:attr:`pyrope.Rope.attention_factor`).
"""

__all__ = ["Linear", "Llama3", "Scaling"]


class Scaling:
    """Base class. ``kind`` is the ``ROPE_SCALING_*`` value of roperope.h; attributes have the descriptor's names.

    Immutable and compared by value, like a frozen dataclass; importing the dataclasses module takes five times as
    long as importing all of pyrope.
    """

    kind: int

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}: immutable")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Linear(Scaling):
    """Position interpolation (Chen et al., arXiv:2306.15595): every frequency divided by ``factor`` (> 0)."""

    kind = 1
    factor: float

    def __init__(self, factor: float) -> None:
        vars(self).update(factor=factor)


class Llama3(Scaling):
    """Llama 3.1 (``apply_scaling`` in Meta's llama-models).

    Pairs that turn fewer than ``low_freq_factor`` times within ``original_max_position`` tokens are slowed down by
    ``factor``, those that turn more than ``high_freq_factor`` times are kept, and those between are interpolated.
    """

    kind = 2
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
