"""pyrope.torch under torch.compile and torch.export: no graph break, the same numbers, programs that other processes
load."""

import subprocess
import sys

import pytest

import pyrope
from kit.ropes import DIM, K_HEADS, Q_HEADS, make
from kit.torch_tensors import LAYOUTS, laid_out, on, require_torch

torch = require_torch()
import pyrope.torch as face  # noqa: E402
from pyrope.torch._operators import ALSO_READ, NUMBERS, READ, WRITTEN  # noqa: E402
from pyrope.torch._specs import like, rope_of, spec_of  # noqa: E402

BATCH, SEQ = 2, 5

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # Of a module of torch 2.11, as it is imported with inductor.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def randn(device, heads, seq=SEQ):
    torch.manual_seed(heads)
    return torch.randn(BATCH, seq, heads, DIM).to(device)


def compiled(function, **options):
    """Without C++ or Triton: what is captured is what is tested."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def positions_of(device, seq=SEQ):
    return (torch.arange(BATCH * seq, device=device).view(BATCH, seq) * 37) % 101 - 1  # the first is -1


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functional(device, layout, with_positions):
    rope, where = make(device), on(device)
    q, k = (laid_out(randn(where, heads), layout).requires_grad_() for heads in (Q_HEADS, K_HEADS))
    arguments = {"positions": positions_of(where)} if with_positions else {"offset": 9}

    def loss(q, k):
        a, b = face.apply(rope, q, k, layout=layout, **arguments)
        return (a**3).sum() + (b**3).sum()

    want, got = loss(q, k), compiled(loss)(q, k)
    assert torch.equal(got, want)
    for a, b in zip(torch.autograd.grad(got, (q, k)), torch.autograd.grad(want, (q, k)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_dynamic_shapes(device, backend):
    """One graph for all lengths and offsets."""
    rope, where = make(device), on(device)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    def turn(q, positions):
        return face.apply(rope, q * 2, positions=positions)[0] + 1

    counting = torch.compile(turn, fullgraph=True, dynamic=True, backend=count)
    real = torch.compile(turn, fullgraph=True, dynamic=True, backend=backend)
    for seq in (5, 6, 17):
        q, positions = randn(where, Q_HEADS, seq), positions_of(where, seq)
        want = turn(q, positions)
        assert torch.equal(counting(q, positions), want) and torch.equal(real(q, positions), want)
    assert len(graphs) == 1
    assert [node.target for node in graphs[0].graph.nodes if "pyrope" in str(node.target)] == [
        torch.ops.pyrope.apply.default
    ]


def test_in_place(device):
    """A mutation that the graph has, of a view too."""
    rope, where = make(device), on(device)

    def turn(qkv, positions):
        q, k, _ = qkv.split((Q_HEADS, K_HEADS, K_HEADS), 2)
        face.apply_(rope, q, k, positions=positions)
        return qkv * 2

    qkv, positions = randn(where, Q_HEADS + 2 * K_HEADS), positions_of(where)
    want, got = qkv.clone(), qkv.clone()
    result = turn(want, positions)
    assert torch.equal(compiled(turn)(got, positions), result) and torch.equal(got, want)
    assert not torch.equal(want, qkv)


def test_another_rope(device):
    """A graph is for one Rope; with another a new one is made."""
    where = on(device)
    turn = compiled(lambda rope, q: face.apply(rope, q, offset=5)[0])
    q = randn(where, Q_HEADS)
    for theta in (1e4, 5e5, 1e4):
        rope = make(device, theta=theta)
        assert torch.equal(turn(rope, q), face.apply(rope, q, offset=5)[0])


class Holder:
    rope = None


RULES = {
    "argument": lambda rope, box, q: face.apply(rope, q, offset=5)[0],
    "dict": lambda rope, box, q: face.apply(box["rope"], q, offset=5)[0],
    "list": lambda rope, box, q: face.apply(box["ropes"][-1], q, offset=5)[0],
    "attribute": lambda rope, box, q: face.apply(Holder.rope, q, offset=5)[0],
    "module": lambda rope, box, q: box["module"](q, offset=5)[0],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rope_in_place_of_another(device, rule):
    """Wherever the function finds it, and when each is gone before the next is made, which may lie where it lay."""
    where = on(device)
    turn = compiled(RULES[rule])
    q = randn(where, Q_HEADS)
    box = {"ropes": [None], "module": face.RotaryEmbedding(make(device))}
    for theta in (1e4, 5e5, 1e6, 2e6, 3e6):
        rope = make(device, theta=theta)
        box["rope"] = box["ropes"][-1] = box["module"].rope = Holder.rope = rope
        want = face.apply(rope, q, offset=5)[0]
        assert torch.equal(turn(rope, box, q), want)
        assert torch.equal(turn(rope, box, q), want)
        del rope
        box["rope"] = box["ropes"][-1] = box["module"].rope = Holder.rope = None
        spec_of.cache_clear()
        like.cache_clear()


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")  # makers of Ropes
def test_a_rope_that_the_graph_makes(device):
    """Is none that can be captured, and never a wrong one."""
    where = on(device)
    q = randn(where, Q_HEADS)

    def turn(q):
        return face.apply(make(device, theta=5e5), q, offset=5)[0]

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(turn)(q)
    assert torch.equal(torch.compile(turn, backend="aot_eager")(q), turn(q))


def test_cache(device):
    """Caches, slots and quantised outputs through the mutating operator."""
    where = on(device)
    rope = make(device, fused=True, cache=pyrope.PagedCache(4, 3), norm=pyrope.RMSNorm(), q_out_dtype="float8_e4m3fn")
    q, k, v = (randn(where, heads)[0] for heads in (Q_HEADS, K_HEADS, K_HEADS))
    slots, weight = torch.tensor([3, 4, -1, 11, 0], device=where), torch.ones(DIM, device=where)

    def step(q, k, v, k_cache, v_cache):
        return face.apply(rope, q, k, v=v, layout="thd", offset=3, q_scale=0.25, q_weight=weight, k_weight=weight,
                          slots=slots, k_cache=k_cache, v_cache=v_cache)  # fmt: skip

    want, got = (torch.zeros(2, 3, 4, K_HEADS, DIM, device=where) for _ in range(2))
    out, out_k, out_v = step(q, k, v, *want)
    again, *nothing = compiled(step)(q, k, v, *got)
    assert torch.equal(again.view(torch.uint8), out.view(torch.uint8)) and nothing == [out_k, out_v] == [None, None]
    assert torch.equal(got, want) and want.any()


def test_sums_of_a_norm_that_ranks_share(device):
    """Written by a call that leaves q as it is, and read by the next."""
    where = on(device)
    rope = make(device, fused=True, norm=pyrope.RMSNorm(across_heads=True, ranks=2))
    q, weight = randn(where, Q_HEADS)[0], torch.ones(Q_HEADS * DIM, device=where)

    def step(q, sums, write):
        face.apply_(rope, q, layout="thd", q_weight=weight, q_sums=sums, write_sums=write)
        return q

    sums, again = torch.zeros(2, SEQ, device=where)
    assert torch.equal(step(q.clone(), sums, True), q) and torch.allclose(sums, (q**2).sum((1, 2)))
    assert torch.equal(compiled(step)(q.clone(), again, True), q) and torch.equal(again, sums)
    assert torch.equal(compiled(step)(q.clone(), sums, False), step(q.clone(), sums, False))


def test_k_of_another_dtype(device):
    """Each result, and gradient, of its own."""
    where = on(device)
    rope = make(device, "bfloat16", fused=True, k_dtype="float16")
    q, k = randn(where, Q_HEADS)[0].bfloat16(), randn(where, K_HEADS)[0].half()
    leaves = [x.clone().requires_grad_() for x in (q, k)]

    def turn(q, k):
        return face.apply(rope, q, k, layout="thd", offset=3)

    for x, y, leaf in zip(turn(q, k), compiled(turn)(*leaves), leaves, strict=True):
        assert x.dtype == leaf.dtype and torch.equal(x, y)
        (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y), retain_graph=True)
        assert grad.dtype == leaf.dtype and grad.any()


@pytest.mark.parametrize("norm", [False, True])
def test_module(device, norm):
    """The module in a model, with its weights' gradients."""
    where = on(device)
    options = {"fused": True, "norm": pyrope.RMSNorm()} if norm else {}
    rotary = face.RotaryEmbedding(make(device, **options), layout="bhsd").to(where)
    layer = torch.nn.Linear(DIM, Q_HEADS * DIM).to(where)

    def model(x, positions):
        q = layer(x).view(BATCH, SEQ, Q_HEADS, DIM).transpose(1, 2)
        return rotary(q, positions=positions)[0].square().square().sum()

    x, positions = torch.randn(BATCH, SEQ, DIM, device=where), positions_of(where)
    parameters = [layer.weight, *([rotary.q_weight] if norm else [])]
    want = torch.autograd.grad(model(x, positions), parameters)
    got = torch.autograd.grad(compiled(model)(x, positions), parameters)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


def test_module_follows_its_inputs(device):
    """One that is compiled, too."""
    where = on(device)
    rotary = face.RotaryEmbedding(make("cpu"))
    turn = compiled(rotary)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q = randn(where, Q_HEADS).to(dtype)
        assert torch.equal(turn(q, offset=3)[0], rotary(q, offset=3)[0])


def operands(names, **given):
    return [given.get(name) for name in names]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_functional(device, layout, grad):
    where = on(device)
    q, k = (laid_out(randn(where, heads), layout).requires_grad_(grad) for heads in (Q_HEADS, K_HEADS))
    for rope, given in (
        (make(device), {"q": q, "k": k}),
        (make(device), {"q": q, "k": k, "positions": positions_of(where)}),
        (make(device), {"k": k}),
        (
            make(device, fused=True, norm=pyrope.RMSNorm()),
            {"q": q, "q_weight": torch.ones(DIM, device=where), "positions": positions_of(where)},
        ),
    ):
        rest = (0 if "positions" in given else 3, False, layout, spec_of(rope))
        torch.library.opcheck(torch.ops.pyrope.apply.default, (*operands(READ, **given), *rest))


def test_opcheck_mutating(device):
    where, op = on(device), torch.ops.pyrope.apply_.default
    names, numbers = (*READ, *WRITTEN, *ALSO_READ), (*(None,) * len(NUMBERS), "leave", None)
    q, k = (randn(where, heads) for heads in (Q_HEADS, K_HEADS))
    given = {"q": q, "k": k, "positions": positions_of(where)}
    torch.library.opcheck(op, (*operands(names, **given), *numbers, 0, False, "bshd", spec_of(make(device))))
    rope = make(device, fused=True, cache=pyrope.PagedCache(4, 3))
    caches = {name: torch.zeros(3, 4, K_HEADS, DIM, device=where) for name in ("k_cache", "v_cache")}
    slots = torch.tensor([3, 4, -1, 11, 0], device=where)
    given = {"q": q[0], "k": k[0], "v": k[1], "slots": slots, **caches}
    torch.library.opcheck(op, (*operands(names, **given), *numbers, 5, False, "thd", spec_of(rope)))


LOAD = """
import sys, torch, pyrope.torch
program, inputs, want = (sys.argv[i] for i in (1, 2, 3))
inputs, want = torch.load(inputs), torch.load(want)
got = torch.export.load(program).module()(*inputs)
assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
print("equal")
"""


def test_export(device, tmp_path):
    """A program with a dynamic length, saved here, loaded and run by another process."""
    where = on(device)
    rope = make(device, scaling=pyrope.YaRN(4.0, 4096), theta=5e5)
    module = face.RotaryEmbedding(rope).to(where)
    seq = torch.export.Dim("seq", min=2, max=4096)
    example = randn(where, Q_HEADS), randn(where, K_HEADS)
    program = torch.export.export(module, example, dynamic_shapes={"q": {1: seq}, "k": {1: seq}})
    assert "pyrope.apply.default" in program.graph_module.code
    torch.export.save(program, tmp_path / "program.pt2")
    inputs = randn(where, Q_HEADS, 9), randn(where, K_HEADS, 9)
    torch.save(inputs, tmp_path / "inputs.pt")
    torch.save(module(*inputs), tmp_path / "want.pt")
    files = [str(tmp_path / name) for name in ("program.pt2", "inputs.pt", "want.pt")]
    run = subprocess.run([sys.executable, "-c", LOAD, *files], capture_output=True, text=True, check=False)
    assert run.stdout == "equal\n", run.stderr


ROPES = {
    "plain": lambda: make(),
    "scaling": lambda: make(scaling=pyrope.LongRoPE([1.0] * 32, [2.5] * 32, 4.0, 4096), num_threads=3, layout="gptj"),
    "frequencies": lambda: make(inv_freq=[0.1 / (i + 1) for i in range(32)]),
    "stages": lambda: make(
        fused=True,
        norm=pyrope.RMSNorm(weight_dtype=torch.float32, across_heads=True),
        xpos=pyrope.XPos(),
        cache=pyrope.PagedCache(16, 4, k_strides=(4096, 128, 64)),
        k_out_dtype="int8",
        k_scale_kind="head",
    ),
    "sections": lambda: make(fused=True, sections=(16, 8, 8)),
    "cos_sin": lambda: make(fused=True, angle="cos_sin"),
}


@pytest.mark.parametrize("name", ROPES)
def test_specs(name):
    """The text of a Rope makes an equal one."""
    rope = ROPES[name]()
    again = rope_of(spec_of(rope))
    assert again is not rope and spec_of(again) == spec_of(rope)
    assert repr(again) == repr(rope).replace("torch.float32", "'float32'")
    assert list(again.inv_freq) == list(rope.inv_freq)
