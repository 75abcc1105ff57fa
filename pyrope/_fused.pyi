# Made by tools/stubs.py from _fused.pyx.
from typing import SupportsFloat, SupportsIndex

from typing_extensions import disjoint_base

from pyrope._rope import Rope
from pyrope.scaling import Scaling
from pyrope.stages import PagedCache, RMSNorm, XPos
from pyrope.typing import (
    CosSinColumns,
    DeviceLike,
    DType,
    DTypeLike,
    FusedAngle,
    Layout,
    Memory,
    Numbers,
    OutDType,
    OutDTypeLike,
    PairStreams,
    PositionDTypeLike,
    Scale,
    ScaleKind,
    Sections,
    Skipped,
    Stream,
    Strides,
)

@disjoint_base
class FusedRope(Rope):
    @property
    def cos_sin_dtype(self) -> DType: ...
    @property
    def cos_sin_columns(self) -> CosSinColumns: ...
    @property
    def sections(self) -> tuple[int, ...] | None: ...
    @property
    def sections_interleaved(self) -> bool: ...
    @property
    def pair_streams(self) -> tuple[int, ...] | None: ...
    @property
    def xpos(self) -> XPos | None: ...
    @property
    def num_v_heads(self) -> int: ...
    @property
    def v_head_dim(self) -> int: ...
    @property
    def q_nope_dim(self) -> int: ...
    @property
    def k_nope_dim(self) -> int: ...
    @property
    def out_layout(self) -> Layout | None: ...
    @property
    def k_dtype(self) -> DType | None: ...
    @property
    def norm(self) -> RMSNorm | None: ...
    @property
    def q_out_dtype(self) -> OutDType | None: ...
    @property
    def k_out_dtype(self) -> OutDType | None: ...
    @property
    def v_out_dtype(self) -> OutDType | None: ...
    @property
    def q_scale_kind(self) -> ScaleKind | None: ...
    @property
    def k_scale_kind(self) -> ScaleKind | None: ...
    @property
    def v_scale_kind(self) -> ScaleKind | None: ...
    @property
    def cache(self) -> PagedCache | None: ...
    def __init__(
        self,
        head_dim: SupportsIndex,
        num_q_heads: SupportsIndex,
        num_k_heads: SupportsIndex,
        *,
        angle: FusedAngle = "exact",
        cos_sin_dtype: DTypeLike = "float32",
        cos_sin_columns: CosSinColumns = "pairs",
        sections: Sections | None = None,
        sections_interleaved: bool = False,
        pair_streams: PairStreams | None = None,
        num_blocks: SupportsIndex = 1,
        xpos: XPos | None = None,
        num_v_heads: SupportsIndex | None = None,
        v_head_dim: SupportsIndex | None = None,
        q_nope_dim: SupportsIndex = 0,
        norm: RMSNorm | None = None,
        q_out_dtype: OutDTypeLike | None = None,
        k_out_dtype: OutDTypeLike | None = None,
        v_out_dtype: OutDTypeLike | None = None,
        q_scale_kind: ScaleKind | None = None,
        k_scale_kind: ScaleKind | None = None,
        v_scale_kind: ScaleKind | None = None,
        cache: PagedCache | None = None,
        rotary_dim: SupportsIndex | None = None,
        rotary_offset: SupportsIndex = 0,
        theta: SupportsFloat = 10000.0,
        scaling: Scaling | None = None,
        inv_freq: Numbers | None = None,
        attention_factor: SupportsFloat | None = None,
        layout: Layout = "neox",
        dtype: DTypeLike = "bfloat16",
        device: DeviceLike = "cuda",
        position_dtype: PositionDTypeLike = "int64",
        num_threads: SupportsIndex = 0,
        enable_pdl: bool = False,
        positions_ready: bool = False,
        skip: SupportsIndex | None = -1,
        out_layout: Layout | None = None,
        k_nope_dim: SupportsIndex = 0,
        k_dtype: DTypeLike | None = None,
    ) -> None: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_streams(self) -> int: ...
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
        positions_stride: SupportsIndex | None = None,
        positions_from: Memory | None = None,
        v: Memory | None = None,
        v_out: Memory | None = None,
        v_strides: Strides | None = None,
        v_out_strides: Strides | None = None,
        q_nope: Memory | None = None,
        q_nope_out: Memory | None = None,
        q_nope_strides: Strides | None = None,
        q_nope_out_strides: Strides | None = None,
        q_weight: Memory | None = None,
        k_weight: Memory | None = None,
        q_scale: Scale | None = None,
        k_scale: Scale | None = None,
        v_scale: Scale | None = None,
        k_cache: Memory | None = None,
        v_cache: Memory | None = None,
        slots: Memory | None = None,
        page_table: Memory | None = None,
        page_indptr: Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        request_ids: Memory | None = None,
        cache_positions: Memory | None = None,
        cache_skipped: Memory | None = None,
        cos: Memory | None = None,
        sin: Memory | None = None,
        angles: Memory | None = None,
        k_cos: Memory | None = None,
        k_sin: Memory | None = None,
        k_angles: Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        cos_sin_stride: SupportsIndex | None = None,
        cos_sin_skipped: Memory | None = None,
        frequency_sets: Memory | None = None,
        set_ids: Memory | None = None,
        set_ids_from: Memory | None = None,
        set_factors: Memory | None = None,
        num_sets: SupportsIndex | None = None,
        sequence_length: SupportsIndex | None = None,
        skipped: Skipped = "leave",
        k_nope: Memory | None = None,
        k_nope_out: Memory | None = None,
        k_nope_strides: Strides | None = None,
        k_nope_out_strides: Strides | None = None,
        k_nope_cache: Memory | None = None,
        q_tensor_scale: Scale | None = None,
        k_tensor_scale: Scale | None = None,
        v_tensor_scale: Scale | None = None,
        check: bool | None = None,
        q_sums: Memory | None = None,
        k_sums: Memory | None = None,
        write_sums: bool = False,
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
        positions_stride: SupportsIndex | None = None,
        positions_from: Memory | None = None,
        v: Memory | None = None,
        v_out: Memory | None = None,
        v_strides: Strides | None = None,
        v_out_strides: Strides | None = None,
        q_nope: Memory | None = None,
        q_nope_out: Memory | None = None,
        q_nope_strides: Strides | None = None,
        q_nope_out_strides: Strides | None = None,
        q_weight: Memory | None = None,
        k_weight: Memory | None = None,
        q_scale: Scale | None = None,
        k_scale: Scale | None = None,
        v_scale: Scale | None = None,
        k_cache: Memory | None = None,
        v_cache: Memory | None = None,
        slots: Memory | None = None,
        page_table: Memory | None = None,
        page_indptr: Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        request_ids: Memory | None = None,
        cache_positions: Memory | None = None,
        cache_skipped: Memory | None = None,
        cos: Memory | None = None,
        sin: Memory | None = None,
        angles: Memory | None = None,
        k_cos: Memory | None = None,
        k_sin: Memory | None = None,
        k_angles: Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        cos_sin_stride: SupportsIndex | None = None,
        cos_sin_skipped: Memory | None = None,
        frequency_sets: Memory | None = None,
        set_ids: Memory | None = None,
        set_ids_from: Memory | None = None,
        set_factors: Memory | None = None,
        num_sets: SupportsIndex | None = None,
        sequence_length: SupportsIndex | None = None,
        skipped: Skipped = "leave",
        k_nope: Memory | None = None,
        k_nope_out: Memory | None = None,
        k_nope_strides: Strides | None = None,
        k_nope_out_strides: Strides | None = None,
        k_nope_cache: Memory | None = None,
        q_tensor_scale: Scale | None = None,
        k_tensor_scale: Scale | None = None,
        v_tensor_scale: Scale | None = None,
        check: bool | None = None,
        q_sums: Memory | None = None,
        k_sums: Memory | None = None,
        write_sums: bool = False,
    ) -> None: ...
    def rotate_cache(
        self,
        k_cache: Memory,
        num_tokens: SupportsIndex | None = None,
        *,
        positions: Memory | None = None,
        offset: SupportsIndex = 0,
        indptr: Memory | None = None,
        offsets: Memory | None = None,
        num_requests: SupportsIndex | None = None,
        positions_stride: SupportsIndex | None = None,
        positions_from: Memory | None = None,
        slots: Memory | None = None,
        page_table: Memory | None = None,
        page_indptr: Memory | None = None,
        page_table_stride: SupportsIndex | None = None,
        request_ids: Memory | None = None,
        cache_positions: Memory | None = None,
        cache_skipped: Memory | None = None,
        k_scale: Scale | None = None,
        cos: Memory | None = None,
        sin: Memory | None = None,
        cos_sin_rows: SupportsIndex | None = None,
        cos_sin_stride: SupportsIndex | None = None,
        cos_sin_skipped: Memory | None = None,
        frequency_sets: Memory | None = None,
        set_ids: Memory | None = None,
        set_ids_from: Memory | None = None,
        set_factors: Memory | None = None,
        num_sets: SupportsIndex | None = None,
        inverse: bool = False,
        stream: Stream | None = None,
        k_tensor_scale: Scale | None = None,
        check: bool | None = None,
    ) -> None: ...

def stages_of(rope: Rope) -> list[str]: ...
