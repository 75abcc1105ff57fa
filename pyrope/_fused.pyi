# What FusedRope.apply takes, for type checkers.
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
from typing_extensions import disjoint_base

from pyrope._core import Rope, _Device, _DType, _IndexDType, _Layout, _Memory, _Numbers, _Stream, _Strides
from pyrope.scaling import Scaling
from pyrope.stages import PagedCache, RMSNorm, XPos

_OutDType: TypeAlias = Literal["float8_e4m3fn", "float8_e5m2", "int8"]
_ScaleKind: TypeAlias = Literal["tensor", "head", "token", "dynamic"]
_FusedAngle: TypeAlias = Literal["exact", "fp32", "cos_sin"]

@disjoint_base
class FusedRope(Rope):
    def __init__(
        self,
        head_dim: SupportsIndex,
        num_q_heads: SupportsIndex,
        num_k_heads: SupportsIndex,
        *,
        angle: _FusedAngle = "exact",
        cos_sin_dtype: _DType | type[Any] | np.dtype[Any] = "float32",
        sections: tuple[SupportsIndex, ...] | list[int] | None = None,
        sections_interleaved: bool = False,
        num_v_heads: SupportsIndex | None = None,
        v_head_dim: SupportsIndex | None = None,
        q_nope_dim: SupportsIndex = 0,
        xpos: XPos | None = None,
        norm: RMSNorm | None = None,
        q_out_dtype: _OutDType | type[Any] | np.dtype[Any] | None = None,
        k_out_dtype: _OutDType | type[Any] | np.dtype[Any] | None = None,
        v_out_dtype: _OutDType | type[Any] | np.dtype[Any] | None = None,
        q_scale_kind: _ScaleKind | None = None,
        k_scale_kind: _ScaleKind | None = None,
        v_scale_kind: _ScaleKind | None = None,
        cache: PagedCache | None = None,
        rotary_dim: SupportsIndex | None = None,
        rotary_offset: SupportsIndex = 0,
        theta: SupportsFloat = 10000.0,
        scaling: Scaling | None = None,
        inv_freq: _Numbers | None = None,
        attention_factor: SupportsFloat | None = None,
        layout: _Layout = "neox",
        dtype: _DType | type[Any] | np.dtype[Any] = "bfloat16",
        device: _Device = "cuda",
        position_dtype: _IndexDType | type[Any] | np.dtype[Any] = "int64",
        num_threads: SupportsIndex = 0,
        enable_pdl: bool = False,
        positions_ready: bool = False,
    ) -> None: ...
    @property
    def sections(self) -> tuple[int, ...] | None: ...
    @property
    def sections_interleaved(self) -> bool: ...
    @property
    def xpos(self) -> XPos | None: ...
    @property
    def norm(self) -> RMSNorm | None: ...
    @property
    def cache(self) -> PagedCache | None: ...
    @property
    def q_out_dtype(self) -> _OutDType | None: ...
    @property
    def k_out_dtype(self) -> _OutDType | None: ...
    @property
    def v_out_dtype(self) -> _OutDType | None: ...
    @property
    def q_scale_kind(self) -> _ScaleKind | None: ...
    @property
    def k_scale_kind(self) -> _ScaleKind | None: ...
    @property
    def v_scale_kind(self) -> _ScaleKind | None: ...
    @property
    def cos_sin_dtype(self) -> _DType: ...
    @property
    def num_v_heads(self) -> int: ...
    @property
    def v_head_dim(self) -> int: ...
    @property
    def q_nope_dim(self) -> int: ...
    def apply(
        self,
        q: _Memory | None,
        k: _Memory | None = None,
        num_tokens: SupportsIndex | None = None,
        *,
        positions: _Memory | None = None,
        offset: SupportsIndex = 0,
        indptr: _Memory | None = None,
        offsets: _Memory | None = None,
        num_requests: SupportsIndex | None = None,
        q_out: _Memory | None = None,
        k_out: _Memory | None = None,
        q_strides: _Strides | None = None,
        k_strides: _Strides | None = None,
        q_out_strides: _Strides | None = None,
        k_out_strides: _Strides | None = None,
        stream: _Stream | None = None,
        positions_stride: SupportsIndex | None = None,
        positions_from: _Memory | None = None,
        v: _Memory | None = None,
        v_out: _Memory | None = None,
        v_strides: _Strides | None = None,
        v_out_strides: _Strides | None = None,
        q_nope: _Memory | None = None,
        q_nope_out: _Memory | None = None,
        q_nope_strides: _Strides | None = None,
        q_nope_out_strides: _Strides | None = None,
        q_weight: _Memory | None = None,
        k_weight: _Memory | None = None,
        q_scale: SupportsFloat | _Memory | None = None,
        k_scale: SupportsFloat | _Memory | None = None,
        v_scale: SupportsFloat | _Memory | None = None,
        k_cache: _Memory | None = None,
        v_cache: _Memory | None = None,
        slots: _Memory | None = None,
        page_table: _Memory | None = None,
        page_indptr: _Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        request_ids: _Memory | None = None,
        cache_positions: _Memory | None = None,
        cache_skipped: _Memory | None = None,
        cos: _Memory | None = None,
        sin: _Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        cos_sin_stride: SupportsIndex | None = None,
        cos_sin_skipped: _Memory | None = None,
        frequency_sets: _Memory | None = None,
        set_ids: _Memory | None = None,
        set_ids_from: _Memory | None = None,
        set_factors: _Memory | None = None,
        num_sets: SupportsIndex | None = None,
    ) -> None: ...
    def rotate_cache(
        self,
        k_cache: _Memory,
        num_tokens: SupportsIndex | None = None,
        *,
        positions: _Memory | None = None,
        offset: SupportsIndex = 0,
        indptr: _Memory | None = None,
        offsets: _Memory | None = None,
        num_requests: SupportsIndex | None = None,
        positions_stride: SupportsIndex | None = None,
        positions_from: _Memory | None = None,
        slots: _Memory | None = None,
        page_table: _Memory | None = None,
        page_indptr: _Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        request_ids: _Memory | None = None,
        cache_positions: _Memory | None = None,
        cache_skipped: _Memory | None = None,
        k_scale: SupportsFloat | _Memory | None = None,
        cos: _Memory | None = None,
        sin: _Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        cos_sin_stride: SupportsIndex | None = None,
        cos_sin_skipped: _Memory | None = None,
        frequency_sets: _Memory | None = None,
        set_ids: _Memory | None = None,
        set_ids_from: _Memory | None = None,
        set_factors: _Memory | None = None,
        num_sets: SupportsIndex | None = None,
        inverse: bool = False,
        stream: _Stream | None = None,
    ) -> None: ...
    def inverse(
        self,
        q: _Memory | None,
        k: _Memory | None = None,
        num_tokens: SupportsIndex | None = None,
        *,
        positions: _Memory | None = None,
        offset: SupportsIndex = 0,
        indptr: _Memory | None = None,
        offsets: _Memory | None = None,
        num_requests: SupportsIndex | None = None,
        q_out: _Memory | None = None,
        k_out: _Memory | None = None,
        q_strides: _Strides | None = None,
        k_strides: _Strides | None = None,
        q_out_strides: _Strides | None = None,
        k_out_strides: _Strides | None = None,
        stream: _Stream | None = None,
        positions_stride: SupportsIndex | None = None,
        positions_from: _Memory | None = None,
        v: _Memory | None = None,
        v_out: _Memory | None = None,
        v_strides: _Strides | None = None,
        v_out_strides: _Strides | None = None,
        q_nope: _Memory | None = None,
        q_nope_out: _Memory | None = None,
        q_nope_strides: _Strides | None = None,
        q_nope_out_strides: _Strides | None = None,
        q_weight: _Memory | None = None,
        k_weight: _Memory | None = None,
        q_scale: SupportsFloat | _Memory | None = None,
        k_scale: SupportsFloat | _Memory | None = None,
        v_scale: SupportsFloat | _Memory | None = None,
        k_cache: _Memory | None = None,
        v_cache: _Memory | None = None,
        slots: _Memory | None = None,
        page_table: _Memory | None = None,
        page_indptr: _Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        request_ids: _Memory | None = None,
        cache_positions: _Memory | None = None,
        cache_skipped: _Memory | None = None,
        cos: _Memory | None = None,
        sin: _Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        cos_sin_stride: SupportsIndex | None = None,
        cos_sin_skipped: _Memory | None = None,
        frequency_sets: _Memory | None = None,
        set_ids: _Memory | None = None,
        set_ids_from: _Memory | None = None,
        set_factors: _Memory | None = None,
        num_sets: SupportsIndex | None = None,
    ) -> None: ...
