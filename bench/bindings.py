"""How each implementation is called: the bind functions of peers.py.

Each takes a case, a slot and the case's inputs (memory.Inputs), and returns a function without arguments that does the
op on that slot, or returns new tensors (q, k).
"""

import functools
import importlib

import numpy as np
from cases import Case
from memory import THETA

import pyrope

# ---- pyrope


def make_rope(kind, case, inputs, **options):
    """A Rope or FusedRope for a case, with the stages of the latter. In a chain of itself its launches overlap, in a
    step as the options say.
    """
    device = inputs.device
    if device.kind != "cuda":
        options["num_threads"] = device.threads
    elif not case.step:
        options |= {"enable_pdl": True, "positions_ready": True}
    return kind(
        case.head_dim,
        case.num_heads,
        case.num_kv_heads,
        rotary_dim=case.rotary_dim,
        theta=THETA,
        layout=case.layout,
        dtype=case.dtype,
        device=device.kind,
        **options,
    )


def position_arguments(case, inputs) -> dict:
    """The positions of a case as Rope.apply takes them."""
    forms = {
        "offset": lambda: {"offset": int(inputs.starts[0])},
        "ids": lambda: {"positions": inputs.ids.ptr},
        "ragged": lambda: {"indptr": inputs.indptr.ptr, "offsets": inputs.offsets.ptr, "num_requests": case.batch_size},
    }
    return forms[case.positions]()


def strides(slot) -> dict:
    """Those of the tensors in packed buffers, as Rope.apply takes them."""
    return {f"{name}_strides": array.strides[:2] for name, array in slot.items() if array.packed}


def pyrope_apply(case, slot, inputs, **options):
    ptr = {name: array.ptr for name, array in slot.items()}
    rope = make_rope(pyrope.Rope, case, inputs, **options)
    return functools.partial(
        rope.apply,
        ptr.get("q"),
        ptr.get("k"),
        case.tokens,
        **position_arguments(case, inputs),
        **{name: ptr[name] for name in ("q_out", "k_out") if name in ptr},
        **strides(slot),
        stream=inputs.device.stream,
    )


# ---- NumPy


def numpy_table(case, slot, inputs):
    r, half = case.rotated, case.rotated // 2
    cos, sin = (table.numpy[inputs.positions][:, None] for table in (inputs.cos, inputs.sin))
    if case.layout == "neox":
        first, second = np.s_[..., :half], np.s_[..., half:r]
    else:
        first, second = np.s_[..., 0:r:2], np.s_[..., 1:r:2]
    pairs = [(slot[x].numpy, slot[x if case.in_place else f"{x}_out"].numpy) for x in ("q", "k") if x in slot]

    def run():
        for x, y in pairs:
            a, b = x[first].astype(np.float32), x[second].astype(np.float32)
            y[first], y[second] = a * cos - b * sin, a * sin + b * cos
            if not case.in_place:
                y[..., r:] = x[..., r:]

    return run


# ---- torch: new tensors, as models write it


def _torch_tensors(slot):
    return [slot[x].torch for x in ("q", "k") if x in slot]


def _torch_rotate(x, cos, sin, neox: bool):
    import torch

    r = 2 * cos.shape[-1]
    turned = x[..., :r].float()
    if neox:
        a, b = turned.chunk(2, -1)
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)
    return torch.cat((out, x[..., r:]), -1) if r < x.shape[-1] else out


def _torch_table(tensors, positions, cos, sin, neox: bool):
    cos, sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    return [_torch_rotate(x, cos, sin, neox) for x in tensors]


def torch_naive(case, slot, inputs):
    tensors, positions, frequencies = _torch_tensors(slot), inputs.ids.torch, inputs.frequencies.torch
    neox = case.layout == "neox"

    def run():
        angle = (positions.float().unsqueeze(-1) * frequencies).unsqueeze(1)
        cos, sin = angle.cos(), angle.sin()
        return [_torch_rotate(x, cos, sin, neox) for x in tensors]

    return run


def torch_table(case, slot, inputs, function=_torch_table):
    return functools.partial(
        function, _torch_tensors(slot), inputs.ids.torch, inputs.cos.torch, inputs.sin.torch, case.layout == "neox"
    )


@functools.cache
def _compiled(case: Case):
    import torch

    torch._dynamo.reset()  # one static graph a case
    return torch.compile(_torch_table, dynamic=False)


def torch_compile(case, slot, inputs):
    return torch_table(case, slot, inputs, _compiled(case))


def pyrope_torch(case, slot, inputs, new: bool = False):
    """new: in new tensors, whatever the case says."""
    import pyrope.torch

    arrays = {"indptr": inputs.indptr, "offsets": inputs.offsets} if case.positions == "ragged" else {}
    where = {name: array.torch for name, array in arrays.items()}
    if case.positions == "ids":
        where["positions"] = inputs.ids.torch
    elif case.positions == "offset":
        where["offset"] = int(inputs.starts[0])
    outs = {f"{x}_out": slot[f"{x}_out"].torch for x in ("q", "k") if f"{x}_out" in slot and not new}
    function = pyrope.torch.apply if outs or new else pyrope.torch.apply_
    rope, k = make_rope(pyrope.Rope, case, inputs), slot["k"].torch if "k" in slot else None
    q = slot["q"].torch

    def run():
        results = function(rope, q, k, layout="thd", **where, **outs)
        return results[: 1 if k is None else 2] if new else None

    return run


# ---- FlashInfer


def flashinfer_limits(case: Case) -> str | None:
    """Also a refusal of ours: its kernels fault or err on some sizes, and a fault ends the whole run."""
    if case.rotated % 16 or case.head_dim % 8:
        return f"wrong or faulting at rotary_dim {case.rotated}, not tried"
    return needs_k(case)


def flashinfer_table(case, slot, inputs, package="flashinfer"):
    fi = importlib.import_module(f"{package}.rope")
    function = fi.apply_rope_with_cos_sin_cache_inplace if case.in_place else fi.apply_rope_with_cos_sin_cache
    q, k = (x.flatten(1) for x in _torch_tensors(slot))
    run = functools.partial(
        function, inputs.ids.torch, q, k, case.head_dim, inputs.cos_sin.torch, case.layout == "neox"
    )
    shape = (case.tokens, -1, case.head_dim)
    return run if case.in_place else lambda: [x.view(shape) for x in run()]


def flashinfer_module(case, slot, inputs):
    import flashinfer.rope as fi

    q, k = _torch_tensors(slot)
    q_out, k_out = (q, k) if case.in_place else (slot["q_out"].torch, slot["k_out"].torch)
    return functools.partial(
        fi.get_rope_module().apply_rope_pos_ids_cos_sin_cache,
        q,
        k,
        q_out,
        k_out,
        inputs.cos_sin.torch,
        inputs.ids.torch,
        case.layout != "neox",
    )


def flashinfer_fly(case, slot, inputs, package="flashinfer"):
    fi = importlib.import_module(f"{package}.rope")
    name = "apply_rope" if case.positions == "ragged" else "apply_rope_pos_ids"
    function = getattr(fi, name + "_inplace" if case.in_place else name)
    where = (inputs.indptr, inputs.offsets) if case.positions == "ragged" else (inputs.ids,)
    return functools.partial(
        function, *_torch_tensors(slot), *(x.torch for x in where), case.rotated, case.layout != "neox", 1.0, THETA
    )


def flashinfer_fly_limits(case: Case) -> str | None:
    return flashinfer_limits(case) or (None if case.head_dim in (64, 128, 256, 512) else f"no head_dim {case.head_dim}")


def build_flashinfer(case):
    import flashinfer.rope as fi

    return {"FlashInfer's rope module": fi.get_rope_module}


# ---- SGLang


def sglang_key(case: Case) -> tuple:
    return case.layout == "neox", case.rotated, "bf16_t" if case.dtype == "bfloat16" else "fp16_t"


def sglang_drop_in(case, slot, inputs):
    from pyrope.compat.sglang import apply_rope_inplace

    arguments = *_torch_tensors(slot), inputs.cos_sin.torch, inputs.ids.torch
    return functools.partial(apply_rope_inplace, *arguments, is_neox=case.layout == "neox")


def sglang(case, slot, inputs):
    import sglang_rope

    q, k = (x[..., : case.rotated] for x in _torch_tensors(slot))
    return functools.partial(
        sglang_rope.module(*sglang_key(case)).run_rope, q, k, inputs.cos_sin.torch, inputs.ids.torch
    )


def build_sglang(case):
    import sglang_rope

    key = sglang_key(case)
    return {f"SGLang's rope kernel {key}": lambda: sglang_rope.module(*key)}


def sglang_limits(case: Case) -> str | None:
    if not case.in_place:
        return "in place only"
    if case.rotated % 16:
        return "rotary_dim must be a multiple of 16"
    return needs_k(case)


# ---- vLLM, Liger, flash-attn


def vllm(case, slot, inputs, package="vllm"):
    ops = importlib.import_module(f"{package}._custom_ops")
    tensors = [x.flatten(1) for x in _torch_tensors(slot)]
    q, k = tensors if len(tensors) == 2 else (tensors[0], None)
    return functools.partial(
        ops.rotary_embedding, inputs.ids.torch, q, k, case.head_dim, inputs.cos_sin.torch, case.layout == "neox"
    )


def _requests(case: Case, x):
    return x.view(case.batch_size, case.seq_len, *x.shape[1:])


def liger(case, slot, inputs):
    from liger_kernel.ops.rope import rope_forward

    q, k = (_requests(case, x).transpose(1, 2) for x in _torch_tensors(slot))
    cos, sin = (_requests(case, x.torch) for x in (inputs.token_cos, inputs.token_sin))
    return lambda: rope_forward(q, k, cos, sin) and None


def flash_attn(case, slot, inputs, package="flash_attn_rotary"):
    apply_rotary = importlib.import_module(package).apply_rotary
    tensors = _torch_tensors(slot)
    if case.positions == "offset":
        tensors, offsets = [x.unsqueeze(0) for x in tensors], int(inputs.starts[0])
    else:
        tensors, offsets = [_requests(case, x) for x in tensors], inputs.offsets.torch
    cos, sin, interleaved = inputs.cos.torch, inputs.sin.torch, case.layout == "gptj"

    def run():
        out = [apply_rotary(x, cos, sin, offsets, interleaved=interleaved, inplace=case.in_place) for x in tensors]
        return None if case.in_place else [x.flatten(0, 1) for x in out]

    return run


# ---- what models and training code call, of which each call returns new tensors


def transformers(case, slot, inputs, module="transformers.models.llama.modeling_llama"):
    function = importlib.import_module(module).apply_rotary_pos_emb
    tensors = [_requests(case, x).transpose(1, 2) for x in _torch_tensors(slot)]
    cos, sin = (_requests(case, x.torch) for x in (inputs.token_cos, inputs.token_sin))
    return lambda: [x.transpose(1, 2).flatten(0, 1) for x in function(*tensors, cos, sin)]


def transformer_engine(case, slot, inputs, package="transformer_engine"):
    engine = importlib.import_module(f"{package}.pytorch.attention.rope")
    make = engine.RotaryPositionEmbedding(case.head_dim, case.rotated / case.head_dim, rotary_base=THETA)
    freqs, tensors = make(inputs.table_rows).to(inputs.ids.torch.device), _torch_tensors(slot)
    tensors, starts = [_requests(case, x) for x in tensors], inputs.offsets.torch.int()
    call = functools.partial(engine.apply_rotary_pos_emb, freqs=freqs, tensor_format="bshd", start_positions=starts)
    return lambda: [call(x).flatten(0, 1) for x in tensors]


def contiguous_only(case: Case) -> str | None:
    return "contiguous q and k only" if case.step else None


def in_place_only(case: Case) -> str | None:
    return None if case.in_place else "in place only"


def whole_heads_of_both(case: Case) -> str | None:
    return needs_k(case) or (None if case.rotated == case.head_dim else "rotates whole heads only")


def needs_k(case: Case) -> str | None:
    return None if case.num_kv_heads else "needs k"
