"""flashinfer.norm, of which the norm that a rotation follows."""

from typing import Any

import torch

import pyrope.torch
from pyrope.compat._ropes import rope_of
from pyrope.compat._serving import check_dtype, ramped_frequencies, scale_of


def _positions(frames: int, height: int, width: int, batch: int, device: torch.device) -> torch.Tensor:
    """``[3, tokens]``: where every patch is, frame by frame."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in (frames, height, width)), indexing="ij")
    return torch.stack(axes).view(3, -1).repeat(1, batch)


def fused_qk_rmsnorm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    *,
    ppf: int,
    pph: int,
    ppw: int,
    num_frame_channels: int,
    num_height_channels: int,
    num_width_channels: int,
    num_heads_q: int,
    num_heads_k: int,
    num_heads_v: int,
    head_dim: int,
    eps: float = 1e-6,
    base: float = 10000.0,
    interleave: bool = True,
    factor: float = 1.0,
    low: float = 0.0,
    high: float = 0.0,
    attention_factor: float = 1.0,
    is_qk_norm: bool = True,
    output_fp8: bool = False,
    output_quant_scale: float = 1.0,
    v_quant_scale: float = 1.0,
    q_out: torch.Tensor | None = None,
    k_out: torch.Tensor | None = None,
    v_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm across the heads of q and of k, rotate by a video's frame, row and column, and copy v.

    Parameters
    ----------
    qkv : torch.Tensor
        ``[batch, ppf * pph * ppw, (all heads) * head_dim]``, or the same of two dimensions.
    q_weight, k_weight : torch.Tensor
        ``[heads * head_dim]``.
    ppf, pph, ppw : int
        Patches of a video: frames, rows and columns.
    num_frame_channels, num_height_channels, num_width_channels : int
        Elements of a head that turn by each; together ``head_dim``.
    num_heads_q, num_heads_k, num_heads_v, head_dim : int
        Shape of qkv.
    eps, base, interleave, attention_factor
        As for :class:`pyrope.RMSNorm` and :class:`pyrope.Rope`.
    factor, low, high : float
        YaRN's: pairs before ``low`` of each section keep their frequency, those behind ``high`` have it divided by
        factor, with a ramp between.
    is_qk_norm : bool
        Whether there is a norm.
    output_fp8 : bool
        Outputs are ``torch.float8_e4m3fn``, of the values times ``output_quant_scale`` and, of v, ``v_quant_scale``.
    q_out, k_out, v_out : torch.Tensor, optional
        Outputs.

    Returns
    -------
    (q_out, k_out, v_out)
        ``[batch, tokens, heads, head_dim]``, or without the batch.
    """
    channels = num_frame_channels, num_height_channels, num_width_channels
    for name, n in zip(("num_frame_channels", "num_height_channels", "num_width_channels"), channels, strict=True):
        if n < 0 or n % 2:
            raise ValueError(f"{name}: {n}, must be even")
    if sum(channels) != head_dim:
        raise ValueError(f"head_dim: {head_dim}, must be the sum of the three numbers of channels, {channels}")
    if factor == 1.0 and attention_factor != 1.0:
        raise ValueError(f"attention_factor: {attention_factor}, must be 1 with factor=1")
    heads = num_heads_q, num_heads_k, num_heads_v
    tokens, batch = _tokens(qkv, sum(heads) * head_dim, ppf * pph * ppw)
    flat = qkv.reshape(tokens, -1) if tokens else qkv.new_empty(0, sum(heads) * head_dim)
    parts = [x.unflatten(1, (-1, head_dim)) for x in flat.split([n * head_dim for n in heads], 1)]

    dtype = torch.float8_e4m3fn if output_fp8 else qkv.dtype
    lead = (tokens,) if qkv.ndim == 2 else (batch, ppf * pph * ppw)
    outs = []
    for name, given, n in zip(("q_out", "k_out", "v_out"), (q_out, k_out, v_out), heads, strict=True):
        out = torch.empty(*lead, n, head_dim, dtype=dtype, device=qkv.device) if given is None else given
        check_dtype(name, out, dtype)
        if out.shape != (*lead, n, head_dim) or not out.is_contiguous():
            raise ValueError(f"{name}: shape {tuple(out.shape)}, must be contiguous {[*lead, n, head_dim]}")
        outs.append(out)

    stored = "float8_e4m3fn" if output_fp8 else None
    each = (ramped_frequencies(n, base, factor, low, high) for n in channels if n)
    frequencies = tuple(frequency for section in each for frequency in section)
    rope = rope_of(
        head_dim, num_heads_q, num_heads_k, head_dim, not interleave, qkv.dtype, qkv.device.type,
        norm=(eps, None, 0.0, False, True) if is_qk_norm else None,
        inv_freq=frequencies, attention_factor=attention_factor,
        sections=tuple(n // 2 for n in channels), num_v_heads=num_heads_v,
        q_out_dtype=stored, k_out_dtype=stored, v_out_dtype=stored,
    )  # fmt: skip
    q, k, v = parts
    arguments: dict[str, Any] = {f"{x}_out": out.view(tokens, -1, head_dim) for x, out in zip("qkv", outs, strict=True)}
    if is_qk_norm:
        arguments |= {"q_weight": q_weight.reshape(-1), "k_weight": k_weight.reshape(-1)}
    if output_fp8:
        scale = scale_of("output_quant_scale", output_quant_scale)
        arguments |= {"q_scale": scale, "k_scale": scale, "v_scale": scale_of("v_quant_scale", v_quant_scale)}
    positions = _positions(ppf, pph, ppw, batch, qkv.device)
    pyrope.torch.apply_(rope, q, k, layout="thd", positions=positions, v=v, **arguments)
    return outs[0], outs[1], outs[2]


def _tokens(qkv: torch.Tensor, width: int, patches: int) -> tuple[int, int]:
    """Tokens and videos."""
    if qkv.ndim not in (2, 3) or qkv.shape[-1] != width:
        raise ValueError(f"qkv: shape {tuple(qkv.shape)}, must be [batch, tokens, {width}] or [tokens, {width}]")
    if qkv.ndim == 3 and qkv.shape[1] != patches:
        raise ValueError(f"qkv: {qkv.shape[1]} tokens, must be ppf * pph * ppw = {patches}")
    tokens = qkv.shape[:-1].numel()
    if patches < 1 or tokens % patches:
        raise ValueError(f"qkv: {tokens} tokens, must be a multiple of ppf * pph * ppw = {patches}")
    return tokens, tokens // patches
