"""What bench/ times on the host alone: calls of pyrope.torch and pyrope.compat, each of which is checked before."""

import dataclasses

import pytest

from kit.torch_tensors import require_torch

require_torch()
pytestmark = pytest.mark.usefixtures("modules_of_bench")
APPLY = {"pyrope-torch", "pyrope-torch-new", *(f"compat-{name}" for name in (
    "flashinfer", "flashinfer-fly", "vllm", "sglang", "flash_attn", "transformers", "transformer_engine"))}  # fmt: skip
DROP_INS = {
    "apply": APPLY,
    "append": {"compat-flashinfer", "compat-sglang"},
    "append-fp8": {"compat-flashinfer"},
    "mla-fp8": {"compat-flashinfer"},
}
SMALL = {"dtype": "float32", "batch_size": 2, "seq_len": 3, "num_heads": 4, "num_kv_heads": 2}
MLA = {"num_heads": 4, "num_kv_heads": 1, "head_dim": 64}


def case_of(op):
    import cases

    fields = cases.OPS[op].usual | SMALL | (MLA if op == "mla-fp8" else {})
    return cases.Case(op=op, **(fields if op in ("apply", "append") else fields | {"dtype": "bfloat16"}))


def bound(op, names, change=lambda peer: peer):
    """{name: (calls, result)} of peers, on the CPU."""
    import measure
    import peers
    from cpu import Cpu
    from memory import Inputs

    device, case = Cpu(1), case_of(op)
    inputs = Inputs(device, case, 2, 0)
    chosen = [peer for peer in peers.PEERS if peer.name in names]
    assert {peer.name for peer in chosen} == names and all(peer.host_only for peer in chosen)
    found = {}
    for peer in map(change, chosen):
        calls, result = measure.bind(peer, case, inputs, {})
        host = {kind: sample() for kind, sample in measure.Alone(inputs).samplers(peer, calls).items()} if calls else {}
        found[peer.name] = result, host
    return found


@pytest.mark.parametrize("op", DROP_INS)
def test_every_one_is_right_and_has_a_host_cost(op):
    for name, (result, host) in bound(op, DROP_INS[op]).items():
        assert result["status"] == "ok", (name, result)
        assert list(host) == ["host"] and host["host"] > 0


def test_one_that_does_nothing_is_not_timed():
    def idle(peer):
        return dataclasses.replace(peer, ops=dict.fromkeys(peer.ops, lambda case, slot, inputs: lambda: None))

    for result, host in bound("apply", APPLY, idle).values():
        assert result["status"] == "wrong" and not host


def test_each_drop_in_is_listed():
    import peers

    names = {peer.name for peer in peers.PEERS if peer.name.startswith(("compat-", "pyrope-torch"))}
    assert names == set().union(*DROP_INS.values())
