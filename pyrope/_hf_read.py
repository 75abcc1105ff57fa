"""Entries of a configuration, read by name and refused by name; and what a scaling is made of."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyrope.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, PairFactors, Proportional, Scaling, YaRN


class Section:
    """A part of the configuration."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.values = {key: value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def label(self, key: str) -> str:
        return f"{self.name}[{key!r}]" if self.name else key

    def number(self, *keys: str, default: float | None = None) -> float:
        """The first of the keys that is there; without a default, one must be."""
        for key in keys:
            if key in self:
                value = self.values[key]
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                    raise ValueError(f"{self.label(key)}: {value!r}, must be a number above 0")
                return float(value)
        if default is None:
            raise ValueError(f"{self.label(keys[0])}: missing")
        return float(default)

    def integer(self, *keys: str, default: int | None = None) -> int:
        value = self.number(*keys, default=default)
        if not value.is_integer():
            key = next(key for key in keys if key in self)
            raise ValueError(f"{self.label(key)}: {value!r}, must be an integer")
        return int(value)

    def items(self, key: str) -> list[Any]:
        if key not in self:
            raise ValueError(f"{self.label(key)}: missing")
        value = self.values[key]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{self.label(key)}: {value!r}, must be a list")
        return list(value)

    def section(self, key: str) -> "Section":
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.label(key)}: {value!r}, must be a dict")
        return Section(self.label(key), value)


class Source(NamedTuple):
    """What a scaling is made of. head_dim: of the elements that partial, 0 to 1, is a part of."""

    parameters: Section
    config: Section
    head_dim: int
    partial: float
    seq_len: int | None

    @property
    def original(self) -> int:
        """Context length of the original training; Phi-3 has it outside the parameters, and there it counts."""
        key = "original_max_position_embeddings"
        return next((s.integer(key) for s in (self.config, self.parameters) if key in s), 0) or self.longest

    @property
    def longest(self) -> int:
        return self.config.integer("max_position_embeddings", "n_positions", "seq_length")

    @property
    def factor(self) -> float:
        if "factor" in self.parameters:
            return self.parameters.number("factor")
        return self.longest / self.original

    @property
    def attention_factor(self) -> float | None:
        key = "attention_factor"
        return self.parameters.number(key) if key in self.parameters else None


Made = tuple[Scaling | None, float | None]  # and the attention factor, if it is not the scaling's own


def _default(source: Source) -> Made:
    return None, None


def _linear(source: Source) -> Made:
    return Linear(source.parameters.number("factor")), None


def _dynamic(source: Source) -> Made:
    if source.parameters.get("alpha"):  # Hunyuan: stretched alike at every length
        return NTK(source.parameters.number("alpha")), None
    return DynamicNTK(source.parameters.number("factor"), source.longest, source.seq_len), None


def _qwen(source: Source) -> Made:
    """Qwen-7B's: factors 1, 3, 7, ... where a context is up to 1, 2, 4, ... times as long as those of the training."""
    trained = source.config.integer("seq_length")
    doublings = math.ceil(math.log2(max(source.seq_len or trained, trained) / trained) + 1)
    return NTK(float(2**doublings - 1)), None


def _xdrope(source: Source) -> Made:
    return NTK(source.parameters.number("alpha")), None


def _ntk(source: Source) -> Made:
    """Pair i of n divided by factor^(((i + 1) / n)^mixed_b), which for 1 is the base times factor, and a divisor
    (kexue.fm/archives/9706).
    """
    p, pairs = source.parameters, int(source.head_dim * source.partial) // 2
    factor, power = p.number("factor"), p.number("mixed_b", default=1.0)
    return PairFactors(factor ** (((i + 1) / pairs) ** power) for i in range(pairs)), None


def _yarn(source: Source) -> Made:
    p = source.parameters
    mscale = {}
    if p.get("mscale") and p.get("mscale_all_dim"):  # one alone does not count
        mscale = {"mscale": p.number("mscale"), "mscale_all_dim": p.number("mscale_all_dim")}
    truncate = p.get("truncate")
    if truncate not in (None, True, False):
        raise ValueError(f"{p.label('truncate')}: {truncate!r}, must be true or false")
    scaling = YaRN(
        source.factor,
        source.original,
        p.number("beta_fast", default=32.0),
        p.number("beta_slow", default=1.0),
        truncate=truncate is not False,
        **mscale,
    )
    return scaling, source.attention_factor


def _longrope(source: Source) -> Made:
    p, original = source.parameters, source.original
    scaling = LongRoPE(p.items("short_factor"), p.items("long_factor"), source.factor, original, source.seq_len)
    if "short_mscale" in p or "long_mscale" in p:  # Phi-3.5-MoE: a magnitude for each
        return scaling, p.number("long_mscale" if (source.seq_len or 0) > original else "short_mscale")
    return scaling, source.attention_factor


def _llama3(source: Source) -> Made:
    p = source.parameters
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    return Llama3(p.number("factor"), low, high, source.original), None


def _proportional(source: Source) -> Made:
    return Proportional(source.partial, source.parameters.number("factor", default=1.0)), None


SCALINGS: dict[str, Callable[[Source], Made]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
    "ntk": _ntk,
    "qwen_ntk": _qwen,
    "xdrope": _xdrope,
    "mrope": _default,  # Qwen2-VL's old name: the sections say which position a pair takes, not its frequency
    "su": _longrope,  # Phi-3's old name
    "deepseek_yarn": _yarn,
}
