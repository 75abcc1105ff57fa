"""pyrope.torch.RotaryEmbedding: a module that follows its inputs."""

import copy
import pickle

import numpy as np
import pytest

import pyrope
from kit.reference import DTYPES
from kit.ropes import DIM, K_HEADS, Q_HEADS, make
from kit.torch_tensors import LAYOUTS, check_rotated, laid_out, on, require_torch

torch = require_torch()
import pyrope.torch as face  # noqa: E402
from pyrope.torch._specs import spec_of  # noqa: E402

BATCH, SEQ = 2, 5


def randn(device, heads, dtype="float32"):
    torch.manual_seed(heads)
    return torch.randn(BATCH, SEQ, heads, DIM).to(device, getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_follows_its_inputs(device, layout, dtype):
    """Whatever the Rope's own dtype and device."""
    rotary = face.RotaryEmbedding(make("cpu", "float16", num_threads=1), layout)
    x = [laid_out(randn(on(device), heads, dtype), layout) for heads in (Q_HEADS, K_HEADS)]
    for out, before in zip(rotary(*x, offset=8), x, strict=True):
        check_rotated(make(device, dtype), out, before, layout, np.tile(np.arange(8, 8 + SEQ), (BATCH, 1)))


def test_options(device):
    rope, where = make(device), on(device)
    q, positions = randn(where, Q_HEADS), torch.arange(SEQ, device=where)
    rotary = face.RotaryEmbedding(rope)
    got, none = rotary(q, positions=positions, inverse=True)
    assert none is None and torch.equal(got, face.apply(rope, q, positions=positions, inverse=True)[0])
    with pytest.raises(TypeError, match=r"^q and k: both None"):
        rotary(None)


@pytest.mark.parametrize("across", [False, True])
def test_weights(device, across):
    """Parameters that multiply by 1 at first, of the shape of the norm, and trained with the rest."""
    where = on(device)
    rope = make(device, fused=True, norm=pyrope.RMSNorm(weight_bias=1.0, across_heads=across))
    rotary = face.RotaryEmbedding(rope).to(where)
    shapes = {name: tuple(p.shape) for name, p in rotary.named_parameters()}
    assert shapes == {f"{n}_weight": (h, DIM) if across else (DIM,) for n, h in (("q", Q_HEADS), ("k", K_HEADS))}
    q, k = randn(where, Q_HEADS), randn(where, K_HEADS)
    ones = {name: torch.zeros(shape, device=where) for name, shape in shapes.items()}
    want = face.apply(rope, q, k, **ones, offset=2)
    assert all(torch.equal(a, b) for a, b in zip(rotary(q, k, offset=2), want, strict=True))
    optimizer = torch.optim.SGD(rotary.parameters(), lr=0.1)
    rotary(q, offset=2)[0].square().sum().backward()
    optimizer.step()
    assert rotary.q_weight.abs().sum() > 0 and not rotary.k_weight.any()


def test_half_weights(device):
    """Weights in the dtype of q, in which .to() puts them, or in float32."""
    where = on(device)
    rotary = face.RotaryEmbedding(make(device, fused=True, norm=pyrope.RMSNorm())).to(where)
    q = randn(where, Q_HEADS, "bfloat16")
    want = rotary(q)[0]
    assert torch.equal(rotary.to(torch.bfloat16)(q)[0], want) and rotary.q_weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"^weight_dtype: "):
        rotary.to(torch.float16)(q)


def test_copies():
    rotary = face.RotaryEmbedding(make(fused=True, norm=pyrope.RMSNorm(), layout="gptj"), "bhsd")
    for again in (copy.deepcopy(rotary), pickle.loads(pickle.dumps(rotary))):
        assert spec_of(again.rope) == spec_of(rotary.rope) and again.layout == "bhsd"
        assert list(again.state_dict()) == ["q_weight", "k_weight"] and again.q_weight is not rotary.q_weight
    assert list(face.RotaryEmbedding(make()).state_dict()) == []
    assert "layout='gptj'" in repr(rotary) and "layout='bhsd'" in repr(rotary)


@pytest.mark.parametrize("fused", [False, True])
def test_from_hf_config(fused):
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
              "rope_theta": 5e5, "max_position_embeddings": 4096}  # fmt: skip
    rotary = face.RotaryEmbedding.from_hf_config(config, fused=fused, angle="fp32")
    kind = pyrope.FusedRope if fused else pyrope.Rope
    want = kind.from_hf_config(config, device="cpu", angle="fp32")
    assert type(rotary.rope) is kind and spec_of(rotary.rope) == spec_of(want) and rotary.layout == "bhsd"


def test_refusals():
    with pytest.raises(ValueError, match=r"^layout: 'neox', must be"):
        face.RotaryEmbedding(make(), "neox")
    with pytest.raises(TypeError, match=r"^rope: int, must be"):
        face.RotaryEmbedding(3)
