"""What is measured: the operations, their byte counts, and the named grids of cases."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FP8 = "float8_e4m3fn"
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, FP8: 1, "int64": 8, "int32": 4}
POSITIONS = {
    "offset": "one run of tokens from one start",
    "ids": "one int64 id a token; every request is a run from its own start",
    "ragged": "int64 indptr and starts, the same positions as ids",
}
SECTOR = 32  # bytes: the least that a GPU's memory moves
PAGE_SIZE = 16  # tokens of a page of a KV cache
NOPE_DIM = 512  # of mla-fp8: elements of a head that are not rotated
SECTIONS = (16, 24, 24)  # of mrope: pairs that turn by each of a token's positions


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
    step: bool = False  # inside a model's layer: behind what writes packed buffers (packed.py), before what reads them

    @property
    def tokens(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def rotated(self) -> int:
        """Rotated elements of a head."""
        return self.rotary_dim or self.head_dim

    @property
    def num_pages(self) -> int:
        """Pages of the KV cache: as many as the tokens lie in at most, wherever their requests start."""
        return self.batch_size * ((self.seq_len + 2 * (PAGE_SIZE - 1)) // PAGE_SIZE)

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
        inside = ", in a step" if self.step else ""
        return f"{self.op} {self.dtype} {self.layout}, {tokens}, {heads}{part}, {self.positions}, {where}{inside}"


FIELDS = tuple(field.name for field in dataclasses.fields(Case))  # what tells cases apart


@dataclass(frozen=True)
class Op:
    """One operation: what a call works on, where its results are, and the bytes that it has to move.

    Results of the names q and k are rotated, others are stored as they are. A tensor called NAME_cache is that of a KV
    cache, [num_pages * PAGE_SIZE, heads, dim]; `qkv` holds the heads of q, k and v behind each other.
    """

    tensors: Callable[[Case], dict[str, tuple[int, ...]]]  # name -> shape, inputs first
    inputs: tuple[str, ...]  # names of the inputs, contiguous in memory
    results: Callable[[Case], dict[str, str]]  # what is computed -> the tensor that it is in
    ideal_bytes: Callable[[Case], int]  # each needed element read once and each result written once
    touched_bytes: Callable[[Case], int]  # half of the bytes that any kernel must read or write
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)  # of the tensors that are not of the case's
    usual: dict = dataclasses.field(default_factory=dict)  # fields of its usual case that differ from Case's
    refuses: Callable[[Case], str | None] = lambda case: None  # why a case is none of this operation
    same_size: bool = True  # whether results have the size of the inputs
    norm: bool = False  # whether heads of q and k are divided by their root mean square before they are rotated
    sections: tuple[int, ...] = ()  # pairs that turn by each of a token's positions


def _apply_tensors(case: Case) -> dict[str, tuple[int, ...]]:
    heads = {"q": case.num_heads, "k": case.num_kv_heads}
    names = [x for x in heads if heads[x]]
    names += [] if case.in_place else [f"{x}_out" for x in names]
    return {name: (case.tokens, heads[name[0]], case.head_dim) for name in names}


def _apply_results(case: Case) -> dict[str, str]:
    names = ("q", "k") if case.num_kv_heads else ("q",)
    return {name: name if case.in_place else f"{name}_out" for name in names}


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


def _append_tensors(case: Case) -> dict[str, tuple[int, ...]]:
    q, k = ((heads, case.head_dim) for heads in (case.num_heads, case.num_kv_heads))
    cache = (case.num_pages * PAGE_SIZE, *k)
    out = {} if case.in_place else {"q_out": (case.tokens, *q)}
    return {"q": (case.tokens, *q), "k": (case.tokens, *k), "v": (case.tokens, *k), **out,
            "k_cache": cache, "v_cache": cache}  # fmt: skip


def _append_results(case: Case) -> dict[str, str]:
    return {"q": "q" if case.in_place else "q_out", "k": "k_cache", "v": "v_cache"}


def _packed_tensors(case: Case) -> dict[str, tuple[int, ...]]:
    apart = _append_tensors(case)
    packed = (case.tokens, case.num_heads + 2 * case.num_kv_heads, case.head_dim)
    return {"qkv": packed, **{name: shape for name, shape in apart.items() if name not in ("q", "k", "v")}}


def _mla_tensors(case: Case) -> dict[str, tuple[int, ...]]:
    q, k = (case.tokens, case.num_heads), (case.tokens, case.num_kv_heads)
    inputs = {"q": (*q, case.head_dim), "q_nope": (*q, NOPE_DIM), "k": (*k, case.head_dim), "v": (*k, NOPE_DIM)}
    return inputs | {f"{name}_out": shape for name, shape in inputs.items()}


def _mla_results(case: Case) -> dict[str, str]:
    return {name: f"{name}_out" for name in OPS["mla-fp8"].inputs}


def _stage_ideal_bytes(case: Case) -> int:
    """Of every input, and of the rows of every result that the tokens fill."""
    op = OPS[case.op]
    shapes = op.tensors(case)
    moved = (*op.inputs, *op.results(case).values())
    return sum(
        case.tokens * int(np.prod(shapes[name][1:])) * ITEMSIZE[op.dtypes.get(name, case.dtype)] for name in moved
    )


def _whole_heads(case: Case) -> str | None:
    if not case.num_kv_heads:
        return "needs k"
    return None if case.rotated == case.head_dim else "rotates whole heads only"


def _out_of_place(case: Case) -> str | None:
    return "out of place only" if case.in_place else _whole_heads(case)


def _sections_fit(case: Case) -> str | None:
    if case.positions != "ids":
        return "takes positions as ids only"
    return None if case.rotated == 2 * sum(SECTIONS) else f"rotates {2 * sum(SECTIONS)} elements of a head"


_STAGES = {"ideal_bytes": _stage_ideal_bytes, "touched_bytes": lambda case: _stage_ideal_bytes(case) // 2,
           "same_size": False}  # fmt: skip
_ROTATION = {"tensors": _apply_tensors, "inputs": ("q", "k"), "results": _apply_results,
             "ideal_bytes": _apply_ideal_bytes, "touched_bytes": _apply_touched_bytes}  # fmt: skip
OPS = {
    "apply": Op(**_ROTATION),
    "mrope": Op(**_ROTATION, sections=SECTIONS, refuses=_sections_fit),
    "append": Op(_append_tensors, ("q", "k", "v"), _append_results, refuses=_whole_heads, **_STAGES),
    "append-fp8": Op(_append_tensors, ("q", "k", "v"), _append_results, refuses=_out_of_place,
                     dtypes=dict.fromkeys(("q_out", "k_cache", "v_cache"), FP8), usual={"in_place": False}, **_STAGES),
    "norm-append": Op(_packed_tensors, ("qkv",), _append_results, refuses=_out_of_place, norm=True,
                      usual={"in_place": False}, **_STAGES),
    "mla-fp8": Op(_mla_tensors, ("q", "q_nope", "k", "v"), _mla_results, refuses=_out_of_place,
                  dtypes=dict.fromkeys(("q_out", "q_nope_out", "k_out", "v_out"), FP8),
                  usual={"num_heads": 128, "num_kv_heads": 1, "head_dim": 64, "in_place": False}, **_STAGES),
}  # fmt: skip


def grid(**lists) -> list[Case]:
    """Every combination of the values, the last name varying fastest; `heads` are pairs (num_heads, num_kv_heads)."""
    cases = []
    for values in itertools.product(*lists.values()):
        fields = dict(zip(lists, values, strict=True))
        if "heads" in fields:
            fields["num_heads"], fields["num_kv_heads"] = fields.pop("heads")
        cases.append(Case(**(OPS[fields.get("op", "apply")].usual | fields)))
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
_BATCHES = ([1, 64], [1]), ([1], [1024, 8192])  # decode, prefill


def _in_step(decode: list[int], prefill: list[int], **lists) -> list[Case]:
    """Requests of one token, and one request of many, between the other kernels of a layer."""
    return [*grid(step=[True], batch_size=decode, **lists), *grid(step=[True], seq_len=prefill, **lists)]


_STEP = [
    case for lists in ({"op": ["apply"]}, {"op": ["append"]}, {"op": ["append-fp8"]},
                       {"op": ["norm-append"], "heads": [(64, 8)]}, {"op": ["mla-fp8"]})
    for case in _in_step([1, 8, 64, 256], [1024, 4096], **lists)
]  # fmt: skip
_STEP_FORMS = [
    case for lists in ({"op": ["apply", "append", "norm-append"], "heads": [(8, 1)]}, {"op": ["mrope"]},
                       {"op": ["apply", "append"], "layout": ["gptj"]},
                       {"op": ["apply", "append"], "head_dim": [64, 256]}, {"rotary_dim": [64]})
    for case in _in_step([1, 64], [1024], **lists)
]  # fmt: skip
_PIPELINE = [
    *(case for op in ("append", "append-fp8", "mrope") for batch, tokens in _BATCHES
      for case in grid(op=[op], batch_size=batch, seq_len=tokens)),
    *(case for heads in ((8, 1), (64, 8), (32, 8)) for batch, tokens in _BATCHES
      for case in grid(op=["norm-append"], heads=[heads], batch_size=batch, seq_len=tokens)),
    *grid(op=["mla-fp8"], batch_size=[1, 64]), *grid(op=["mla-fp8"], seq_len=[4096]),
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
    "cpu-busy": ("CPU: one model, idle and beside a process that is always busy", grid(seq_len=[64, 256, 2048])),
    "pipeline": ("every other operation at its usual shapes, 1 to 8192 tokens", _PIPELINE),
    "step": ("what a call adds to a model's layer, behind a GEMM or a kernel that lets its dependents start early, "
             "before a reader: every operation but mrope, 1 to 4096 tokens", _STEP),
    "step-forms": ("the same of a shard's heads, sections, other pairings, head sizes and rotated parts", _STEP_FORMS),
}  # fmt: skip
# The same suite on a CPU leaves out the sizes that take minutes there.
CPU_QUICK = [*grid(batch_size=[1, 16]), *grid(seq_len=[256, 2048])]


def select(suite: str | None, device: str, chosen: dict[str, list]) -> list[Case]:
    """The cases of a suite with the chosen fields replaced by each of their values, without repetitions.

    Chosen operations are picked from a suite that has all of them, instead of replacing its own.
    """
    ops = chosen.get("op", ["apply"])
    if suite is None and ("batch_size" in chosen or "seq_len" in chosen):
        cases = [Case()]
    elif suite in (None, "quick") and device == "cpu":
        cases = CPU_QUICK
    else:
        cases = SUITES[suite or ("quick" if "apply" in ops else "pipeline")][1]
    if "op" in chosen:
        if set(ops) <= {case.op for case in cases}:
            cases = [case for case in cases if case.op in ops]
        else:
            cases = [dataclasses.replace(case, op=op, **OPS[op].usual) for case in cases for op in ops]
    for field, values in chosen.items():
        if field != "op":
            cases = [dataclasses.replace(case, **{field: value}) for case in cases for value in values]
    return list(dict.fromkeys(cases))
