"""How samples are taken, on either device: rotation plan, interleaving, quantiles.

A device (gpu.Gpu or cpu.Cpu) gives, for each list of calls, samplers: functions without arguments that return one
sample in microseconds per call. All samplers of one case are interleaved, so that a change of clocks meets all of them.
"""

import time
from collections.abc import Callable

import numpy as np

QUANTILES = ("q20", "q50", "q80")
ROUNDS = 25
WARM_UP = 3
TURNS = WARM_UP + ROUNDS
MAX_SECONDS = 1.5  # of one sampler; it then stops as soon as it has FEWEST samples
FEWEST = 5


def plan(footprint: int, call_bytes: int, fewest_calls: int) -> tuple[int, int]:
    """(slots, calls): how many sets of tensors to rotate through, and calls per sample.

    Small calls use each slot once, and the device flushes its cache before every sample; large ones pass through more
    memory than the cache holds before they meet a slot again.
    """
    slots = int(np.clip(-(-footprint // max(call_bytes, 1)), 2, 128))
    return slots, max(slots, fewest_calls)


def interleave(samplers: dict[object, Callable[[], float]], tick: Callable[[], None]) -> dict[object, list[float]]:
    """Samples of each sampler, taken in turns; `tick` is called after every turn."""
    samples: dict[object, list[float]] = {key: [] for key in samplers}
    spent = dict.fromkeys(samplers, 0.0)
    for turn in range(TURNS):
        for key, sampler in samplers.items():
            if spent[key] > MAX_SECONDS and (turn < WARM_UP or len(samples[key]) >= FEWEST):
                continue
            start = time.perf_counter()
            try:
                value = sampler()
            except Exception as error:
                error.add_note(f"while sampling {key}")
                raise
            spent[key] += time.perf_counter() - start
            if turn >= WARM_UP:
                samples[key].append(value)
        tick()
    return samples


def quantiles(samples: list[float], names: tuple[str, ...] = QUANTILES) -> dict[str, float | int]:
    """{"q20", "q50", "q80": microseconds per call, "samples": how many}."""
    values = np.quantile(samples, [int(name[1:]) / 100 for name in names])
    return {**dict(zip(names, map(float, values), strict=True)), "samples": len(samples)}


def issue(calls: list[Callable], synchronize: Callable[[], None]) -> float:
    """Host microseconds to issue each of the calls, with an empty queue before the first."""
    synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    spent = time.perf_counter() - start
    synchronize()
    return 1e6 * spent / len(calls)
