"""What the tests of Hugging Face configurations share: minimal ones, and how they are read."""

import importlib
import importlib.metadata

import pytest

import pyrope
from pyrope.hf import models

D = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "rope_theta": 1e4}
MLA = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "rope_theta": 1e4,
}


def from_hf(config, model_type=None, cls=pyrope.Rope, **arguments):
    config = config | ({"model_type": model_type} if model_type else {})
    return cls.from_hf_config(config, device="cpu", **arguments)


def version_of(package):
    """Of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require_transformers():
    """transformers; where it is not the version whose models are known, the module's tests skip."""
    known = models()["transformers"]
    if version_of("transformers") != known:
        pytest.skip(f"transformers is {version_of('transformers')}, not {known}", allow_module_level=True)
    return importlib.import_module("transformers")
