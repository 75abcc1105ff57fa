"""The Rope itself: its properties, its life, its use from many threads."""

import copy
import pickle
import threading

import numpy as np
import pytest

import pyrope
from kit.blocks import call, equal, normal_block
from kit.refusals import refused
from kit.ropes import DIM, Q_HEADS, make


def test_properties():
    rope = pyrope.Rope(
        96,
        4,
        2,
        rotary_dim=64,
        rotary_offset=16,
        theta=5e5,
        scaling=pyrope.Llama3(),
        layout="gptj",
        dtype="float16",
        angle="fp32",
        device="cpu",
        position_dtype="int32",
        attention_factor=1.5,
    )
    values = {
        "head_dim": 96,
        "num_q_heads": 4,
        "num_k_heads": 2,
        "rotary_dim": 64,
        "rotary_offset": 16,
        "theta": 5e5,
        "scaling": pyrope.Llama3(),
        "layout": "gptj",
        "dtype": "float16",
        "angle": "fp32",
        "device": "cpu",
    }
    for name, value in values.items():
        assert getattr(rope, name) == value and type(getattr(rope, name)) is type(value)
        assert f"{name}={value!r}" in repr(rope)
    assert (rope.position_dtype, rope.attention_factor) == ("int32", 1.5)
    assert repr(rope).startswith("Rope(head_dim=96, ")


def test_inv_freq():
    rope = make()
    assert rope.inv_freq.dtype == np.float64 and rope.inv_freq.shape == (32,) and rope.inv_freq[0] == 1
    rope.inv_freq[:] = 0  # a copy
    assert rope.inv_freq[0] == 1 and rope.attention_factor == 1.0 and rope.theta == 1e4 and rope.scaling is None
    values = np.linspace(-2, 1e9, 32)
    for given in (values, list(values), tuple(values)):
        custom = make(inv_freq=given)
        np.testing.assert_array_equal(custom.inv_freq, values)
        assert custom.theta is None and "inv_freq=..." in repr(custom)


@pytest.mark.parametrize("name", ["head_dim", "theta", "layout", "inv_freq", "attention_factor", "scaling", "new"])
def test_immutable(name):
    rope = make()
    with pytest.raises(AttributeError):
        setattr(rope, name, 1)
    with pytest.raises(AttributeError):
        delattr(rope, name)


def test_initialised_once():
    rope = make()
    before = repr(rope)
    with pytest.raises(pyrope.RopeError, match="immutable"):
        rope.__init__(32, 1, 1)
    assert repr(rope) == before


def test_refused_by_its_constructor(rng):
    """What __init__ refused cannot be used, and may be initialised after all."""
    rope = pyrope.Rope.__new__(pyrope.Rope)
    q = rng.standard_normal((3, 1, 32)).astype(np.float32)
    before, want = q.copy(), q.copy()
    options = {"dtype": "float32", "device": "cpu"}
    for wrong in ({"inv_freq": [1.0] * 15}, {"attention_factor": -1}):
        with pytest.raises(ValueError):
            rope.__init__(32, 1, 0, **options, **wrong)
        with pytest.raises(pyrope.RopeError, match="never initialised"):
            rope.apply(q, offset=5)
        assert equal(q, before)
    rope.__init__(32, 1, 0, **options)
    rope.apply(q, offset=5)
    pyrope.Rope(32, 1, 0, **options).apply(want, offset=5)
    assert equal(q, want)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"theta": 5e5, "scaling": pyrope.Llama3(factor=4.0), "dtype": "bfloat16", "layout": "gptj", "num_threads": 3},
        {"scaling": pyrope.Linear(2.0), "attention_factor": 1.25, "rotary_dim": 32, "rotary_offset": 8},
        {"inv_freq": np.linspace(-1.0, 0.1, 32), "angle": "fp32", "position_dtype": "int32"},
    ],
)
@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda rope: pickle.loads(pickle.dumps(rope))])
def test_pickles_and_copies(remake, options, rng):
    rope = make(**options)
    again = remake(rope)
    assert again == rope and hash(again) == hash(rope) and repr(again) == repr(rope)
    assert again.attention_factor == rope.attention_factor and (again.inv_freq == rope.inv_freq).all()
    operands = {"q": normal_block(rng, rope.dtype, (3, Q_HEADS, DIM)), "offset": 5}
    assert equal(call(again, operands)["q"], call(rope, operands)["q"])


def test_equality():
    """By parameters, whatever way they were given; of one class."""
    rope, other = make(scaling=pyrope.Llama3(factor=4.0)), make(scaling=pyrope.Llama3(4))
    assert rope == other and hash(rope) == hash(other) and len({rope, other, make()}) == 2
    changes = ({"theta": 5e5}, {"num_threads": 2}, {"rotary_dim": 32}, {"num_k_heads": 7}, {"layout": "gptj"})
    assert len({make(), *(make(**change) for change in changes)}) == len(changes) + 1
    assert make() != make(fused=True) and make() != "rope" and make(fused=True) == make(fused=True)
    cache = {"fused": True, "cache": pyrope.PagedCache(16, 4)}
    assert make(**cache) == make(**cache) != make(fused=True, cache=pyrope.PagedCache(16, 5))


@pytest.mark.gpu
def test_numbered_device(rng):
    """The current one serves; another one is refused at the call, which writes nothing."""
    x = normal_block(rng, "float32", (3, Q_HEADS, DIM))
    want = call(make("cuda"), {"q": x})
    rope = make("cuda:0")
    assert rope.device == "cuda" and pickle.loads(pickle.dumps(rope)) == rope != make("cuda")
    assert equal(call(rope, {"q": x})["q"], want["q"])
    call(make("cuda:63"), {"q": x}, refused="device: cuda:63, but the current CUDA device is 0", error=ValueError)
    with refused(ValueError, "device: cuda:63, but the current CUDA device is 0"):
        make("cuda:63").build_cos_sin(1 << 20, None, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"enable_pdl": True}, {"enable_pdl": True, "positions_ready": True}])
def test_pickles_on_cuda(options):
    keywords = pickle.loads(pickle.dumps(make("cuda", **options))).__reduce__()[0].keywords
    flags = {name: keywords[name] for name in ("enable_pdl", "positions_ready")}
    assert flags == {"enable_pdl": False, "positions_ready": False} | options


def test_threads(rng):
    """One Rope in many threads at once, some of which call wrongly: each gets its own result and its own error."""
    rope = make(dtype="bfloat16", num_threads=2)
    calls = [{"q": normal_block(rng, "bfloat16", (200 + i, Q_HEADS, DIM)), "offset": 1000 * i} for i in range(8)]
    want = [call(rope, operands)["q"] for operands in calls]
    faults = []

    def work(i):
        try:
            for _ in range(20):
                assert equal(call(rope, calls[i])["q"], want[i])
                with refused(ValueError, f"num_tokens: {2**31 + i}, "):
                    rope.apply(1 << 16, None, 2**31 + i)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert faults == []
