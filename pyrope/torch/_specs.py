"""Ropes as text, and Ropes like others.

A graph of torch.compile or torch.export holds a Rope as the text of its arguments: a constant, equal where the
parameters are equal, that any process can read. A number in a registry would be cheaper, and would mean something else
or nothing in the process that loads an exported program.
"""

import ctypes
import functools
import json
from typing import Any

import torch

import pyrope
from pyrope._frozen import Frozen

CLASSES = {cls.__name__: cls for cls in (pyrope.Rope, pyrope.FusedRope)}


def arguments_of(rope: pyrope.Rope) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """What a Rope was made from, normalised."""
    reduced: Any = rope.__reduce__()
    make, shape = reduced
    return shape, make.keywords


def _encode(value: object) -> object:
    """What JSON has no word for: option classes, and dtypes in whatever form."""
    if isinstance(value, Frozen):
        return {"class": type(value).__name__, **vars(value)}
    return getattr(value, "__name__", str(value)).rpartition(".")[2]


def _decode(value: dict[str, Any]) -> object:
    value = {name: tuple(x) if isinstance(x, list) else x for name, x in value.items()}
    return getattr(pyrope, value.pop("class"))(**value) if "class" in value else value


@functools.lru_cache(maxsize=256)
def spec_of(rope: pyrope.Rope) -> str:
    """The text of a Rope."""
    if CLASSES.get(type(rope).__name__) is not type(rope):
        raise TypeError(f"rope: {type(rope).__name__}, must be a pyrope.Rope or pyrope.FusedRope")
    shape, options = arguments_of(rope)
    return json.dumps({"rope": type(rope).__name__, "shape": shape, **options}, default=_encode)


@functools.lru_cache(maxsize=256)
def rope_of(spec: str) -> pyrope.Rope:
    """The Rope of a text."""
    options = json.loads(spec, object_hook=_decode)
    return CLASSES[options.pop("rope")](*options.pop("shape"), **options)


@functools.lru_cache(maxsize=256)
def attention_spec_of(attention: pyrope.RopeAttention) -> str:
    """The text of a RopeAttention."""
    reduced: Any = attention.__reduce__()
    make, (rope,) = reduced
    return json.dumps({**make.keywords, "rope": spec_of(rope)})


@functools.lru_cache(maxsize=256)
def attention_of(spec: str) -> pyrope.RopeAttention:
    """The RopeAttention of a text."""
    options = json.loads(spec)
    return pyrope.RopeAttention(rope_of(options.pop("rope")), **options)


@functools.lru_cache(maxsize=256)
def like(
    rope: pyrope.Rope, dtype: torch.dtype, device: str, weight_dtype: torch.dtype | None = None,
    q_heads: int | None = None, k_heads: int | None = None,
) -> pyrope.Rope:  # fmt: skip
    """The Rope with these parameters for tensors of another dtype or device, weights of another dtype and other heads
    of q and k."""
    shape, options = arguments_of(rope)
    if q_heads is not None and k_heads is not None:
        shape = shape[0], q_heads, k_heads
        options = {name: x for name, x in options.items() if name not in ("num_v_heads", "v_head_dim")}
    changes: dict[str, Any] = {"dtype": dtype, "device": device}
    if device == "cuda":
        changes["num_threads"] = 0
    norm = options.get("norm")
    if norm is not None and weight_dtype is not None:
        changes["norm"] = pyrope.RMSNorm(**{**vars(norm), "weight_dtype": weight_dtype})
    return type(rope)(*shape, **{**options, **changes})


@functools.lru_cache(maxsize=256)
def rotation_of(rope: pyrope.Rope) -> pyrope.Rope:
    """What a FusedRope with a norm does besides, in float32."""
    shape, options = arguments_of(rope)
    return type(rope)(*shape, **{**options, "norm": None, "dtype": "float32", "k_dtype": None})


@functools.lru_cache(maxsize=256)
def returning(rope: pyrope.Rope) -> pyrope.Rope:
    """The Rope that takes what this one stores, and stores what it takes: their layouts may differ."""
    shape, options = arguments_of(rope)
    if not options.get("out_layout"):
        return rope
    return type(rope)(*shape, **{**options, "layout": options["out_layout"], "out_layout": options["layout"]})


@functools.lru_cache(maxsize=256)
def marker_of(rope: pyrope.Rope) -> pyrope.Rope:
    """The rotation of a single head of q that has no other elements, in float32: which tokens it writes are those that
    the Rope moves."""
    _, options = arguments_of(rotation_of(rope))
    shapes = ("num_v_heads", "v_head_dim", "q_nope_dim", "k_nope_dim")
    options = {name: options[name] for name in options if name not in shapes}
    dim = rope.rotary_dim or 2
    return type(rope)(dim, 1, 0, **{**options, "rotary_dim": dim, "rotary_offset": 0})


def constant_spec_of(rope: pyrope.Rope, *changes: Any) -> str:
    """The text of a Rope, or of one like it.

    While dynamo traces, a constant, found by running a function; a cached one dynamo would trace through. Such a
    function takes no objects in torch 2.11, hence the Rope's address: `id` is a constant that dynamo guards, so that it
    compiles anew for another Rope.
    """
    if torch.compiler.is_dynamo_compiling():
        return _constant_spec_at(id(rope), *changes)
    return spec_of(like(rope, *changes) if changes else rope)


def constant_attention_spec_of(attention: pyrope.RopeAttention) -> str:
    """The text of a RopeAttention, likewise."""
    if torch.compiler.is_dynamo_compiling():
        return _constant_attention_spec_at(id(attention))
    return attention_spec_of(attention)


# What graphs were made for. They live on: at the address of one that is gone a graph would take another for it.
_traced: dict[int, Any] = {}


@torch.compiler.assume_constant_result
def _constant_spec_at(address: int, *changes: Any) -> str:
    """While dynamo traces a function that holds the Rope."""
    rope = _traced[address] = ctypes.cast(address, ctypes.py_object).value
    return spec_of(like(rope, *changes) if changes else rope)


@torch.compiler.assume_constant_result
def _constant_attention_spec_at(address: int) -> str:
    attention = _traced[address] = ctypes.cast(address, ctypes.py_object).value
    return attention_spec_of(attention)
