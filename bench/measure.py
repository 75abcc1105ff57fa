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


def leaves_no_trace(case: Case, inputs: Inputs, sampler: Callable) -> bool:
    """Whether a sample changes nothing in the last slot, as if its work were not on the device's stream."""
    name = list(OPS[case.op].results(case).values())[-1]
    last = inputs.slots[-1][name]
    row = inputs.rows_of(name, np.array([case.tokens - 1]))
    size = last.nbytes // last.shape[0]
    inputs.device.write(last.ptr + int(row[0]) * size, np.full(size, MARK, np.uint8))
    sampler()
    return last.rows(row).tobytes() == bytes([MARK]) * size


def samplers(case: Case, present: list[Peer], inputs: Inputs, failed: dict, tick: Callable) -> tuple[dict, dict]:
    """({name: result so far}, {(name, "cold" | "warm" | "host"): sampler}) of the roofs and every implementation."""
    device = inputs.device
    calls = plan(device.footprint, inputs.slot_bytes, device.fewest_calls)[1]
    kinds = ("cold", "warm", "host") if inputs.slot_bytes <= device.cache_bytes else ("cold", "host")
    results, found = {}, {}

    def make(slot_calls: list, kinds: tuple, host: Callable, host_calls: int | None = None) -> dict[str, Callable]:
        order = [slot_calls[i % len(slot_calls)] for i in range(calls)]
        return device.samplers(kinds, order, host, host_calls or device.host_calls)

    for name, (what, slot_calls) in roofs(case, inputs).items():
        results[name] = {"status": "ok", "what": what}
        made = make(slot_calls, kinds if device.kind == "cuda" else kinds[:-1], slot_calls[0])
        found |= {(name, kind): sampler for kind, sampler in made.items()}
    for peer in present:
        if case.op not in peer.ops:
            continue
        tick(f"{peer.name}: {case}")
        slot_calls, results[peer.name] = bind(peer, case, inputs, failed)
        if not slot_calls:
            continue
        try:
            host = device.host_call(peer, case, inputs, slot_calls[0])
            made = make(slot_calls, ("host",) if peer.host_only else kinds, host, peer.host_calls)
            writes = "cold" in made and not results[peer.name]["new_tensors"]
            if writes and leaves_no_trace(case, inputs, made["cold"]):
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
    slots = plan(device.footprint, Inputs.bytes_of(case), device.fewest_calls)[0]
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
