"""pyrope in the place of vLLM's own rotations, without a change to vLLM or its models."""

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyrope.compat import flash_attn
from pyrope.compat.vllm import _custom_ops

ROTARY = "vllm.vllm_flash_attn.layers.rotary"
OPERATORS: dict[str, Callable[..., Any]] = {
    "_C::rotary_embedding": _custom_ops.rotary_embedding,
    "_C::fused_qk_norm_rope": _custom_ops.fused_qk_norm_rope,
    "_C_cache_ops::concat_and_cache_mla_rope_fused": _custom_ops.concat_and_cache_mla_rope_fused,
}
_undo: list[Callable[[], None]] = []


def install() -> list[str]:
    """Have vLLM's layers and compiled graphs call pyrope. Returns the names of what was replaced.

    Replaced are the operators that the layers call, ``torch.ops._C.rotary_embedding``, ``fused_qk_norm_rope`` and
    ``torch.ops._C_cache_ops.concat_and_cache_mla_rope_fused``, on the devices for which vLLM has them; and
    ``apply_rotary_emb`` of ``vllm.vllm_flash_attn.layers.rotary``, which vision models call, there and in the modules
    of vLLM that imported it. Tables are vLLM's, and so are the numbers, rounded once.

    Raises
    ------
    ImportError
        There is no vLLM.
    RuntimeError
        It is installed already, or nothing of it was found.
    """
    if _undo:
        raise RuntimeError("pyrope is installed in vLLM already; call uninstall() first")
    importlib.import_module("vllm")
    for module in ("vllm._custom_ops", ROTARY):  # the first loads the operators
        try:
            importlib.import_module(module)
        except ImportError:
            continue
    try:
        replaced = [name for name, function in OPERATORS.items() if _replace_operator(name, function)]
        replaced += _replace_function(ROTARY, "apply_rotary_emb", flash_attn.apply_rotary_emb)
    except BaseException:
        uninstall()
        raise
    if not replaced:
        raise RuntimeError("vllm: none of the rotations that pyrope knows were found in it")
    return replaced


def uninstall() -> None:
    """Undo :func:`install`."""
    while _undo:
        _undo.pop()()


def _replace_operator(name: str, function: Callable[..., Any]) -> bool:
    keys = [
        key for key in ("CUDA", "CPU")
        if torch._C._dispatch_has_kernel(name) and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    ]  # fmt: skip
    if not keys:
        return False
    namespace, _, operator = name.partition("::")
    library = torch.library.Library(namespace, "IMPL")
    _undo.append(library._destroy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is overridden, which is what is wanted
        for key in keys:
            library.impl(operator, function, key, allow_override=True)
    return True


def _replace_function(module: str, name: str, function: Callable[..., Any]) -> list[str]:
    """In the module, and wherever in vLLM it was imported from there."""
    original = getattr(sys.modules.get(module), name, None)
    if original is None:
        return []
    replaced = []
    for key, found in list(sys.modules.items()):
        if (key == "vllm" or key.startswith("vllm.")) and vars(found).get(name) is original:
            setattr(found, name, function)
            _undo.append(lambda found=found: setattr(found, name, original))  # type: ignore[misc]
            replaced.append(f"{key}.{name}")
    return replaced
