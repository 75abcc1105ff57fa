"""Positions of the ranks of a sequence, and that rotating each rank's part is rotating the whole."""

import subprocess
import sys

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
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


# A rank: rotates its part of q in its own process, and gathers all parts by torch.distributed.
RANK = """
import sys
import torch, torch.distributed as dist
import pyrope, pyrope.torch

rank, world, store, device, scheme = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
if device == "cuda":
    torch.cuda.set_device(rank)
dist.init_process_group({"cpu": "gloo", "cuda": "nccl"}[device], init_method=f"file://{store}", rank=rank,
                        world_size=world)
rope = pyrope.Rope(64, 3, 0, dtype="float32", device=device)
torch.manual_seed(0)
whole = torch.randn(2, 24, 3, 64).to(device)
positions = pyrope.torch.rank_positions(24, rank, world, scheme, device=device)
part = whole[:, positions].requires_grad_()
out, _ = pyrope.torch.apply(rope, part, positions=positions)
(out * whole[:, positions]).sum().backward()
for mine, weight in ((out.detach(), None), (part.grad, whole)):
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    got = torch.empty_like(whole)
    for other, x in enumerate(parts):
        got[:, pyrope.torch.rank_positions(24, other, world, scheme, device=device)] = x
    assert torch.equal(got, pyrope.torch.apply(rope, whole, inverse=weight is not None)[0])
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.parametrize("scheme", WANT)
def test_processes(device, scheme, tmp_path):
    """Two ranks, gloo on the CPU and NCCL on two GPUs: together they have the whole rotation and its gradient."""
    if on(device) == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), "2", str(tmp_path / "store"), device, scheme],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for out, error in results:
        assert out == "equal\n", error
