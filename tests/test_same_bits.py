"""The same input gives the same bits: on both backends, in and out of place, wherever a token lies."""

import subprocess
import sys

import numpy as np
import pytest

from kit.blocks import bits_block, call, normal_block, rows_block, same_on_both
from kit.places import PLACES
from kit.reference import DTYPES
from kit.ropes import make

LAYOUTS = ["neox", "gptj"]
SHAPES = [
    (128, 128, 0),
    (64, 32, 16),
    (80, 20, 2),
    (96, 96, 0),
    (130, 34, 96),
    (512, 512, 0),
]  # head_dim, rotary_dim, offset


def options_of(shape, **options):
    return dict(zip(("head_dim", "rotary_dim", "rotary_offset"), shape, strict=True)) | options


@pytest.mark.gpu
@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 8, 40, 260, 1500])
def test_cuda_equals_cpu(tokens, dtype, layout, angle, rng):
    """Any bit pattern of the dtype, infinities, NaNs and denormals too; any position."""
    for shape in SHAPES:
        options = options_of(shape, dtype=dtype, layout=layout, angle=angle)
        x = bits_block(rng, dtype, (tokens, 3, shape[0]))
        operands = {"q": x, "positions": rng.integers(-(2**63), 2**63 - 1, tokens, endpoint=True)}
        for more in ({}, {"q_out": rows_block(dtype, x.shape)}):
            same_on_both(lambda device, options=options: make(device, **options), operands | more)


@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_in_place_equals_out_of_place(device, tokens, dtype, layout, angle, rng):
    """Whole heads, with what is not rotated of them: of any bit pattern, and of q beside k."""
    for shape in SHAPES:
        rope = make(device, num_k_heads=1, **options_of(shape, dtype=dtype, layout=layout, angle=angle))
        tensors = {x: bits_block(rng, dtype, (tokens, heads, shape[0])) for x, heads in (("q", 3), ("k", 1))}
        outs = {f"{name}_out": rows_block(dtype, x.shape) for name, x in tensors.items()}
        operands = tensors | {"positions": rng.integers(-(2**63), 2**63 - 1, tokens, endpoint=True)}
        in_place, apart = call(rope, operands), call(rope, operands | outs)
        for name, x in tensors.items():
            out = f"{name}_out"
            np.testing.assert_array_equal(x.bytes(in_place[name]), outs[out].bytes(apart[out]))
            assert (in_place[name] != x.flat).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_place_and_batch_do_not_matter(device, dtype, layout, rng):
    tokens, options = 300, options_of((96, 64, 16), dtype=dtype, layout=layout)
    rope = make(device, num_q_heads=4, **options)
    positions = rng.integers(0, 2**31, tokens)
    q = normal_block(rng, dtype, (tokens, 4, 96))
    want = q.view(call(rope, {"q": q, "positions": positions})["q"])
    for place in PLACES:
        x = rows_block(dtype, q.shape, place, q.view())
        np.testing.assert_array_equal(x.view(call(rope, {"q": x, "positions": positions})["q"]), want)
    for token in (0, 150, 299):  # alone
        one = rows_block(dtype, (1, 4, 96), values=q.view()[token])
        got = one.view(call(rope, {"q": one, "offset": int(positions[token])})["q"])
        np.testing.assert_array_equal(got[0], want[token])


def test_threads_do_not_matter(rng):
    q = normal_block(rng, "bfloat16", (5000, 8, 64))
    ropes = [make(dtype="bfloat16", num_q_heads=8, num_threads=n) for n in (1, 2, 7)]
    results = [call(rope, {"q": q, "offset": 3})["q"] for rope in ropes]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


FORK = """
import os, signal
import numpy as np, pyrope

rope = pyrope.Rope(64, 8, 0, dtype="float32", device="cpu", num_threads=2)
q = np.random.default_rng(1).standard_normal((4000, 8, 64), dtype=np.float32)
want = q.copy()
rope.apply(want, offset=3)
child = os.fork()
if child == 0:
    signal.alarm(30)
    rope.apply(q, offset=3)
    os._exit(0 if (q == want).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_works_in_a_forked_child(tmp_path):
    """The threads do not survive fork(); the child must neither hang nor give another result."""
    subprocess.run([sys.executable, "-c", FORK], check=True, cwd=tmp_path, timeout=60)
