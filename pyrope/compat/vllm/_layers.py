"""vllm.model_executor.layers.rotary_embedding: layers, whose angles are exact, and get_rope."""

import functools
from typing import Any

import torch

import pyrope
import pyrope.torch
from pyrope._hf_read import SCALINGS, Section, Source
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import heads_of
from pyrope.compat.vllm._custom_ops import rows_of
from pyrope.errors import UnsupportedError


class RotaryEmbedding(torch.nn.Module):
    """Rotation of query and key where they lie, by exact angles.

    Parameters
    ----------
    head_size, rotary_dim : int
        Elements of a head, and how many of them are rotated.
    max_position_embeddings : int
        Rows of ``cos_sin_cache``; positions may be higher.
    base : float
        Of the frequencies.
    is_neox_style : bool
        Pairs are halves instead of neighbours.
    dtype : torch.dtype
        Of ``cos_sin_cache``.
    init_cache : bool
        Means nothing here: ``cos_sin_cache`` is made when it is asked for.
    """

    _cos_sin_cache: torch.Tensor | None

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        dtype: torch.dtype,
        init_cache: bool = True,
    ) -> None:
        super().__init__()
        self.head_size, self.rotary_dim = head_size, rotary_dim
        self.max_position_embeddings, self.base = max_position_embeddings, base
        self.is_neox_style, self.dtype = is_neox_style, dtype
        self._options: dict[str, Any] = {"theta": base}  # rope_of's; and those of text, whose positions are single
        self._text = self._options
        self._made_on = torch.get_default_device()
        self.register_buffer("_cos_sin_cache", None, persistent=False)

    def _set(self, options: dict[str, Any]) -> None:
        """Other frequencies."""
        self._text = self._options = options

    @property
    def cos_sin_cache(self) -> torch.Tensor:
        """``[max_position_embeddings, rotary_dim]``, for functions that take a table; :meth:`forward` does not."""
        if self._cos_sin_cache is None:
            cache = torch.empty(self.max_position_embeddings, self.rotary_dim, dtype=self.dtype, device="cpu")
            shape = self.head_size, 1, 0, self.rotary_dim, self.is_neox_style, "float32", "cpu"
            rope_of(*shape, **self._text).build_cos_sin(cache)
            self._cos_sin_cache = cache.to(self._made_on)
        return self._cos_sin_cache

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As :func:`pyrope.compat.vllm.rotary_embedding`; returns query and key, which are written."""
        q, q_heads = rows_of("query", query, positions, self.head_size)
        k, k_heads = (None, 0) if key is None else rows_of("key", key, positions, self.head_size)
        shape = self.head_size, q_heads, k_heads, self.rotary_dim, self.is_neox_style
        rope = rope_of(*shape, query.dtype, query.device.type, **self._options)
        pyrope.torch.apply_(rope, q, k, layout="thd" if positions.ndim == 1 else "bshd", positions=positions)
        return query, key

    def extra_repr(self) -> str:
        return (
            f"head_size={self.head_size}, rotary_dim={self.rotary_dim}, "
            f"max_position_embeddings={self.max_position_embeddings}, base={self.base}, "
            f"is_neox_style={self.is_neox_style}"
        )


class MRotaryEmbedding(RotaryEmbedding):
    """M-RoPE: the positions of a token are three, and each turns a section of the pairs.

    Parameters
    ----------
    head_size, rotary_dim, base, is_neox_style, dtype
        As for :class:`RotaryEmbedding`.
    max_position_embeddings : int
        A quarter of the rows of ``cos_sin_cache``.
    mrope_section : list of int, optional
        Pairs of each section, in all ``rotary_dim / 2``.
    mrope_interleaved : bool
        As ``sections_interleaved`` of :class:`pyrope.FusedRope`.
    scaling_factor, beta_fast, beta_slow, truncate
        With the first, YaRN's.
    extrapolation_factor : float
        1.
    attn_factor : float
        What YaRN's magnitude is multiplied with.
    """

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        dtype: torch.dtype,
        mrope_section: list[int] | None = None,
        mrope_interleaved: bool = False,
        *,
        scaling_factor: float | None = None,
        extrapolation_factor: float = 1,
        attn_factor: float = 1,
        beta_fast: int = 32,
        beta_slow: int = 1,
        truncate: bool = True,
    ) -> None:
        shape = head_size, rotary_dim, max_position_embeddings * 4, base, is_neox_style, dtype
        super().__init__(*shape)
        if scaling_factor is not None:
            names = "beta_fast", "beta_slow", "truncate", "extrapolation_factor", "attn_factor"
            given = dict(zip(names, (beta_fast, beta_slow, truncate, extrapolation_factor, attn_factor), strict=True))
            self._text = self._text | yarn(given | {"factor": scaling_factor}, max_position_embeddings)
        self.mrope_section, self.mrope_interleaved = mrope_section, mrope_interleaved
        self._set(self._text)

    def _set(self, options: dict[str, Any]) -> None:
        self._text = self._options = options
        if self.mrope_section:
            streams = {"sections": tuple(self.mrope_section), "sections_interleaved": self.mrope_interleaved}
            self._options = options | streams

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate query and key, ``[tokens, heads * head_size]``, where they lie; returns them.

        ``positions`` is ``[number of sections, tokens]``, or ``[tokens]`` of text.
        """
        streams = positions.ndim == 2
        if streams and not self.mrope_section:
            raise ValueError(f"positions: shape {tuple(positions.shape)}, must be [tokens] without mrope_section")
        one = positions[0] if streams else positions
        q, q_heads = rows_of("query", query, one, self.head_size)
        k, k_heads = (None, 0) if key is None else rows_of("key", key, one, self.head_size)
        shape = self.head_size, q_heads, k_heads, self.rotary_dim, self.is_neox_style
        rope = rope_of(*shape, query.dtype, query.device.type, **(self._options if streams else self._text))
        pyrope.torch.apply_(rope, q, k, layout="thd", positions=positions)
        return query, key


def triton_mrope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mrope_section: list[int],
    head_size: int,
    rotary_dim: int,
    mrope_interleaved: bool,
    is_neox_style: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """M-RoPE by rows of cosines and sines for each token and section.

    Parameters
    ----------
    q, k : torch.Tensor
        ``[tokens, heads * head_size]``, which are written where they are contiguous.
    cos, sin : torch.Tensor
        ``[sections, tokens, rotary_dim / 2]``.
    mrope_section, head_size, rotary_dim, mrope_interleaved, is_neox_style
        As for :class:`MRotaryEmbedding`.

    Returns
    -------
    (q, k)
    """
    tokens = q.shape[0]
    expected = (len(mrope_section), tokens, rotary_dim // 2)
    for name, x in (("cos", cos), ("sin", sin)):
        if x.shape != expected:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, must be {list(expected)}")
    q, k = q.contiguous(), k.contiguous()
    rope = rope_of(
        head_size, heads_of("q", q.shape[1], head_size), heads_of("k", k.shape[1], head_size), rotary_dim,
        is_neox_style, q.dtype, q.device.type, angle="cos_sin", cos_sin_dtype=cos.dtype,
        sections=tuple(mrope_section), sections_interleaved=mrope_interleaved,
    )  # fmt: skip
    rows = torch.arange(len(mrope_section) * tokens, device=q.device).view(-1, tokens)
    if tokens:
        pyrope.torch.apply_(rope, q, k, layout="thd", positions=rows, cos=cos.flatten(0, 1), sin=sin.flatten(0, 1))
    return q, k


mrope = triton_mrope


class ApplyRotaryEmb(torch.nn.Module):
    """Rotation of one tensor by cosines and sines, a row a token.

    Parameters
    ----------
    enforce_enable : bool
        Means nothing here.
    is_neox_style : bool
        Pairs are halves instead of neighbours.
    enable_fp32_compute : bool
        Always so.
    """

    def __init__(
        self, enforce_enable: bool = False, is_neox_style: bool = True, enable_fp32_compute: bool = False
    ) -> None:
        super().__init__()
        self.is_neox_style, self.enable_fp32_compute = is_neox_style, enable_fp32_compute

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x is ``[seq, heads, head_size]`` or a batch of those; cos and sin ``[seq, rotary_dim / 2]`` of any dtype."""
        if x.ndim not in (3, 4):
            raise ValueError(f"x: shape {tuple(x.shape)}, must be [batch, seq, heads, head_size] or without the batch")
        for name, t in (("cos", cos), ("sin", sin)):
            if t.ndim != 2 or t.shape[0] != x.shape[-3]:
                raise ValueError(f"{name}: shape {tuple(t.shape)}, must be [{x.shape[-3]}, rotary_dim / 2]")
        rope = rope_of(
            x.shape[-1], x.shape[-2], 0, 2 * cos.shape[1], self.is_neox_style, x.dtype, x.device.type,
            angle="cos_sin", cos_sin_dtype=cos.dtype,
        )  # fmt: skip
        layout: Any = "thd" if x.ndim == 3 else "bshd"
        out, _ = pyrope.torch.apply(rope, x, layout=layout, cos=cos.contiguous(), sin=sin.contiguous())
        assert out is not None
        return out


# ---- get_rope


def yarn(parameters: dict[str, Any], original: int) -> dict[str, Any]:
    """YaRN, and the magnitude that vLLM gives it."""
    if parameters.get("extrapolation_factor", 1) != 1:
        raise UnsupportedError(f"extrapolation_factor: {parameters['extrapolation_factor']}, must be 1")
    factor = parameters["factor"]
    arguments = (
        pyrope.YaRN, factor, original, parameters.get("beta_fast", 32), parameters.get("beta_slow", 1),
        parameters.get("mscale", 1), parameters.get("mscale_all_dim") or None, parameters.get("truncate", True),
    )  # fmt: skip
    magnitude = pyrope.Rope(64, 1, 0, device="cpu", scaling=pyrope.YaRN(*arguments[1:])).attention_factor
    if not parameters.get("apply_yarn_scaling", True):
        magnitude = 1.0
    return {"scaling": arguments, "attention_factor": magnitude * parameters.get("attn_factor", 1)}


def _scaled(kind: str, parameters: dict[str, Any], head_size: int, partial: float, longest: int) -> dict[str, Any]:
    if kind in ("yarn", "deepseek_yarn", "deepseek_llama_scaling"):
        if parameters.get("attention_factor") is not None:
            raise UnsupportedError("attention_factor: vLLM reads attn_factor")
        return yarn(parameters, parameters["original_max_position_embeddings"])
    if kind not in ("default", "mrope", "linear", "ntk", "dynamic", "llama3", "longrope", "proportional"):
        raise UnsupportedError(f"rope_type: {kind!r}, not there")
    # Dynamic NTK is stretched to what the factor makes of the context, LongRoPE long where that exceeds the training's.
    length = int(longest * parameters["factor"]) if kind == "dynamic" and "factor" in parameters else longest
    config = Section("", {"max_position_embeddings": longest})
    source = Source(Section("rope_parameters", parameters), config, head_size, partial, length)
    scaling, attention_factor = SCALINGS[kind](source)
    made = None if scaling is None else (type(scaling), *vars(scaling).values())
    return {"scaling": made, "attention_factor": attention_factor}


def get_rope(
    head_size: int,
    max_position: int,
    is_neox_style: bool = True,
    rope_parameters: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    dual_chunk_attention_config: dict[str, Any] | None = None,
) -> RotaryEmbedding:
    """The layer of a model's ``rope_parameters``; equal arguments give the same object.

    Raises
    ------
    ValueError
        A parameter is missing or not allowed; the text names it.
    pyrope.UnsupportedError
        A kind of rotation that is not there.
    """
    if dual_chunk_attention_config is not None:
        raise UnsupportedError("dual_chunk_attention_config: not there")
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in (rope_parameters or {}).items()}
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return _layer(head_size, max_position, is_neox_style, tuple(parameters.items()), dtype)


@functools.lru_cache(maxsize=64)
def _layer(
    head_size: int, max_position: int, is_neox_style: bool, items: tuple[tuple[str, Any], ...], dtype: torch.dtype
) -> RotaryEmbedding:
    parameters = dict(items)
    base, kind = parameters.get("rope_theta", 10000), parameters.get("rope_type", "default")
    partial = parameters.get("partial_rotary_factor", 1.0)
    if not 0 < partial <= 1:
        raise ValueError(f"partial_rotary_factor: {partial}, must be above 0 and at most 1")
    rotary_dim = head_size if kind == "proportional" else int(head_size * partial)
    try:
        options = {"theta": base} | _scaled(kind, parameters, head_size, partial, max_position)
    except KeyError as missing:
        raise ValueError(f"rope_parameters: {missing} is missing") from None
    sections = parameters.get("mrope_section")
    if sections is None:
        layer = RotaryEmbedding(head_size, rotary_dim, max_position, base, is_neox_style, dtype)
        layer._set(options)
        return layer
    interleaved = parameters.get("mrope_interleaved", False)
    layer = MRotaryEmbedding(
        head_size, rotary_dim, max_position, base, is_neox_style, dtype, list(sections), interleaved
    )
    layer._set(options)
    return layer
