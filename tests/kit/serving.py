"""What serving libraries' rotations and appends make of tensors, in float64."""

import inspect

import numpy as np

from kit import reference
from kit.torch_tensors import array_of, require_torch


def signature_of(function):
    """Names, order and defaults."""
    parameters = inspect.signature(function).parameters.values()
    text = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and "*" not in text:
            text.append("*")
        text.append(str(p.replace(annotation=p.empty, kind=p.POSITIONAL_OR_KEYWORD)))
    return ", ".join(text)


def quantised(x):
    """An fp8 tensor as an array of its format."""
    torch = require_torch()
    name = str(x.dtype).rpartition(".")[2]
    return x.detach().cpu().contiguous().view(torch.uint8).numpy().view(reference.storage(name)), name


def rotated(x, cos, sin, neox=True, offset=0):
    """A value of [tokens, heads, dim], turned by [tokens, rotary_dim / 2] cos and sin."""
    value = x if isinstance(x, tuple) else reference.exact(array_of(x))
    return reference.rotate(value, cos, sin, "neox" if neox else "gptj", 2 * cos.shape[1], offset)


def by_table(x, table, positions, neox=True, offset=0, inverse=False):
    """The same by rows of a table, cosines before sines."""
    cos, sin = np.split(reference.decode(array_of(table))[np.asarray(positions)], 2, -1)
    return rotated(x, cos, -sin if inverse else sin, neox, offset)


def by_theta(x, positions, rotary_dim, theta=1e4, neox=True, frequencies=None):
    """The same by exact angles."""
    found = reference.base_frequencies(rotary_dim, theta) if frequencies is None else frequencies
    return rotated(x, *reference.cos_sin(np.asarray(positions), found), neox)


def check(got, value, dtype=None):
    """`got` is a rounding of the value."""
    if str(got.dtype).startswith("torch.float8"):
        array, name = quantised(got)
    else:
        array, name = array_of(got), dtype or str(got.dtype).rpartition(".")[2]
    value = tuple(part.reshape(array.shape) for part in value)
    good = reference.within(array, value, name)
    assert good.all(), (array[~good][:4], value[0][~good][:4])


def times(value, multiplier):
    """What is quantised with a multiplier, whose reciprocal is rounded twice on the way."""
    y, error = (part * multiplier for part in value)
    return y, error + 3 * reference.U * np.abs(y)
