"""bench/ in a step: what surrounds the call, what a sample is, and that calls work on packed buffers."""

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("modules_of_bench")


class Surroundings:
    """What writes and reads the packed buffers of some inputs, on the host."""

    what = "copies"

    def __init__(self, inputs, happened):
        self.inputs, self.happened = inputs, happened
        rng = np.random.default_rng(3)
        self.values = [{name: rng.standard_normal(array.shape, np.float32).astype(array.numpy.dtype)
                        for name, array in slot.items()} for slot in inputs.buffers]  # fmt: skip

    def write(self, layer, slot):
        self.happened.append(("write", layer, slot))
        for name, values in self.values[slot].items():
            self.inputs.buffers[slot][name].numpy[...] = values

    def read(self, slot):
        self.happened.append(("read", slot))


def host_device():
    """The CPU as a device of steps, on which a call takes 5 microseconds and anything else 2."""
    from cpu import Cpu

    class Device(Cpu):
        def __init__(self):
            super().__init__(1)
            self.happened = []

        def neighbours(self, inputs):
            floor = "nothing", lambda: self.happened.append(("floor",))
            return {"gemm": Surroundings(inputs, self.happened), "early": Surroundings(inputs, self.happened)}, floor

        def timed(self, body):
            def sample():
                self.happened.clear()
                body()
                return sum(2.0 if what in ("write", "read") else 5.0 for what, *_ in self.happened)

            return sample

    return Device()


def in_a_step(name):
    """A small case of that operation."""
    import cases

    return cases.Case(**cases.OPS[name].usual | {"op": name, "step": True, "batch_size": 3})


def test_a_sample_is_what_the_call_adds_to_a_layer():
    import step
    from memory import Inputs

    device = host_device()
    layers = step.Step(Inputs(device, in_a_step("apply"), step.SLOTS, 0))
    calls = [lambda slot=slot: device.happened.append(("call", slot)) for slot in range(step.SLOTS)]
    assert {kind: sample() for kind, sample in layers.samplers(None, calls).items()} == {"gemm": 5.0, "early": 5.0}
    assert device.happened[3:9] == [
        ("write", 1, 1),
        ("call", 1),
        ("read", 1),
        ("write", 2, 2),
        ("call", 2),
        ("read", 2),
    ]
    assert device.happened[-1] == ("read", 3) and len(device.happened) == 3 * step.LAYERS
    (_, layer), (_, floor) = layers.roofs().values()
    assert layer["gemm"]() == 4.0 and floor["early"]() == 5.0


OPERATIONS = ("apply", "mrope", "append", "append-fp8", "norm-append", "mla-fp8")


@pytest.mark.parametrize("name", OPERATIONS)
def test_calls_in_a_step_work_on_packed_buffers(name, monkeypatch):
    """Of pyrope, with slots, pages and tables; each is checked as in any run."""
    import measure
    import peers

    case, device = in_a_step(name), host_device()
    once = peers.Peer("once", "", {name: lambda *where: once_only(peers.PYROPE[name](*where))}, devices=peers.BOTH)
    forms = [peer for peer in peers.PEERS if peer.name in ("pyrope", "pyrope-table", "pyrope-pages")]
    monkeypatch.setattr(measure, "interleave", lambda samplers, tick: {key: [f()] for key, f in samplers.items()})
    found = measure.measure(device, case, [*forms, once], {}, 0, lambda *_: None)["results"]
    assert found["once"] == {"status": "failed", "reason": "RuntimeError: what was to be timed changes nothing"}
    assert set(found) == {"layer", "floor", "once"} | {peer.name for peer in forms if name in peer.ops}
    for peer in forms:
        if name in peer.ops:
            assert found[peer.name]["status"] == "ok" and {"gemm", "early"} <= set(found[peer.name])


def once_only(call):
    """A call that does something the first time only."""
    calls = [call]
    return lambda: calls.pop()() if calls else None


@pytest.mark.parametrize("name", OPERATIONS)
def test_packed_buffers_hold_the_inputs_side_by_side(name):
    """No element belongs to two of them, and one of the buffers is read behind the call."""
    from memory import Inputs
    from packed import buffers

    case = in_a_step(name)
    inputs = Inputs(host_device(), case, 2, 0)
    slot, packed = inputs.slots[1], [array.numpy.view("u2") for array in inputs.buffers[1].values()]
    for words in packed:
        words[...] = 0
    views = [array.numpy.view("u2") for array in slot.values() if array.packed]
    for view in views:
        view += 1
    assert {int(words.max()) for words in packed} == {1}
    assert sum(int(words.sum()) for words in packed) == sum(view.size for view in views)
    assert sum(buffer.read > 0 for buffer in buffers(case).values()) == 1


def test_small_kernels_compile():
    neighbours = pytest.importorskip("neighbours", exc_type=ImportError)
    try:
        cubin = neighbours.compiled("sm_90")
    except Exception as error:
        if "NotFound" in type(error).__name__:
            pytest.skip(f"no NVRTC: {error}")
        raise
    assert cubin.startswith(b"\x7fELF") and all(name.encode() in cubin for name in neighbours.PARAMETERS)
    config = neighbours.launch_config(0, 7, dependent=True)
    assert (config.gridDimX, config.blockDimX, config.numAttrs) == (7, neighbours.BLOCK, 1)
    assert config.attrs[0].value.programmaticStreamSerializationAllowed == 1
    assert neighbours.launch_config(0, 7, dependent=False).numAttrs == 0
