"""One case: bind every implementation, check its result, then sample all of them in turns."""

import dataclasses
import gc
from collections.abc import Callable

import numpy as np
from cases import OPS, Case
from memory import THETA, Inputs
from peers import PEERS, Peer, brief
from reference import WrongResultError, check
from report import add_rates
from step import SLOTS, Step
from timing import TURNS, interleave, plan, quantiles

CHECKED_TOKENS = 128  # of a case, evenly spread
MARK = 0x11  # of every dtype a small number, and of no result that is rotated


def verify(peer: Peer, case: Case, inputs: Inputs, call: Callable) -> dict:
    """Run the call once on fresh data and check it.

    Returns {"error": the largest error as a fraction of its tolerance, "new_tensors": whether it returns such}.
    """
    inputs.fill()
    slot = inputs.slots[0]
    checked = dataclasses.replace(case, op=peer.checked_as.get(case.op, case.op))
    op = OPS[checked.op]
    results = op.results(checked)
    tokens = np.unique(np.linspace(0, case.tokens - 1, CHECKED_TOKENS).astype(int))
    before = {name: slot[name].rows(tokens) for name in op.inputs if name in slot}
    kept = untouched(inputs, slot)
    inputs.device.synchronize()
    returned = call()
    inputs.device.synchronize()
    if returned is None:
        after = {name: slot[at].rows(inputs.rows_of(at, tokens)) for name, at in results.items()}
    else:
        after = {name: host_rows(x, tokens, before[name]) for name, x in zip(results, returned, strict=True)}
    if untouched(inputs, slot) != kept:
        raise WrongResultError("entries of the cache that belong to no token changed")
    weights, allowed = inputs.weights if op.norm else {}, peer.angle(int(inputs.positions.max()))
    error = check(checked, before, after, inputs.turns(checked, tokens), weights, THETA, allowed)
    return {"error": error, "new_tensors": returned is not None}


def untouched(inputs: Inputs, slot: dict) -> list[bytes]:
    """Some entries of the caches that no token is appended to."""
    caches = [array for name, array in slot.items() if name.endswith("_cache")]
    if not caches:
        return []
    spare = np.setdiff1d(np.arange(caches[0].shape[0]), inputs.entries)
    spare = spare[:: max(1, len(spare) // CHECKED_TOKENS)]
    return [cache.rows(spare).tobytes() for cache in caches]


def host_rows(x, tokens: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Rows of a torch tensor as an array of the dtype of `like`."""
    import torch

    words = {2: torch.int16, 4: torch.int32}[x.element_size()]
    rows = x[torch.as_tensor(tokens, device=x.device)].contiguous().view(words).cpu().numpy()
    return rows.view(like.dtype).reshape(like.shape)


def roofs(case: Case, inputs: Inputs) -> dict[str, tuple[str, list]]:
    """{"ceiling", "copy": (what it is, one call a slot)} on the bytes that the case must move."""
    device, nbytes = inputs.device, OPS[case.op].touched_bytes(case)
    starts = [inputs.base + i * inputs.slot_bytes for i in range(len(inputs.slots))]
    apart = not case.in_place and OPS[case.op].same_size
    target = [start + inputs.input_bytes for start in starts] if apart else starts
    other = target if apart else starts[1:] + starts[:1]
    copies = [device.copy(s, t, nbytes) for s, t in zip(starts, other, strict=True)]
    flips = [device.elementwise(s, t, nbytes, case.itemsize) for s, t in zip(starts, target, strict=True)]
    found = {"copy": (copies[0][0], [call for _, call in copies])}
    if flips[0] is None:
        return {"ceiling": (f"{copies[0][0]} (no torch or CuPy)", found["copy"][1]), **found}
    return {"ceiling": (flips[0][0], [call for _, call in flips]), **found}


def bind(peer: Peer, case: Case, inputs: Inputs, failed: dict) -> tuple[list, dict]:
    """(a call for each slot, {"status": ...}): the calls of a peer whose result is right, else none and why."""
    reason = peer.unable(case) or next((failed[key] for key in peer.builds(case) if key in failed), None)
    if reason:
        return [], {"status": "n/a", "reason": reason}
    try:
        first = peer.bind(case, inputs.slots[0], inputs)
        found = {"status": "ok", **verify(peer, case, inputs, first)}
        return [first, *(peer.bind(case, slot, inputs) for slot in inputs.slots[1:])], found
    except WrongResultError as wrong:
        found = {"status": "wrong", "reason": str(wrong)}
    except Exception as error:  # a peer may raise anything, and the others still have their results
        found = {"status": "failed", "reason": brief(error)}
    if peer is PEERS[0]:
        raise SystemExit(f"pyrope, {case}: {found['status']}: {found['reason']}; nothing was recorded")
    try:
        inputs.device.synchronize()
    except Exception as error:
        raise SystemExit(f"{peer.name} left the device unusable: {error}; leave it out with --peers ({case})") from None
    return [], found


def leaves_no_trace(case: Case, inputs: Inputs, sampler: Callable, without: Callable) -> bool:
    """Whether a sample changes nothing in the last slot, as if its work were not on the device's stream.

    without : what leaves it as a sample without the work does
    """
    name = list(OPS[case.op].results(case).values())[-1]
    last = inputs.slots[-1][name]
    row = inputs.rows_of(name, np.array([case.tokens - 1]))
    address, size = last.head(int(row[0]))
    inputs.device.write(address, np.full(size, MARK, np.uint8))
    without()
    before = last.rows(row).tobytes()
    sampler()
    return last.rows(row).tobytes() == before


class Alone:
    """The call in a chain of itself, with cold and with warm caches, and its cost to the host."""

    def __init__(self, inputs: Inputs):
        self._inputs, device = inputs, inputs.device
        self._calls = plan(device.footprint, inputs.slot_bytes, device.fewest_calls)[1]
        self._kinds = ("cold", "warm", "host") if inputs.slot_bytes <= device.cache_bytes else ("cold", "host")

    def roofs(self) -> dict[str, tuple[str, dict]]:
        """Of each of the roofs, what it is and its samplers by kind."""
        kinds = self._kinds if self._inputs.device.kind == "cuda" else self._kinds[:-1]
        return {name: (what, self._make(calls, kinds, calls[0]))
                for name, (what, calls) in roofs(self._inputs.case, self._inputs).items()}  # fmt: skip

    def samplers(self, peer: Peer, calls: list[Callable]) -> dict[str, Callable]:
        """Of one implementation, by kind; `calls` are those of each slot."""
        host = self._inputs.device.host_call(peer, self._inputs.case, self._inputs, calls[0])
        return self._make(calls, ("host",) if peer.host_only else self._kinds, host, peer.host_calls)

    def without(self) -> dict[str, Callable]:
        """The kinds whose work is checked to be there, and what leaves the memory as it is without that work."""
        return {"cold": lambda: None}

    def _make(self, calls: list, kinds: tuple, host: Callable, host_calls: int | None = None) -> dict[str, Callable]:
        order, device = [calls[i % len(calls)] for i in range(self._calls)], self._inputs.device
        return device.samplers(kinds, order, host, host_calls or device.host_calls)


def samplers(case: Case, present: list[Peer], inputs: Inputs, failed: dict, tick: Callable) -> tuple[dict, dict]:
    """({name: result so far}, {(name, kind): sampler}) of the roofs and every implementation."""
    place = Step(inputs) if case.step else Alone(inputs)
    results, found = {}, {}
    for name, (what, made) in place.roofs().items():
        results[name] = {"status": "ok", "what": what}
        found |= {(name, kind): sampler for kind, sampler in made.items()}
    for peer in present:
        if not peer.measured(case):
            continue
        tick(f"{peer.name}: {case}")
        slot_calls, results[peer.name] = bind(peer, case, inputs, failed)
        if not slot_calls:
            continue
        try:
            made = place.samplers(peer, slot_calls)
            checked = {} if results[peer.name]["new_tensors"] else place.without()
            for kind, without in checked.items():
                if kind in made and leaves_no_trace(case, inputs, made[kind], without):
                    raise RuntimeError("what was to be timed changes nothing")
        except Exception as error:
            if peer is PEERS[0]:
                raise
            results[peer.name] = {"status": "failed", "reason": brief(error)}
        else:
            found |= {(peer.name, kind): sampler for kind, sampler in made.items()}
    return results, found


def measure(device, case: Case, present: list[Peer], failed: dict, seed: int, tick: Callable) -> dict:
    """Everything about one case, as it is recorded.

    present : implementations that this machine has
    failed : why by key of those things that could not be built
    tick : called with a text and a part of the case that has been done
    """
    op = OPS[case.op]
    slots = SLOTS if case.step else plan(device.footprint, Inputs.bytes_of(case), device.fewest_calls)[0]
    inputs = Inputs(device, case, slots, seed)
    results, sources = samplers(case, present, inputs, failed, tick)
    inputs.fill(slots)
    for (name, kind), samples in interleave(sources, lambda: tick(str(case), 1 / TURNS)).items():
        results[name][kind] = quantiles(samples)
    sources.clear()
    del inputs
    gc.collect()
    device.free()

    found = {"title": str(case), **dataclasses.asdict(case), "tokens": case.tokens, "ideal_bytes": op.ideal_bytes(case),
             "touched_bytes": op.touched_bytes(case), "slots": slots, "results": results}  # fmt: skip
    add_rates(found)
    return found
