# What Rope.apply takes, for type checkers. cuda-python's handles are untyped and pass as they are.
from collections.abc import Iterator
from typing import Any, Literal, Protocol, Self, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from pyrope.scaling import Scaling

class _HasArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

class _HasCudaArrayInterface(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...

class _HasDLPack(Protocol):
    # Producers differ in the parameters they name.
    @property
    def __dlpack__(self) -> Any: ...
    @property
    def __dlpack_device__(self) -> Any: ...

class _HasCudaStream(Protocol):
    def __cuda_stream__(self) -> tuple[int, int]: ...

class _Numbers(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[SupportsFloat]: ...

_Memory: TypeAlias = SupportsIndex | _HasArrayInterface | _HasDLPack | _HasCudaArrayInterface
_Stream: TypeAlias = SupportsIndex | _HasCudaStream
_Strides: TypeAlias = tuple[SupportsIndex, SupportsIndex] | list[int]
_Layout: TypeAlias = Literal["neox", "gptj"]
_DType: TypeAlias = Literal["float32", "float16", "bfloat16"]
_Angle: TypeAlias = Literal["exact", "fp32"]
_Device: TypeAlias = Literal["cuda", "cpu"]
_IndexDType: TypeAlias = Literal["int64", "int32"]

@disjoint_base
class Rope:
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
        inv_freq: _Numbers | None = None,
        attention_factor: SupportsFloat | None = None,
        layout: _Layout = "neox",
        dtype: _DType | type[Any] | np.dtype[Any] = "bfloat16",
        angle: _Angle = "exact",
        device: _Device = "cuda",
        position_dtype: _IndexDType | type[Any] | np.dtype[Any] = "int64",
        num_threads: SupportsIndex = 0,
        enable_pdl: bool = False,
        positions_ready: bool = False,
    ) -> None: ...
    @classmethod
    def from_hf_config(
        cls, config: object, *, layer_type: str | None = None, seq_len: int | None = None, **options: Any
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
    def theta(self) -> float | None: ...
    @property
    def scaling(self) -> Scaling | None: ...
    @property
    def inv_freq(self) -> npt.NDArray[np.float64]: ...
    @property
    def frequencies(self) -> npt.NDArray[np.uint64]: ...
    @property
    def attention_factor(self) -> float: ...
    @property
    def layout(self) -> _Layout: ...
    @property
    def dtype(self) -> _DType: ...
    @property
    def angle(self) -> _Angle: ...
    @property
    def device(self) -> _Device: ...
    @property
    def position_dtype(self) -> _IndexDType: ...
    def cos_sin(
        self, num_positions: SupportsIndex, dtype: _DType | type[Any] | np.dtype[Any] = "float32"
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]: ...
    def build_cos_sin(
        self,
        cos: _Memory,
        sin: _Memory | None = None,
        num_rows: SupportsIndex | None = None,
        *,
        offset: SupportsIndex = 0,
        positions: _Memory | None = None,
        dtype: _DType | type[Any] | np.dtype[Any] | None = None,
        row_stride: SupportsIndex | None = None,
        stream: _Stream | None = None,
    ) -> None: ...
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
    ) -> None: ...

def device_count() -> int: ...
def build_info() -> str: ...
def version() -> str: ...
def supported() -> list[tuple[_Device, _DType, _Layout, _Angle]]: ...
