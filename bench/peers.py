"""The implementations that are measured: pyrope first, then its peers, as one table. bindings.py and pipeline.py call
them.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field

import bindings as b
import pipeline as p
from cases import Case
from memory import Inputs

HALF = ("float16", "bfloat16")
CUDA, BOTH, CPU = ("cuda",), ("cuda", "cpu"), ("cpu",)


@dataclass(frozen=True)
class Peer:
    """One implementation."""

    name: str
    what: str
    ops: dict[str, Callable[[Case, dict, Inputs], Callable]]  # how it is called, by operation
    modules: tuple[str, ...] = ()  # what must be importable; the first one's version is recorded
    devices: tuple[str, ...] = CUDA
    dtypes: tuple[str, ...] = ("float32", *HALF)
    layouts: tuple[str, ...] = ("neox", "gptj")
    refuses: Callable[[Case], str | None] = lambda case: None  # why it cannot do a case
    angle: Callable[[int], float] = lambda position: 0.0  # extra error of cos and sin allowed at a position, absolute
    builds: Callable[[Case], dict[object, Callable]] = lambda case: {}  # what must be compiled first, by key
    host_calls: int | None = None  # calls between synchronisations for the host cost; None: the device's
    checked_as: dict[str, str] = field(default_factory=dict)  # operation -> what it does there instead
    host_only: bool = False  # another way to issue a kernel that is already timed
    step_only: bool = False  # pyrope with other options or arguments, which are compared in a step

    def measured(self, case: Case) -> bool:
        """Whether it has a place among the results of a case."""
        return case.op in self.ops and not (self.host_only if case.step else self.step_only)

    def unable(self, case: Case) -> str | None:
        """Why this case is not for it, or None."""
        if case.op not in self.ops:
            return f"no {case.op}"
        if case.dtype not in self.dtypes:
            return f"no {case.dtype}"
        if case.layout not in self.layouts:
            return f"no {case.layout}"
        return self.refuses(case)

    def bind(self, case: Case, slot: dict, inputs: Inputs) -> Callable:
        """A function without arguments that does the case's operation on one slot, or returns new tensors.

        It is what is timed. Tables of cos and sin that a peer takes are made here.
        """
        return self.ops[case.op](case, slot, inputs)


def absent(peer: Peer, device: str) -> str | None:
    """Why the peer cannot be used on this machine, or None."""
    if device not in peer.devices:
        return f"not for {device}"
    for module in peer.modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation raises anything
            return f"import {module}: {brief(error)}"
    if device == "cuda" and peer.modules and not importlib.import_module("torch").cuda.is_available():
        return "torch has no CUDA device"
    return None


def version(peer: Peer) -> str | None:
    """Version of the first module's package, or None if it tells none."""
    if not peer.modules:
        return None
    name = peer.modules[0].partition(".")[0]
    try:
        return getattr(importlib.import_module(name), "__version__", None) or importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def brief(error: BaseException) -> str:
    """Its type and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


PYROPE = {
    "apply": b.pyrope_apply,
    "mrope": p.pyrope_mrope,
    "append": p.pyrope_append,
    "append-fp8": p.pyrope_append_fp8,
    "norm-append": p.pyrope_norm_append,
    "mla-fp8": p.pyrope_mla_fp8,
}


def pyrope_with(**options) -> dict[str, Callable]:
    """pyrope's operations with options of a Rope."""
    return {op: functools.partial(call, **options) for op, call in PYROPE.items()}


def drop_in(name: str, what: str, ops: dict[str, Callable], **limits) -> Peer:
    """What a call of pyrope.compat costs the host."""
    modules = "torch", f"pyrope.compat.{name.partition('-')[0]}"
    return Peer(f"compat-{name}", f"pyrope.compat: {what}", ops, modules, devices=BOTH, host_only=True, **limits)


def of_pyrope(package: str, **ops: Callable) -> dict[str, Callable]:
    """Calls of a peer's functions, by the functions of the same names."""
    return {op.replace("_", "-"): functools.partial(call, package=f"pyrope.compat.{package}")
            for op, call in ops.items()}  # fmt: skip


PEERS = (
    Peer("pyrope", "pyrope.Rope.apply, with stages pyrope.FusedRope.apply; raw pointers; in a step with its defaults, "
         "else with enable_pdl and positions_ready", PYROPE, devices=BOTH),
    Peer("pyrope-pdl", "the same with enable_pdl", pyrope_with(enable_pdl=True), step_only=True),
    Peer("pyrope-ready", "the same with enable_pdl and positions_ready",
         pyrope_with(enable_pdl=True, positions_ready=True), step_only=True),
    Peer("pyrope-table", "pyrope.FusedRope.apply with a table of cos and sin, defaults",
         {"apply": p.pyrope_table, "append": p.pyrope_append_table}, step_only=True),
    Peer("pyrope-pages", "pyrope.FusedRope.apply with a page table instead of slots, defaults",
         {"append": p.pyrope_append_pages}, step_only=True),
    Peer("pyrope-torch", "pyrope.torch.apply_, or apply with outputs that are given", {"apply": b.pyrope_torch},
         ("torch", "pyrope.torch"), devices=BOTH, host_only=True),
    Peer("pyrope-torch-new", "pyrope.torch.apply, new tensors",
         {"apply": functools.partial(b.pyrope_torch, new=True)}, ("torch", "pyrope.torch"), devices=BOTH,
         host_only=True),
    drop_in("flashinfer", "as flashinfer",
            of_pyrope("flashinfer", apply=b.flashinfer_table, append=p.flashinfer_append,
                      append_fp8=p.flashinfer_append_fp8, mla_fp8=p.flashinfer_mla_fp8), refuses=p.drop_in_limits),
    drop_in("flashinfer-fly", "as flashinfer-fly", of_pyrope("flashinfer", apply=b.flashinfer_fly),
            refuses=b.needs_k),
    drop_in("vllm", "as vllm", of_pyrope("vllm", apply=b.vllm), refuses=b.in_place_only),
    drop_in("sglang", "apply_rope_inplace, append: apply_rope_inplace_with_kvcache",
            {"apply": b.sglang_drop_in, "append": p.sglang_append_drop_in}, refuses=p.sglang_drop_in_limits),
    drop_in("flash_attn", "as flash-attn", of_pyrope("flash_attn", apply=b.flash_attn), dtypes=("float32",)),
    drop_in("transformers", "apply_rotary_pos_emb of Llama; new tensors",
            {"apply": functools.partial(b.transformers, module="pyrope.compat.transformers")}, layouts=("neox",),
            refuses=b.whole_heads_of_both),
    drop_in("transformer_engine", "apply_rotary_pos_emb, a call each for q and k; new tensors",
            of_pyrope("transformer_engine", apply=b.transformer_engine), layouts=("neox",),
            angle=lambda position: position * 2.0**-24),
    Peer("transformers", "apply_rotary_pos_emb of its Llama; new tensors", {"apply": b.transformers},
         ("transformers", "transformers.models.llama.modeling_llama", "torch"), devices=BOTH, dtypes=("float32",),
         layouts=("neox",), refuses=b.whole_heads_of_both, host_only=True),
    Peer("pyrope-plain", "pyrope.Rope.apply by the first of the positions", {"mrope": b.pyrope_apply}, devices=BOTH,
         checked_as={"mrope": "apply"}),
    Peer("sglang", "SGLang's fused rope kernel, with or without its store, table, PDL; compiled module",
         {"apply": b.sglang, "append": p.sglang_append}, ("sglang_rope", "torch"),
         dtypes=HALF, refuses=b.sglang_limits, builds=b.build_sglang),
    Peer("flashinfer", "apply_rope_with_cos_sin_cache[_inplace], append: then append_paged_kv_cache; append-fp8: "
         "rope_quantize_fp8_append_paged_kv_cache; norm-append: cake_fused_qk_rmsnorm_rope_append_paged_kv_cache; "
         "mla-fp8: mla_rope_quantize_fp8",
         {"apply": b.flashinfer_table, "append": p.flashinfer_append, "append-fp8": p.flashinfer_append_fp8,
          "norm-append": p.flashinfer_norm_append, "mla-fp8": p.flashinfer_mla_fp8},
         ("flashinfer", "torch"), dtypes=HALF, refuses=p.flashinfer_limits, builds=p.build_flashinfer),
    Peer("flashinfer-module", "the same kernel, its compiled module called without the Python wrapper",
         {"apply": b.flashinfer_module}, ("flashinfer", "torch"), dtypes=HALF, refuses=b.flashinfer_limits,
         builds=b.build_flashinfer, host_only=True),
    Peer("flashinfer-fly", "apply_rope_pos_ids[_inplace], or apply_rope with ragged positions: no table",
         {"apply": b.flashinfer_fly}, ("flashinfer", "torch"), dtypes=HALF, builds=b.build_flashinfer,
         refuses=b.flashinfer_fly_limits,
         angle=lambda position: position * 2.0**-21),
    Peer("vllm", "vLLM's rotary_embedding, table", {"apply": b.vllm}, ("vllm", "vllm._custom_ops", "torch"),
         refuses=b.in_place_only),
    Peer("liger", "Liger's Triton kernel, rows of cos and sin gathered before", {"apply": b.liger},
         ("liger_kernel", "liger_kernel.ops.rope", "torch"), layouts=("neox",),
         refuses=lambda c: b.in_place_only(c) or b.needs_k(c) or b.contiguous_only(c)),
    Peer("flash-attn", "flash-attn's Triton rotary, table; a launch each for q and k", {"apply": b.flash_attn},
         ("flash_attn_rotary", "torch"), refuses=lambda c: None if c.head_dim <= 256 else "head_dim above 256"),
    Peer("torch.compile", "torch.compile of the formula with a table, static shapes; new tensors",
         {"apply": b.torch_compile}, ("torch",), devices=BOTH, host_calls=64),
    Peer("torch-table", "torch eager with a table; new tensors", {"apply": b.torch_table}, ("torch",), devices=BOTH,
         host_calls=32),
    Peer("torch-naive", "torch eager that forms cos and sin in each call; new tensors", {"apply": b.torch_naive},
         ("torch",), devices=BOTH, host_calls=32, angle=lambda position: position * 2.0**-23),
    Peer("numpy", "NumPy with a table", {"apply": b.numpy_table}, devices=CPU, host_calls=32),
)  # fmt: skip
