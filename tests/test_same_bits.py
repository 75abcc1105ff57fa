"""The same input gives the same bits: on both backends, in and out of place, wherever a token lies."""

import subprocess
import sys

import numpy as np
import pytest
from memory import Tensor, run
from test_rotation import DTYPES, LAYOUTS, PLACES

import pyrope

SHAPES = [
    (128, 128, 0),
    (64, 32, 16),
    (80, 20, 2),
    (96, 96, 0),
    (130, 34, 96),
    (512, 512, 0),
]  # head_dim, rotary_dim, offset


@pytest.mark.gpu
@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 8, 40, 260, 1500])
def test_cuda_equals_cpu(tokens, dtype, layout, angle, rng):
    """Any bit pattern of the dtype, infinities, NaNs and denormals too; any position."""
    for head_dim, rotary_dim, offset in SHAPES:
        x = Tensor(dtype, (tokens, 3, head_dim))
        x.flat[...] = rng.integers(0, 256, x.flat.size, np.uint8)
        positions = rng.integers(-(2**63), 2**63 - 1, tokens, endpoint=True)
        results = []
        for device in ("cpu", "cuda"):
            rope = pyrope.Rope(
                head_dim,
                3,
                0,
                rotary_dim=rotary_dim,
                rotary_offset=offset,
                dtype=dtype,
                layout=layout,
                angle=angle,
                device=device,
            )
            results.append(run(rope, {"q": x}, positions=positions)["q"])
            out = Tensor(dtype, x.shape)
            results.append(out.view(run(rope, {"q": x, "q_out": out}, positions=positions)["q_out"]).copy())
        cpu, cpu_out, cuda, cuda_out = results
        np.testing.assert_array_equal(cpu, cuda)
        np.testing.assert_array_equal(cpu_out.view(np.uint8), cuda_out.view(np.uint8))


@pytest.mark.parametrize("angle", ["exact", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_in_place_equals_out_of_place(device, tokens, dtype, layout, angle, rng):
    """Whole heads, with what is not rotated of them: of any bit pattern, and of q beside k."""
    for head_dim, rotary_dim, offset in SHAPES:
        options = {"rotary_dim": rotary_dim, "rotary_offset": offset, "layout": layout, "angle": angle}
        rope = pyrope.Rope(head_dim, 3, 1, dtype=dtype, device=device, **options)
        tensors = {"q": Tensor(dtype, (tokens, 3, head_dim)), "k": Tensor(dtype, (tokens, 1, head_dim))}
        for x in tensors.values():
            x.flat[...] = rng.integers(0, 256, x.flat.size, np.uint8)
        outs = {f"{name}_out": Tensor(dtype, x.shape) for name, x in tensors.items()}
        positions = rng.integers(-(2**63), 2**63 - 1, tokens, endpoint=True)
        in_place, apart = run(rope, tensors, positions=positions), run(rope, tensors | outs, positions=positions)
        for name, x in tensors.items():
            got, want = x.view(in_place[name]), outs[f"{name}_out"].view(apart[f"{name}_out"])
            np.testing.assert_array_equal(*(np.ascontiguousarray(y).view(np.uint8) for y in (got, want)))
            assert (in_place[name] != x.flat).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_place_and_batch_do_not_matter(device, dtype, layout, rng):
    tokens = 300
    rope = pyrope.Rope(96, 4, 2, rotary_dim=64, rotary_offset=16, dtype=dtype, layout=layout, device=device)
    positions = rng.integers(0, 2**31, tokens)
    q = Tensor(dtype, (tokens, 4, 96), rng=rng)
    want = q.view(run(rope, {"q": q}, positions=positions)["q"])
    for place in PLACES.values():
        x = Tensor(dtype, q.shape, **place(*q.shape))
        x.view()[...] = q.view()
        np.testing.assert_array_equal(x.view(run(rope, {"q": x}, positions=positions)["q"]), want)
    for token in (0, 150, 299):  # alone
        one = Tensor(dtype, (1, 4, 96))
        one.view()[...] = q.view()[token]
        got = one.view(run(rope, {"q": one}, offset=int(positions[token]))["q"])
        np.testing.assert_array_equal(got[0], want[token])


def test_threads_do_not_matter(rng):
    q = Tensor("bfloat16", (5000, 8, 64), rng=rng)
    results = [
        run(pyrope.Rope(64, 8, 0, dtype="bfloat16", device="cpu", num_threads=n), {"q": q}, offset=3)["q"]
        for n in (1, 2, 7)
    ]
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
    """OpenMP's threads do not survive fork(); the child must neither hang nor give another result."""
    subprocess.run([sys.executable, "-c", FORK], check=True, cwd=tmp_path, timeout=60)
