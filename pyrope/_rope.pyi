# Made by tools/stubs.py from _rope.pyx.
from typing import Any, Self, SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from pyrope.scaling import Scaling
from pyrope.typing import (
    Angle,
    Device,
    DeviceLike,
    DType,
    DTypeLike,
    Layout,
    Memory,
    Numbers,
    PositionDType,
    PositionDTypeLike,
    Skipped,
    Stream,
    Strides,
)

@disjoint_base
class Rope:
    @property
    def theta(self) -> float | None: ...
    @property
    def scaling(self) -> Scaling | None: ...
    @property
    def attention_factor(self) -> float: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def angle(self) -> Angle: ...
    @property
    def device(self) -> Device: ...
    @property
    def position_dtype(self) -> PositionDType: ...
    @property
    def skip(self) -> int | None: ...
    def __init__(
        self,
        head_dim: SupportsIndex,
        num_q_heads: SupportsIndex,
        num_k_heads: SupportsIndex,
        *,
        rotary_dim: SupportsIndex | None = None,
        rotary_offset: SupportsIndex = 0,
        theta: SupportsFloat = 10000.0,
        scaling: Scaling | None = None,
        inv_freq: Numbers | None = None,
        attention_factor: SupportsFloat | None = None,
        layout: Layout = "neox",
        dtype: DTypeLike = "bfloat16",
        angle: Angle = "exact",
        device: DeviceLike = "cuda",
        position_dtype: PositionDTypeLike = "int64",
        num_threads: SupportsIndex = 0,
        enable_pdl: bool = False,
        positions_ready: bool = False,
        skip: SupportsIndex | None = -1,
    ) -> None: ...
    @classmethod
    def from_hf_config(
        cls, config: object, *, layer_type: str | int | None = None, seq_len: int | None = None, **options: Any
    ) -> Self: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rotary_dim(self) -> int: ...
    @property
    def rotary_offset(self) -> int: ...
    @property
    def num_q_heads(self) -> int: ...
    @property
    def num_k_heads(self) -> int: ...
    @property
    def inv_freq(self) -> npt.NDArray[np.float64]: ...
    @property
    def frequencies(self) -> npt.NDArray[np.uint64]: ...
    def cos_sin(
        self, num_positions: SupportsIndex, dtype: DTypeLike = "float32"
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]: ...
    def build_cos_sin(
        self,
        cos: Memory,
        sin: Memory | None = None,
        num_rows: SupportsIndex | None = None,
        *,
        offset: SupportsIndex = 0,
        positions: Memory | None = None,
        dtype: DTypeLike | None = None,
        row_stride: SupportsIndex | None = None,
        stream: Stream | None = None,
    ) -> None: ...
    def apply(
        self,
        q: Memory | None,
        k: Memory | None = None,
        num_tokens: SupportsIndex | None = None,
        *,
        positions: Memory | None = None,
        offset: SupportsIndex = 0,
        indptr: Memory | None = None,
        offsets: Memory | None = None,
        num_requests: SupportsIndex | None = None,
        q_out: Memory | None = None,
        k_out: Memory | None = None,
        q_strides: Strides | None = None,
        k_strides: Strides | None = None,
        q_out_strides: Strides | None = None,
        k_out_strides: Strides | None = None,
        inverse: bool = False,
        stream: Stream | None = None,
        sequence_length: SupportsIndex | None = None,
        skipped: Skipped = "leave",
    ) -> None: ...
    def inverse(
        self,
        q: Memory | None,
        k: Memory | None = None,
        num_tokens: SupportsIndex | None = None,
        *,
        positions: Memory | None = None,
        offset: SupportsIndex = 0,
        indptr: Memory | None = None,
        offsets: Memory | None = None,
        num_requests: SupportsIndex | None = None,
        q_out: Memory | None = None,
        k_out: Memory | None = None,
        q_strides: Strides | None = None,
        k_strides: Strides | None = None,
        q_out_strides: Strides | None = None,
        k_out_strides: Strides | None = None,
        stream: Stream | None = None,
        sequence_length: SupportsIndex | None = None,
        skipped: Skipped = "leave",
    ) -> None: ...
