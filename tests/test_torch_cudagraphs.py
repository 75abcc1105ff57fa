"""pyrope.torch under inductor's CUDA graphs: what would make it skip them is looked for without a GPU; with one they
are captured and replayed."""

import pytest

from kit.ropes import DIM, K_HEADS, Q_HEADS, make
from kit.torch_tensors import on, require_torch

torch = require_torch()
import pyrope.torch as face  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore"),  # inductor's
]

BATCH, SEQ = 2, 5


def functional(rope):
    def step(q, k, positions):
        a, b = face.apply(rope, q + 1, k * 2, positions=positions)
        return a * 2, b

    return step


def of_intermediates(rope):
    """In place, of what the graph itself has made: as a layer rotates what its projection returns."""

    def step(q, k, positions):
        a, b = face.apply_(rope, q + 1, k * 2, positions=positions)
        return a * 2, b

    return step


def of_inputs(rope):
    def step(q, k, positions):
        face.apply_(rope, q, k, positions=positions)
        return q * 2, k

    return step


def tensors(device, seed=0):
    torch.manual_seed(seed)
    q, k = (torch.randn(BATCH, SEQ, heads, DIM, device=device) for heads in (Q_HEADS, K_HEADS))
    return q, k, torch.randint(0, 1000, (BATCH, SEQ), device=device)


def test_operators_have_no_tag_that_forbids_graphs():
    for operator in (torch.ops.pyrope.apply.default, torch.ops.pyrope.apply_.default):
        assert torch.Tag.cudagraph_unsafe not in operator.tags
        assert torch.Tag.data_dependent_output not in operator.tags
    assert not torch.ops.pyrope.apply.default._schema.is_mutable


@pytest.mark.parametrize(("make_step", "mutated"), [(functional, 0), (of_intermediates, 0), (of_inputs, 2)])
def test_mutated_inputs(make_step, mutated):
    """What inductor takes for mutated inputs, for which it skips CUDA graphs: none but those that the caller has
    written."""
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    rope, graphs = make("cpu"), []

    def inner(graph, inputs, **options):
        graphs.append(compile_fx_inner(graph, inputs, **options))
        return graphs[-1]

    step = make_step(rope)
    compiled = torch.compile(step, fullgraph=True, backend=lambda g, i: compile_fx(g, i, inner_compile=inner))
    without_cache = config.patch(enable_autograd_cache=False)  # in which `inner` is not called
    with torch.no_grad(), without_cache:
        want, got = step(*tensors("cpu")), compiled(*tensors("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    (found,) = graphs
    assert len(found.mutated_input_idxs) == mutated
    if make_step is of_intermediates:  # they are written where they are, and not in copies
        assert "pyrope.apply_.default" in found.source_code and ".copy_(" not in found.source_code


@pytest.mark.gpu
@pytest.mark.parametrize("make_step", [functional, of_intermediates])
def test_captured(make_step):
    """With a GPU: nothing is skipped, and replays compute anew from what they are given."""
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_trees import get_container

    step = make_step(make(on("cuda")))
    compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    counters.clear()
    with torch.no_grad():
        for seed in range(5):  # two to warm up and to record
            torch.compiler.cudagraph_mark_step_begin()
            got = [x.clone() for x in compiled(*tensors("cuda", seed))]
            for a, b in zip(got, step(*tensors("cuda", seed)), strict=True):
                assert torch.equal(a, b)
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert get_container(torch.cuda.current_device()).tree_manager is not None


@pytest.mark.gpu
def test_captured_training():
    """Forward and backward."""
    from torch._dynamo.utils import counters

    rope = make(on("cuda"))

    def loss(q, k, positions):
        a, b = face.apply(rope, q, k, positions=positions)
        return (a**3).sum() + (b**3).sum()

    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    counters.clear()
    for seed in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        grads = []
        for function in (compiled, loss):
            q, k, positions = tensors("cuda", seed)
            q.requires_grad_(), k.requires_grad_()
            function(q, k, positions).backward()
            grads.append((q.grad, k.grad))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert counters["inductor"]["cudagraph_skips"] == 0
