"""What pyrope's arguments may be, for annotations. Importing pyrope does not import this.

cuda-python's handles are untyped and pass as they are.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from pyrope.stages import GroupScales

__all__ = [
    "Angle",
    "AttentionStrides",
    "CosSinColumns",
    "DType",
    "DTypeLike",
    "Device",
    "DeviceLike",
    "FusedAngle",
    "IndexDType",
    "IndexDTypeLike",
    "Layout",
    "Memory",
    "Numbers",
    "OutDType",
    "OutDTypeLike",
    "PairStreams",
    "PositionDType",
    "PositionDTypeLike",
    "Scale",
    "ScaleKind",
    "Sections",
    "Skipped",
    "Stream",
    "Strides",
]


class HasArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class HasCudaArrayInterface(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class HasDLPack(Protocol):
    # Producers differ in the parameters they name.
    @property
    def __dlpack__(self) -> Any: ...
    @property
    def __dlpack_device__(self) -> Any: ...


class HasDeviceType(Protocol):
    """torch.device."""

    @property
    def type(self) -> str: ...
    @property
    def index(self) -> Any: ...


class HasCudaStream(Protocol):
    def __cuda_stream__(self) -> tuple[int, int]: ...


class Numbers(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[SupportsFloat]: ...


Memory: TypeAlias = SupportsIndex | HasArrayInterface | HasDLPack | HasCudaArrayInterface
Scale: TypeAlias = SupportsFloat | Memory
Stream: TypeAlias = SupportsIndex | HasCudaStream
Strides: TypeAlias = (
    tuple[SupportsIndex, SupportsIndex] | tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | list[int]
)
AttentionStrides: TypeAlias = (
    tuple[SupportsIndex, SupportsIndex] | tuple[SupportsIndex, SupportsIndex, SupportsIndex] | list[int]
)
Sections: TypeAlias = tuple[SupportsIndex, ...] | list[int]
PairStreams: TypeAlias = "tuple[SupportsIndex, ...] | list[int] | np.ndarray[Any, Any]"

Layout: TypeAlias = Literal["neox", "gptj"]
Skipped: TypeAlias = Literal["leave", "copy"]
Angle: TypeAlias = Literal["exact", "fp32"]
FusedAngle: TypeAlias = Literal["exact", "fp32", "cos_sin", "radians"]
CosSinColumns: TypeAlias = Literal["pairs", "elements"]
Device: TypeAlias = Literal["cuda", "cpu"]
_Numbered: TypeAlias = Literal["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7"]
DeviceLike: TypeAlias = Device | _Numbered | HasDeviceType
ScaleKind: TypeAlias = 'Literal["tensor", "head", "token", "dynamic"] | GroupScales'

# A dtype is given by its name or as an object of NumPy, torch, ... that has it.
DType: TypeAlias = Literal["float32", "float16", "bfloat16"]
IndexDType: TypeAlias = Literal["int64", "int32"]
PositionDType: TypeAlias = Literal["int64", "int32", "float32"]
OutDType: TypeAlias = Literal[
    "float8_e4m3fn", "float8_e5m2", "int8", "float32", "float16", "bfloat16", "float4_e2m1fn", "q8_0", "q4_0"
]
DTypeLike: TypeAlias = "DType | type[Any] | np.dtype[Any]"
IndexDTypeLike: TypeAlias = "IndexDType | type[Any] | np.dtype[Any]"
PositionDTypeLike: TypeAlias = "PositionDType | type[Any] | np.dtype[Any]"
OutDTypeLike: TypeAlias = "OutDType | type[Any] | np.dtype[Any]"
