"""The CPU: host memory, wall-clock timing, and loops over threads for the ceiling."""

import ctypes
import dataclasses
import os
import pathlib
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from timing import issue

SIGN = {4: np.uint32(0x80000000), 2: np.uint32(0x80008000)}  # sign bits of the elements in a uint32
CHUNK = 1 << 20  # bytes; a thread less pays off below
SAMPLE = 200e-6  # seconds: the least that a warm sample takes


class Cpu:
    """The processor, with `threads` threads for the ceiling (the process's own number if 0)."""

    kind = name = "cpu"
    stream = None
    torch = None
    host_calls = 200
    fewest_calls = 6  # in a sample

    def __init__(self, threads: int = 0):
        self.threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.threads)
        self._memory: list[np.ndarray] = []
        self.cache_bytes = last_level_cache()
        self.footprint = 2 * self.cache_bytes
        flush = self.allocate(self.footprint)
        self._flush, self._memory = self._memory, []
        self._evict = self.elementwise(flush, flush, self.footprint, 4)[1]

    # ---- memory

    def allocate(self, nbytes: int) -> int:
        self._memory.append(np.zeros(nbytes + 4096, np.uint8))
        return -(-self._memory[-1].ctypes.data // 4096) * 4096

    def free(self) -> None:
        """Free everything that was allocated."""
        self._memory.clear()

    def write(self, ptr: int, values: np.ndarray) -> None:
        ctypes.memmove(ptr, values.ctypes.data, values.nbytes)

    def read(self, ptr: int, nbytes: int) -> bytes:
        return ctypes.string_at(ptr, nbytes)

    def fill(self, ptr: int, nbytes: int, block: bytes) -> None:
        """The block over and over."""
        for done in range(0, nbytes, len(block)):
            ctypes.memmove(ptr + done, block, min(len(block), nbytes - done))

    def synchronize(self) -> None:
        pass

    # ---- what the hardware can do

    def elementwise(self, source: int, target: int, nbytes: int, itemsize: int) -> tuple[str, Callable]:
        """(what it is, call): flip the sign of every element of one flat buffer."""
        mask = SIGN[itemsize]
        return "numpy.bitwise_xor", self._split(source, target, nbytes, lambda x, y: np.bitwise_xor(x, mask, out=y))

    def copy(self, source: int, target: int, nbytes: int) -> tuple[str, Callable]:
        """(what it is, call): a copy that reads and writes `nbytes`."""
        return "numpy.copyto", self._split(source, target, nbytes, lambda x, y: np.copyto(y, x))

    def _split(self, source: int, target: int, nbytes: int, work: Callable) -> Callable:
        parts = min(self.threads, max(1, nbytes // CHUNK))
        raw = ctypes.c_uint32 * (nbytes // 4)
        words = [np.frombuffer(raw.from_address(ptr), np.uint32) for ptr in (source, target)]
        pairs = list(zip(*(np.array_split(w, parts) for w in words), strict=True))
        if parts == 1:
            return lambda: work(*pairs[0])
        return lambda: list(self._pool.map(work, *zip(*pairs, strict=True)))

    # ---- timing

    def samplers(self, kinds: tuple, calls: list[Callable], host: Callable, host_calls: int) -> dict[str, Callable]:
        """Samplers of one implementation: cold and warm caches, and host cost.

        calls : those of one sample; the first again and again where the cache is to be warm
        host, host_calls : the call whose cost is sampled, and how many in a sample
        """

        def cold() -> float:
            self._evict()
            return issue(calls, self.synchronize)

        def warm() -> float:
            once = issue(calls[:1], self.synchronize)
            return issue(calls[:1] * max(1, min(1000, int(1e6 * SAMPLE / once))), self.synchronize)

        make = {"cold": cold, "warm": warm, "host": lambda: issue([host] * host_calls, self.synchronize)}
        return {kind: make[kind] for kind in kinds}

    def no_step(self) -> str:
        """Why calls cannot be measured in a step here."""
        return "a step is measured on a CUDA device only"

    def host_call(self, peer, case, inputs, call: Callable) -> Callable:
        """What the host cost is measured with: the same call on no tokens, which leaves the cost of calling."""
        empty = type(inputs)(self, dataclasses.replace(case, seq_len=0), 1, 0)
        host = peer.bind(empty.case, empty.slots[0], empty)
        host()
        return host

    # ---- what it is

    def info(self) -> dict:
        """Name, threads, caches, and what else the machine does."""
        return {"kind": "cpu", "name": cpu_name(), "threads": self.threads,
                "last_level_cache_bytes": self.cache_bytes, "load_average": round(os.getloadavg()[0], 2)}  # fmt: skip


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not tell."""
    sizes = []
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=32 << 20)
