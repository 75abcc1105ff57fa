"""What is measured: the operations, their byte counts, and the named grids of cases."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
POSITIONS = {
    "offset": "one run of tokens from one start",
    "ids": "one int64 id a token; every request is a run from its own start",
    "ragged": "int64 indptr and starts, the same positions as ids",
}
SECTOR = 32  # bytes: the least that a GPU's memory moves


@dataclass(frozen=True)
class Case:
    """One measured shape. A token is `num_heads` query and `num_kv_heads` key heads."""

    op: str = "apply"
    dtype: str = "bfloat16"
    layout: str = "neox"
    batch_size: int = 1  # requests
    seq_len: int = 1  # tokens of a request
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    rotary_dim: int | None = None  # None: head_dim
    positions: str = "ids"
    in_place: bool = True

    @property
    def tokens(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def rotated(self) -> int:
        """Rotated elements of a head."""
        return self.rotary_dim or self.head_dim

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def heads(self) -> int:
        return self.num_heads + self.num_kv_heads

    def __str__(self) -> str:
        tokens = f"{self.batch_size}x{self.seq_len} tokens"
        heads = f"{self.num_heads}/{self.num_kv_heads} heads of {self.head_dim}"
        part = f" (rotated {self.rotated})" if self.rotated != self.head_dim else ""
        where = "in place" if self.in_place else "out of place"
        return f"{self.op} {self.dtype} {self.layout}, {tokens}, {heads}{part}, {self.positions}, {where}"


FIELDS = tuple(field.name for field in dataclasses.fields(Case))  # what tells cases apart


@dataclass(frozen=True)
class Op:
    """One operation: what a call works on, and the bytes that it has to move."""

    tensors: Callable[[Case], dict[str, tuple[int, ...]]]  # name -> shape, inputs first; all of the case's dtype
    inputs: tuple[str, ...]  # names of the inputs, contiguous in memory
    ideal_bytes: Callable[[Case], int]  # each needed element read once and written once
    touched_bytes: Callable[[Case], int]  # bytes that any kernel must read (and as many that it must write)


def _apply_tensors(case: Case) -> dict[str, tuple[int, ...]]:
    heads = {"q": case.num_heads, "k": case.num_kv_heads}
    names = [x for x in heads if heads[x]]
    names += [] if case.in_place else [f"{x}_out" for x in names]
    return {name: (case.tokens, heads[name[0]], case.head_dim) for name in names}


def _apply_ideal_bytes(case: Case) -> int:
    return 2 * case.tokens * case.heads * (case.rotated if case.in_place else case.head_dim) * case.itemsize


def _apply_touched_bytes(case: Case) -> int:
    """In place: the 32-byte sectors that hold a rotated element. Out of place: everything."""
    row = case.head_dim * case.itemsize
    if not case.in_place or case.rotated == case.head_dim:
        return case.tokens * case.heads * row
    start = np.arange(SECTOR) * row  # 32 heads in a row: the pattern repeats
    first, last = start // SECTOR, (start + case.rotated * case.itemsize - 1) // SECTOR
    sectors = int((last - first + 1).sum() - (first[1:] == last[:-1]).sum())
    return case.tokens * case.heads * sectors * SECTOR // len(start)


OPS = {"apply": Op(_apply_tensors, ("q", "k"), _apply_ideal_bytes, _apply_touched_bytes)}


def grid(**lists) -> list[Case]:
    """Every combination of the values, the last name varying fastest; `heads` are pairs (num_heads, num_kv_heads)."""
    cases = []
    for values in itertools.product(*lists.values()):
        fields = dict(zip(lists, values, strict=True))
        if "heads" in fields:
            fields["num_heads"], fields["num_kv_heads"] = fields.pop("heads")
        cases.append(Case(**fields))
    return cases


def powers(low: int, high: int) -> list[int]:
    """Powers of two from low to high, both included."""
    return [1 << i for i in range(low.bit_length() - 1, high.bit_length())]


_GQA = [(32, 8), (64, 8), (8, 1)]  # 8B, 70B and one of eight shards of 70B
_DECODE = grid(heads=_GQA, batch_size=powers(1, 256))
_PREFILL = grid(heads=_GQA, seq_len=powers(512, 65536))
_VARIANTS = [
    *grid(layout=["neox", "gptj"], dtype=["bfloat16", "float16", "float32"], in_place=[True, False],
          seq_len=[64, 8192]),
    *grid(head_dim=[64, 256], layout=["neox", "gptj"], seq_len=[64, 8192]),
    *grid(rotary_dim=[32, 64, 96], layout=["neox", "gptj"], in_place=[True, False], seq_len=[64, 8192]),
    *grid(positions=list(POSITIONS), batch_size=[16], seq_len=[1, 512]),
]  # fmt: skip

# name -> (help, cases)
SUITES = {
    "quick": ("decode and prefill of one model", [*grid(batch_size=[1, 8, 64, 256]),
                                                  *grid(seq_len=[1024, 8192, 65536])]),
    "decode": ("1 to 256 tokens, three head counts", _DECODE),
    "prefill": ("512 to 65536 tokens, three head counts", _PREFILL),
    "seed-fp32": ("one float32 query head of 128 or 256 elements and no keys, in batches of 64 and 128 requests",
                  grid(dtype=["float32"], heads=[(1, 0)], head_dim=[128, 256], batch_size=[64, 128],
                       seq_len=powers(512, 8192))),
    "vllm": ("the grid of vLLM's own benchmark: a quarter of each head rotated, equal head counts",
             grid(rotary_dim=[32], heads=[(32, 32), (48, 48)], batch_size=[1, 4, 16, 64], seq_len=powers(64, 1024))),
    "full": ("decode, prefill, and every dtype, layout, head size, rotated part and form of positions",
             [*_DECODE, *_PREFILL, *_VARIANTS]),
}  # fmt: skip
# The same suite on a CPU leaves out the sizes that take minutes there.
CPU_QUICK = [*grid(batch_size=[1, 16]), *grid(seq_len=[256, 2048])]


def select(suite: str | None, device: str, chosen: dict[str, list]) -> list[Case]:
    """The cases of a suite with the chosen fields replaced by each of their values, without repetitions."""
    if suite is None and ("batch_size" in chosen or "seq_len" in chosen):
        cases = [Case()]
    elif suite in (None, "quick") and device == "cpu":
        cases = CPU_QUICK
    else:
        cases = SUITES[suite or "quick"][1]
    for field, values in chosen.items():
        cases = [dataclasses.replace(case, **{field: value}) for case in cases for value in values]
    return list(dict.fromkeys(cases))
