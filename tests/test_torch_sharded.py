"""pyrope.torch of DTensors: what two processes make of their parts is the whole rotation, and its gradients."""

import subprocess
import sys

import pytest

from kit.torch_tensors import on, require_torch

torch = require_torch()

# A rank. Of each case it compares its results, gathered, with those of whole tensors.
RANK = """
import re
import sys
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
import pyrope
import pyrope.torch as face

rank, store, device = int(sys.argv[1]), *sys.argv[2:]
if device == "cuda":
    torch.cuda.set_device(rank)
dist.init_process_group({"cpu": "gloo", "cuda": "nccl"}[device], init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh(device, (2,))
LAYOUTS = {"bshd": (0, 1, 2), "sbhd": (1, 0, 2), "bhsd": (0, 2, 1)}  # dimensions of batch, sequence, heads


def whole(heads, layout):
    torch.manual_seed(heads)
    x = torch.randn(2, 6, heads, 32)
    return {"bshd": x, "sbhd": x.transpose(0, 1), "bhsd": x.transpose(1, 2)}[layout].to(device)


def share(x, placement):
    return distribute_tensor(x, mesh, [placement]).requires_grad_()


def check(rope, layout, q_place, k_place, weights=None, positions=None, **options):
    q, k = (whole(heads, layout).requires_grad_() for heads in (rope.num_q_heads, rope.num_k_heads))
    shared = [share(x.detach(), place) for x, place in ((q, q_place), (k, k_place))]
    leaves, shared_leaves, own = [q, k], list(shared), dict(options)
    if weights is not None:
        for name, weight in weights.items():
            options[name] = weight.clone().requires_grad_()
            own[name] = share(weight.clone(), Replicate())
            leaves.append(options[name])
            shared_leaves.append(own[name])
    if positions is not None:
        options["positions"], own["positions"] = positions, distribute_tensor(positions, mesh, [Replicate()])
    want = face.apply(rope, q, k, layout=layout, **options)
    got = face.apply(rope, *shared, layout=layout, **own)
    for a, b, place in zip(want, got, (q_place, k_place), strict=True):
        assert isinstance(b, DTensor) and torch.equal(b.full_tensor(), a), (layout, q_place)
        assert b.placements == ((place,) if isinstance(place, Shard) and place.dim != 3 else (Replicate(),))
        assert b.shape == a.shape and (layout != "bshd" or b.stride() == a.stride())
    sum((y * y * y).sum() for y in want).backward()
    sum((y * y * y).sum() for y in got).full_tensor().backward()
    for a, b in zip(leaves, shared_leaves, strict=True):
        torch.testing.assert_close(b.grad.full_tensor(), a.grad, rtol=1e-6, atol=1e-5)


plain = pyrope.Rope(32, 4, 2, dtype="float32", device=device)
for layout, (batch, seq, heads) in LAYOUTS.items():
    check(plain, layout, Shard(heads), Shard(heads))
    check(plain, layout, Shard(seq), Shard(seq), offset=5)
    check(plain, layout, Shard(batch), Shard(batch))
check(plain, "bshd", Shard(2), Replicate())  # fewer heads of k than ranks
check(plain, "bshd", Shard(3), Replicate())  # made whole
ids = torch.arange(12, device=device).view(2, 6) * 7 % 11
for place in (Shard(0), Shard(1), Shard(2)):
    check(plain, "bshd", place, place, positions=ids)
    check(plain, "bshd", place, place, positions=ids[0])
check(pyrope.Rope(32, 3, 1, dtype="float32", device=device), "bshd", Shard(2), Shard(2))  # a rank without heads of k

norm = pyrope.FusedRope(32, 4, 2, norm=pyrope.RMSNorm(), dtype="float32", device=device)
weights = {name: torch.rand(32, device=device) + 0.5 for name in ("q_weight", "k_weight")}
check(norm, "bshd", Shard(2), Shard(2), weights)
check(norm, "bshd", Shard(1), Shard(1), weights)

# Zigzag: each rank has positions of its own.
x = whole(4, "bshd")
order = [face.rank_positions(8, r, 2, "zigzag", device=device) for r in range(2)]
x = torch.cat((x, x[:, :2]), 1)
mine = DTensor.from_local(x[:, order[rank]], mesh, [Shard(1)])
where = DTensor.from_local(order[rank], mesh, [Shard(0)])
alone = pyrope.Rope(32, 4, 0, dtype="float32", device=device)
out, _ = face.apply(alone, mine, positions=where)
assert torch.equal(out.full_tensor(), face.apply(alone, x)[0][:, torch.cat(order)])

# A sum that is not formed yet is formed first.
half = DTensor.from_local(whole(4, "bshd") / 2, mesh, [Partial()])
key = share(whole(2, "bshd"), Replicate())
want = face.apply(plain, whole(4, "bshd"), whole(2, "bshd"))
assert torch.equal(face.apply(plain, half, key)[0].full_tensor(), want[0])

# As a module, in a graph, and in place.
with torch.no_grad():
    q, k = share(whole(4, "bshd"), Shard(2)), share(whole(2, "bshd"), Shard(2))
    assert face.RotaryEmbedding(plain)(q, k)[0].full_tensor().equal(want[0])
    traced = torch.compile(lambda q, k: face.apply(plain, q, k), backend="aot_eager", fullgraph=True)
    assert traced(q, k)[1].full_tensor().equal(want[1])
    same = face.apply_(plain, q, k)
    assert same[0] is q and torch.equal(q.full_tensor(), want[0]) and torch.equal(k.full_tensor(), want[1])

q, k = share(whole(4, "bshd"), Shard(2)), share(whole(2, "bshd"), Shard(2))
late = share(whole(2, "bshd"), Shard(1))
for error, text, call in (
    (TypeError, "k: Tensor, must be a DTensor", lambda: face.apply(plain, q, whole(2, "bshd"))),
    (TypeError, "positions: Tensor, must be a DTensor", lambda: face.apply(plain, q, k, positions=ids)),
    (ValueError, "k: placements .* must shard tokens as q does", lambda: face.apply(plain, q, late)),
    (ValueError, "q: placements .* in place it must be sharded by heads or tokens",
     lambda: face.apply_(plain, share(whole(4, "bshd"), Shard(3)).detach(), k.detach())),
    (ValueError, "indptr: not with DTensors", lambda: face.apply(
        alone, share(whole(4, "bshd")[0], Replicate()), layout="thd",
        indptr=distribute_tensor(torch.tensor([0, 6], device=device), mesh, [Replicate()]))),
):
    try:
        call()
    except error as raised:
        assert re.match(text, str(raised)), raised
    else:
        raise AssertionError(text)
dist.destroy_process_group()
print("equal")
"""


def test_two_ranks(device, tmp_path):
    """gloo on the CPU, NCCL on two GPUs."""
    if on(device) == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), device],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for out, error in results:
        assert out == "equal\n", error
