"""How each implementation is called for the operations with stages around the rotation: more of bindings.py."""

import functools
import importlib

import bindings as b
from cases import FP8, NOPE_DIM, PAGE_SIZE, SECTIONS, Case
from reference import NORM_EPS

import pyrope

# ---- pyrope: one FusedRope.apply


def _pyrope(case, inputs, arguments: dict, positions: dict | None = None, **stages):
    rope = b.make_rope(pyrope.FusedRope, case, inputs, **stages)
    q, k = arguments.pop("q"), arguments.pop("k")
    where = b.position_arguments(case, inputs) if positions is None else positions
    return functools.partial(rope.apply, q, k, case.tokens, **where, **arguments, stream=inputs.device.stream)


def _tensors(slot) -> dict:
    """The arguments for a slot's tensors: pointers and strides."""
    return {name: array.ptr for name, array in slot.items()} | b.strides(slot)


def _cache(case) -> pyrope.PagedCache:
    return pyrope.PagedCache(page_size=PAGE_SIZE, num_pages=case.num_pages)


def _eight_bits(*names: str) -> dict:
    return {f"{name}_out_dtype": FP8 for name in names}


def pyrope_append(case, slot, inputs, **stages):
    arguments = _tensors(slot) | {"slots": inputs.slot_mapping.ptr}
    return _pyrope(case, inputs, arguments, cache=_cache(case), **stages)


def pyrope_append_pages(case, slot, inputs):
    table = inputs.paged["table"]
    arguments = _tensors(slot) | {
        "page_table": table.ptr,
        "page_table_stride": table.shape[1],
        "request_ids": inputs.paged["requests"].ptr,
        "cache_positions": inputs.ids.ptr,
    }
    return _pyrope(case, inputs, arguments, cache=_cache(case))


def pyrope_append_fp8(case, slot, inputs, **options):
    return pyrope_append(case, slot, inputs, **_eight_bits("q", "k", "v"), **options)


def pyrope_norm_append(case, slot, inputs, **options):
    packed, head = slot["qkv"], case.head_dim * case.itemsize
    arguments = {name: array.ptr for name, array in slot.items() if name != "qkv"} | {
        "q": packed.ptr,
        "k": packed.ptr + case.num_heads * head,
        "v": packed.ptr + case.heads * head,
        **{f"{name}_strides": packed.strides[:2] for name in "qkv"},
        "q_weight": inputs.norm_weights["q"].ptr,
        "k_weight": inputs.norm_weights["k"].ptr,
        "slots": inputs.slot_mapping.ptr,
    }
    norm = pyrope.RMSNorm(eps=NORM_EPS, weight_dtype="float32")
    return _pyrope(case, inputs, arguments, cache=_cache(case), norm=norm, **options)


def pyrope_mla_fp8(case, slot, inputs, **options):
    shape = {"q_nope_dim": NOPE_DIM, "num_v_heads": case.num_kv_heads, "v_head_dim": NOPE_DIM}
    return _pyrope(case, inputs, _tensors(slot), **shape, **_eight_bits("q", "k", "v"), **options)


def pyrope_mrope(case, slot, inputs, **options):
    arguments = {"k": None} | _tensors(slot)
    return _pyrope(case, inputs, arguments, {"positions": inputs.stream_ids.ptr}, sections=SECTIONS, **options)


def _by_table(inputs) -> dict:
    """Arguments for cosines and sines that come with the call."""
    return {"cos": inputs.cos_sin.ptr, "cos_sin_rows": inputs.table_rows}


def pyrope_table(case, slot, inputs):
    return _pyrope(case, inputs, {"k": None} | _tensors(slot) | _by_table(inputs), angle="cos_sin")


def pyrope_append_table(case, slot, inputs):
    arguments = _tensors(slot) | _by_table(inputs) | {"slots": inputs.slot_mapping.ptr}
    return _pyrope(case, inputs, arguments, cache=_cache(case), angle="cos_sin")


# ---- FlashInfer


def flashinfer_limits(case: Case) -> str | None:
    if case.op == "append":
        return b.flashinfer_limits(case) or b.in_place_only(case)
    if case.op != "norm-append":
        return b.flashinfer_limits(case)
    if (case.num_heads, case.num_kv_heads) not in ((8, 1), (64, 8)) or case.head_dim != 128:
        return "no kernel for these heads: 8/1 or 64/8 of 128"
    if case.layout != "neox" or case.dtype != "bfloat16":
        return "NeoX and bfloat16 only"
    import torch

    capability = torch.cuda.get_device_capability()
    return None if capability in ((9, 0), (10, 0), (10, 3)) else f"no kernel for compute capability {capability}"


def drop_in_limits(case: Case) -> str | None:
    return b.needs_k(case) or (b.in_place_only(case) if case.op == "append" else None)


def sglang_drop_in_limits(case: Case) -> str | None:
    return b.needs_k(case) or b.in_place_only(case)


def _pages(array):
    """A cache as [num_pages, PAGE_SIZE, heads, dim]."""
    return array.torch.unflatten(0, (-1, PAGE_SIZE))


def flashinfer_append(case, slot, inputs, package="flashinfer"):
    rotate = b.flashinfer_table(case, slot, inputs, package)
    paged = {name: array.torch for name, array in inputs.paged.items()}
    append = functools.partial(
        importlib.import_module(f"{package}.page").append_paged_kv_cache,
        slot["k"].torch,
        slot["v"].torch,
        paged["requests"],
        paged["positions"],
        (_pages(slot["k_cache"]), _pages(slot["v_cache"])),
        paged["table"].flatten(),
        paged["table_indptr"],
        paged["last_page"],
        "NHD",
    )

    def run():
        rotate()
        append()

    return run


def flashinfer_append_fp8(case, slot, inputs, package="flashinfer"):
    fi = importlib.import_module(f"{package}.rope")
    paged = {name: array.torch for name, array in inputs.paged.items()}
    q, k, v, q_out = (slot[name].torch for name in ("q", "k", "v", "q_out"))
    call = functools.partial(
        fi.rope_quantize_fp8_append_paged_kv_cache,
        q,
        k,
        q[..., :0].contiguous(),
        k[..., :0].contiguous(),
        v,
        inputs.cos_sin.torch,
        inputs.ids.torch,
        (_pages(slot["k_cache"]), _pages(slot["v_cache"])),
        paged["table"].flatten(),
        paged["table_indptr"],
        paged["requests"],
        paged["positions"],
        is_neox=case.layout == "neox",
        quantize_dtype=q_out.dtype,
        page_size=PAGE_SIZE,
        kv_layout="NHD",
        q_rope_out=q_out,
        q_nope_out=q_out[..., :0].contiguous(),
        enable_pdl=True,
    )
    return lambda: call() and None


def flashinfer_norm_append(case, slot, inputs):
    from flashinfer.cake_fused_qk_rope_append import cake_fused_qk_rmsnorm_rope_append_paged_kv_cache as function

    paged = {name: array.torch for name, array in inputs.paged.items()}
    call = functools.partial(
        function,
        slot["qkv"].torch.flatten(1),
        inputs.cos_sin.torch,
        paged["lengths"],
        paged["indptr"],
        paged["table"],
        _pages(slot["k_cache"]),
        _pages(slot["v_cache"]),
        num_q_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        qk_norm_policy=2,  # the norm first
        q_norm_weight=inputs.norm_weights["q"].torch,
        k_norm_weight=inputs.norm_weights["k"].torch,
        eps=NORM_EPS,
        out_q=slot["q_out"].torch,
        clear_unused_last_page_rows=False,  # which no other implementation writes
    )

    def run():
        call()

    return run


def flashinfer_mla_fp8(case, slot, inputs, package="flashinfer"):
    fi = importlib.import_module(f"{package}.rope")
    x = {name: array.torch for name, array in slot.items()}
    call = functools.partial(
        fi.mla_rope_quantize_fp8,
        x["q"],
        x["k"].squeeze(1),
        x["q_nope"],
        x["v"].squeeze(1),
        inputs.cos_sin.torch,
        inputs.ids.torch,
        is_neox=case.layout == "neox",
        quantize_dtype=x["q_out"].dtype,
        q_rope_out=x["q_out"],
        k_rope_out=x["k_out"].squeeze(1),
        q_nope_out=x["q_nope_out"],
        k_nope_out=x["v_out"].squeeze(1),
        enable_pdl=True,
    )

    def run():
        call()

    return run


def build_flashinfer(case):
    tasks = b.build_flashinfer(case)
    if case.op == "append":
        import flashinfer.page

        return {**tasks, "FlashInfer's page module": flashinfer.page.get_page_module}
    if case.op != "norm-append":
        return tasks
    import torch
    from flashinfer.jit import cake_fused_qk_rope_append as cake

    arch = cake.arch_for(torch.cuda.get_device_capability())
    stage = cake.stage_for(
        case.num_heads,
        case.num_kv_heads,
        arch=arch,
        num_rows=case.tokens,
        num_requests=case.batch_size,
        page_size=PAGE_SIZE,
        num_sms=torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count,
    )
    load = functools.partial(cake.load_cake_fused_qk_rope_append_module, stage, arch)
    return {f"FlashInfer's norm, rotation and append {stage}": load}


# ---- SGLang


def sglang_append(case, slot, inputs):
    """It writes the rotated keys to k, too."""
    import sglang_rope

    return functools.partial(
        sglang_rope.module(*b.sglang_key(case)).run_rope_store,
        slot["q"].torch,
        slot["k"].torch,
        slot["v"].torch,
        slot["k_cache"].torch.flatten(1),
        slot["v_cache"].torch.flatten(1),
        inputs.cos_sin.torch,
        inputs.ids.torch,
        inputs.slot_mapping.torch,
    )


def sglang_append_drop_in(case, slot, inputs):
    from pyrope.compat.sglang import apply_rope_inplace_with_kvcache

    x = {name: array.torch for name, array in slot.items()}
    caches = (x[f"{name}_cache"].flatten(1) for name in "kv")
    arguments = x["q"], x["k"], x["v"], *caches, inputs.cos_sin.torch, inputs.ids.torch, inputs.slot_mapping.torch
    return functools.partial(apply_rope_inplace_with_kvcache, *arguments, is_neox=case.layout == "neox")
