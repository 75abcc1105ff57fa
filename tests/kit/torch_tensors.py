"""Tensors of torch in the layouts that pyrope.torch takes, and what a rotation makes of them in float64."""

import importlib
import os

import numpy as np
import pytest

from kit import reference
from kit.memory import EMULATED
from kit.rotations import cos_sin_for

REQUIRED = os.environ.get("PYROPE_REQUIRE_TORCH") == "1"
LAYOUTS = ("bshd", "sbhd", "bhsd")


def require_torch():
    """torch; where it is missing the module's tests skip, or fail with PYROPE_REQUIRE_TORCH=1."""
    return importlib.import_module("torch") if REQUIRED else pytest.importorskip("torch")


def bhsd(x, layout):
    """As torch's attention takes it; "thd" is one sequence."""
    if layout == "thd":
        return x.transpose(0, 1)[None]
    return x.permute(*(layout.index(letter) for letter in "bhsd"))


def on(device):
    """The device's name for torch."""
    if device == "cuda" and EMULATED:
        pytest.skip("the kernels compiled for the CPU take host memory, of which torch says that it is the CPU's")
    return device


def randn(device, *shape, dtype="float32", seed=0):
    torch = require_torch()
    torch.manual_seed(sum(shape) + seed)
    return torch.randn(*shape).to(on(device), getattr(torch, dtype))


def laid_out(x, layout):
    """[batch, seq, heads, dim] in another order of dimensions, as a view."""
    return {"bshd": x, "sbhd": x.transpose(0, 1), "bhsd": x.transpose(1, 2), "thd": x.flatten(0, 1)}[layout]


def batch_first(x, layout):
    """The way back; of thd a batch of one."""
    return {"bshd": lambda: x, "sbhd": lambda: x.transpose(0, 1), "bhsd": lambda: x.transpose(1, 2)}.get(
        layout, lambda: x[None]
    )()


def array_of(x):
    """A tensor as a NumPy array, bfloat16 too."""
    torch = require_torch()
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(reference.storage("bfloat16"))
    return x.numpy()


def check_rotated(rope, got, x, layout, positions, inverse=False):
    """`got` is x turned by [batch, seq] positions, to the bound of one rounding; at -1 it is x itself."""
    rows = [array_of(batch_first(t, layout)) for t in (got, x)]
    got, x = (row.reshape(-1, *row.shape[2:]) for row in rows)
    positions = np.asarray(positions).ravel()
    assert len(positions) == len(x)
    moved = positions != -1
    cos, sin = cos_sin_for(rope, positions[moved])
    value = reference.rotate(
        reference.exact(x[moved]), cos, -sin if inverse else sin, rope.layout, rope.rotary_dim, rope.rotary_offset
    )
    good = reference.within(got[moved], value, rope.dtype)
    assert good.all(), (got[moved][~good][:4], value[0][~good][:4])
    np.testing.assert_array_equal(got[~moved].view(np.uint8), x[~moved].view(np.uint8))


def rotate64(x, rope, positions):
    """RoFormer (arXiv:2104.09864), equation 34, of [..., tokens, heads, dim] in float64, differentiable by torch."""
    torch = require_torch()
    cos, sin = (torch.tensor(t, device=x.device)[:, None] for t in cos_sin_for(rope, positions))
    pairs = reference.pair_indices(rope.rotary_dim, rope.layout)
    first, second = (torch.as_tensor(rope.rotary_offset + i, device=x.device) for i in pairs)
    y = x.clone()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y
