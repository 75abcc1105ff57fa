"""What the tests of Hugging Face configurations share: minimal ones, and how they are read."""

import importlib
import importlib.metadata

import pytest

import pyrope
from kit.torch_tensors import REQUIRED
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


def has_transformers(known):
    """Whether the version that something frozen is of is here, as it must be with PYROPE_REQUIRE_TORCH=1."""
    found = version_of("transformers") if version_of("torch") else None
    assert found == known or not REQUIRED, f"transformers is {found}, must be {known}"
    return found == known


def require_transformers():
    """transformers; where it is not the version whose models are known, the module's tests skip, or fail."""
    known = models()["transformers"]
    if not has_transformers(known):
        pytest.skip(f"transformers is {version_of('transformers')}, not {known}", allow_module_level=True)
    return importlib.import_module("transformers")
