"""Positions of the ranks of a sequence, and that rotating each rank's part is rotating the whole."""

import pytest

from kit.refusals import V, refused, rows
from kit.ropes import DIM, Q_HEADS, make
from kit.torch_tensors import on, require_torch

torch = require_torch()
import pyrope.torch as face  # noqa: E402

# Written out for 8 tokens on 2 ranks, from the descriptions of the schemes.
WANT = {
    "contiguous": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "zigzag": [[0, 1, 6, 7], [2, 3, 4, 5]],
    "round_robin": [[0, 2, 4, 6], [1, 3, 5, 7]],
}


@pytest.mark.parametrize("scheme", WANT)
def test_positions(scheme):
    got = [face.rank_positions(8, rank, 2, scheme) for rank in range(2)]
    assert [x.tolist() for x in got] == WANT[scheme] and got[0].dtype == torch.int64
    assert face.rank_positions(8, 0, 2, scheme, dtype=torch.int32).dtype == torch.int32
    for world in (1, 3, 4):
        parts = [face.rank_positions(48, rank, world, scheme) for rank in range(world)]
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(48))
        if scheme == "zigzag":  # causal attention: how many keys each rank's queries see
            assert len({int(part.sum()) for part in parts}) == 1


@pytest.mark.parametrize("scheme", WANT)
def test_parts_of_a_rotation(device, scheme):
    rope, q = make(device), torch.randn(2, 24, Q_HEADS, DIM, device=on(device))
    want, _ = face.apply(rope, q)
    for rank in range(3):
        positions = face.rank_positions(24, rank, 3, scheme, device=q.device)
        assert torch.equal(face.apply(rope, q[:, positions], positions=positions)[0], want[:, positions])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    rows(
        ("scheme", (8, 0, 2, "striped"), V, "scheme: 'striped', must be 'contiguous'"),
        ("rank", (8, 2, 2), V, "rank: 2, must be 0 to 1"),
        ("negative rank", (8, -1, 2), V, "rank: -1, must be 0 to 1"),
        ("world_size", (8, 0, 0), V, "world_size: 0, must be at least 1"),
        ("seq", (9, 0, 2), V, "seq: 9, must be a multiple of 2"),
        ("seq of zigzag", (6, 0, 2, "zigzag"), V, "seq: 6, must be a multiple of 4"),
    ),
)
def test_refusals(arguments, error, text):
    with refused(error, text):
        face.rank_positions(*arguments)


LIGHT = """
import sys, pyrope
assert "torch" not in sys.modules
import pyrope.torch
assert pyrope.torch.apply and sys.modules["torch"] is not sys.modules["pyrope.torch"]
"""


def test_import_is_apart():
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", LIGHT], check=True)
