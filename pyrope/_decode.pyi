# Made by tools/stubs.py from _decode.pyx.
from typing import SupportsFloat, SupportsIndex

from typing_extensions import disjoint_base

from pyrope._fused import FusedRope
from pyrope.typing import Memory, Scale, Stream, Strides

@disjoint_base
class DecodeAttention:
    @property
    def rope(self) -> FusedRope: ...
    def __init__(
        self,
        rope: FusedRope,
        *,
        window_left: SupportsIndex = -1,
        scale: SupportsFloat | None = None,
        softcap: SupportsFloat = 0.0,
        split: SupportsIndex = 0,
    ) -> None: ...
    @property
    def window_left(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def softcap(self) -> float: ...
    @property
    def split(self) -> int: ...
    def workspace_size(
        self, num_requests: SupportsIndex, max_length: SupportsIndex, *, num_q_tokens: SupportsIndex = 1
    ) -> int: ...
    def apply(
        self,
        q: Memory,
        out: Memory,
        k_cache: Memory,
        v_cache: Memory,
        page_table: Memory,
        lengths: Memory,
        *,
        max_length: SupportsIndex | None = None,
        page_indptr: Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        positions: Memory | None = None,
        offset: SupportsIndex = 0,
        q_rotated: bool = False,
        k_scale: Scale | None = None,
        v_scale: Scale | None = None,
        lse: Memory | None = None,
        sinks: Memory | None = None,
        num_requests: SupportsIndex | None = None,
        num_q_tokens: SupportsIndex | None = None,
        q_strides: Strides | None = None,
        out_strides: Strides | None = None,
        workspace: Memory | None = None,
        workspace_size: SupportsIndex | None = None,
        stream: Stream | None = None,
    ) -> None: ...
