# Made by tools/stubs.py from _attention.pyx.
from typing import SupportsFloat, SupportsIndex

from typing_extensions import disjoint_base

from pyrope._rope import Rope
from pyrope.typing import AttentionStrides, Memory, Stream

@disjoint_base
class RopeAttention:
    @property
    def rope(self) -> Rope: ...
    @property
    def causal(self) -> bool: ...
    @property
    def window_size(self) -> tuple[int, int]: ...
    def __init__(
        self,
        rope: Rope,
        *,
        v_head_dim: SupportsIndex | None = None,
        causal: bool = False,
        window_size: tuple[SupportsIndex, SupportsIndex] | None = None,
        scale: SupportsFloat | None = None,
        softcap: SupportsFloat = 0.0,
    ) -> None: ...
    @property
    def v_head_dim(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def softcap(self) -> float: ...
    def workspace_size(
        self,
        num_q_tokens: SupportsIndex,
        num_k_tokens: SupportsIndex | None = None,
        *,
        num_sequences: SupportsIndex = 1,
        q_rotated: bool = False,
        k_rotated: bool = False,
        keeps_q: bool = False,
        keeps_k: bool = False,
    ) -> int: ...
    def apply(
        self,
        q: Memory,
        k: Memory,
        v: Memory,
        out: Memory,
        *,
        positions: Memory | None = None,
        offset: SupportsIndex = 0,
        lse: Memory | None = None,
        sinks: Memory | None = None,
        q_rotated: bool = False,
        k_rotated: bool = False,
        q_out: Memory | None = None,
        k_out: Memory | None = None,
        num_q_tokens: SupportsIndex | None = None,
        num_k_tokens: SupportsIndex | None = None,
        num_sequences: SupportsIndex | None = None,
        q_indptr: Memory | None = None,
        k_indptr: Memory | None = None,
        max_q_tokens: SupportsIndex | None = None,
        max_k_tokens: SupportsIndex | None = None,
        q_strides: AttentionStrides | None = None,
        k_strides: AttentionStrides | None = None,
        v_strides: AttentionStrides | None = None,
        out_strides: AttentionStrides | None = None,
        q_out_strides: AttentionStrides | None = None,
        k_out_strides: AttentionStrides | None = None,
        positions_stride: SupportsIndex | None = None,
        cos: Memory | None = None,
        sin: Memory | None = None,
        angles: Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        workspace: Memory | None = None,
        workspace_size: SupportsIndex | None = None,
        stream: Stream | None = None,
    ) -> None: ...
    def backward_workspace_size(
        self,
        num_q_tokens: SupportsIndex,
        num_k_tokens: SupportsIndex | None = None,
        *,
        num_sequences: SupportsIndex = 1,
        ragged: bool = False,
    ) -> int: ...
    def backward(
        self,
        d_out: Memory,
        q: Memory,
        k: Memory,
        v: Memory,
        out: Memory,
        lse: Memory,
        dq: Memory,
        dk: Memory,
        dv: Memory,
        *,
        positions: Memory | None = None,
        offset: SupportsIndex = 0,
        sinks: Memory | None = None,
        d_sinks: Memory | None = None,
        d_lse: Memory | None = None,
        q_rotated: bool = False,
        k_rotated: bool = False,
        deterministic: bool = False,
        num_q_tokens: SupportsIndex | None = None,
        num_k_tokens: SupportsIndex | None = None,
        num_sequences: SupportsIndex | None = None,
        q_indptr: Memory | None = None,
        k_indptr: Memory | None = None,
        max_q_tokens: SupportsIndex | None = None,
        max_k_tokens: SupportsIndex | None = None,
        d_out_strides: AttentionStrides | None = None,
        q_strides: AttentionStrides | None = None,
        k_strides: AttentionStrides | None = None,
        v_strides: AttentionStrides | None = None,
        out_strides: AttentionStrides | None = None,
        dq_strides: AttentionStrides | None = None,
        dk_strides: AttentionStrides | None = None,
        dv_strides: AttentionStrides | None = None,
        positions_stride: SupportsIndex | None = None,
        cos: Memory | None = None,
        sin: Memory | None = None,
        angles: Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        workspace: Memory | None = None,
        workspace_size: SupportsIndex | None = None,
        stream: Stream | None = None,
    ) -> None: ...
