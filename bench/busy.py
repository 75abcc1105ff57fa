"""One case on a CPU whose other threads are busy: every implementation on an idle machine and beside a process that
wants a processor of its own, in turns. Each call is timed by itself, for it is the slow ones that count.
"""

import dataclasses
import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cases import OPS, Case
from measure import bind, roofs
from memory import Inputs
from peers import Peer
from report import BUSY_QUANTILES, add_rates
from timing import issue, quantiles

ROUNDS = 30
WINDOW = 0.1  # seconds of calls
PAUSE = 1e-3  # seconds of other work between two calls, as an engine has it
SETTLE = 0.03  # seconds that the system takes to place the other process


@contextmanager
def busy_process() -> Iterator[Callable[[bool], None]]:
    """A function that sets a process going which never sleeps, or stops it; at first it is stopped."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        process.send_signal(signal.SIGSTOP)

        def run(on: bool) -> None:
            process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
            time.sleep(SETTLE)

        try:
            yield run
        finally:
            process.kill()


def window(call: Callable, synchronize: Callable) -> list[float]:
    """Microseconds of each call that starts within the window; the thread is busy in between."""
    samples, end = [], time.perf_counter() + WINDOW
    while time.perf_counter() < end:
        samples.append(issue([call], synchronize))
        after = time.perf_counter() + PAUSE
        while time.perf_counter() < after:
            pass
    return samples


def sample(device, calls: dict[str, Callable], tick: Callable) -> dict[tuple[str, str], list[float]]:
    """Samples by implementation and "idle" or "busy"."""
    samples: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in calls for kind in ("idle", "busy")}
    with busy_process() as run:
        for _ in range(ROUNDS):
            for kind in ("idle", "busy"):
                run(kind == "busy")
                for name, call in calls.items():
                    samples[name, kind] += window(call, device.synchronize)
            tick()
    return samples


def measure(device, case: Case, present: list[Peer], failed: dict, seed: int, tick: Callable) -> dict:
    """Everything about one case, as it is recorded; arguments as those of measure.measure()."""
    op = OPS[case.op]
    inputs = Inputs(device, case, 2, seed)
    results, calls = {}, {}
    for name, (what, slot_calls) in roofs(case, inputs).items():
        results[name], calls[name] = {"status": "ok", "what": what}, slot_calls[0]
    for peer in present:
        if case.op in peer.ops and not peer.host_only:
            tick(f"{peer.name}: {case}")
            slot_calls, results[peer.name] = bind(peer, case, inputs, failed)
            if slot_calls:
                calls[peer.name] = slot_calls[0]
    inputs.fill(2)
    for (name, kind), found in sample(device, calls, lambda: tick(str(case), 1 / ROUNDS)).items():
        results[name][kind] = quantiles(found, BUSY_QUANTILES)
    calls.clear()
    del inputs
    gc.collect()
    device.free()
    found = {"title": str(case), **dataclasses.asdict(case), "tokens": case.tokens, "ideal_bytes": op.ideal_bytes(case),
             "touched_bytes": op.touched_bytes(case), "slots": 1, "results": results}  # fmt: skip
    add_rates(found)
    return found
