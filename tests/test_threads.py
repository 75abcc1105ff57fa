"""The CPU backend's threads: how many there are, calls at the same time, fork, unloading, and the end of the process.

Each program runs in a process of its own, whose threads are counted.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.library import INSTALLED


def processors():
    """What a call takes that may take all: those that it may run on, or what the control group's quota makes up."""
    count = len(os.sched_getaffinity(0))
    try:
        time, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return count
    return count if time == "max" else min(count, -(-int(time) // int(period)))


ALL = min(processors(), 8)  # threads of a call of LARGE tokens that may take all
pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")

PREFACE = """
import os, signal, sys, threading
import numpy as np, pyrope

LARGE, SMALL = 1024, 4  # tokens of 2 KiB: as much as eight threads share, 256 KiB each, and one thread's

def name(task):
    try:
        return open(f"/proc/self/task/{task}/comm").read().strip()
    except OSError:  # a thread that has just ended
        return None

def tasks():
    return [int(task) for task in os.listdir("/proc/self/task") if name(task) == "roperope"]

def started():
    return len(tasks())

def rotate(tokens=LARGE, num_threads=0, seed=1):
    rope = pyrope.Rope(64, 8, 0, dtype="float32", device="cpu", num_threads=num_threads)
    q = np.random.default_rng(seed).standard_normal((tokens, 8, 64), dtype=np.float32)
    rope.apply(q, offset=3)
    return q
"""


def run(program, **environment):
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment
    command = [sys.executable, "-c", PREFACE + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("call", "threads"),
    [
        ("rotate(SMALL, 4)", 0),
        ("rotate(LARGE, 1)", 0),
        ("rotate(LARGE, 2)", 1),
        ("rotate(LARGE, 5)", 4),
        ("rotate(LARGE, 3), rotate(LARGE, 2), rotate(LARGE, 3)", 2),
        ("rotate(LARGE, 100)", 7),
        ("rotate(LARGE - 1, 100)", 6),
        ("rotate(LARGE)", ALL - 1),
    ],
)
def test_threads_are_started_as_they_are_needed(call, threads):
    assert run(f"{call}; print(started())").split() == [str(threads)]


def test_all_means_the_processors_of_the_thread_that_calls():
    one = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); rotate(); print(started())"
    assert run(one).split() == ["0"]


def test_all_is_at_most_what_openmp_is_told():
    program = "rotate(); print(started()); rotate(num_threads=3); print(started())"
    assert run(program, OMP_NUM_THREADS="1").split() == ["0", "2"]
    assert run(program, OMP_NUM_THREADS="1,8").split() == ["0", "2"]
    assert run(program, OMP_NUM_THREADS="none").split() == [str(ALL - 1), str(max(ALL - 1, 2))]


def test_threads_of_a_pinned_caller_are_not_pinned():
    """They run where the first thread of the process may."""
    assert run("""
everywhere = os.sched_getaffinity(0)
def call():
    os.sched_setaffinity(threading.get_native_id(), {min(everywhere)})
    rotate(num_threads=3)
caller = threading.Thread(target=call)
caller.start()
caller.join()
print(started(), len(everywhere) == 1 or all(os.sched_getaffinity(t) - {min(everywhere)} for t in tasks()))
""").split() == ["2", "True"]


def test_signals_reach_the_program():
    """Our threads block them all, whichever mask the caller has."""
    run("""
rotate(num_threads=4)
assert started() == 3
for task in tasks():
    status = dict(line.split(":\\t") for line in open(f"/proc/self/task/{task}/status") if ":\\t" in line)
    assert int(status["SigBlk"], 16) | 1 << 8 | 1 << 18 | 3 << 31 == 2**64 - 1, status["SigBlk"]
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
""")


def test_calls_at_the_same_time():
    """More of them than the pool serves; each has the bits of a call alone.

    There are no more threads than the largest call wants, but while one call starts some, no other does.
    """
    program = """
want = [rotate(num_threads=1, seed=i) for i in range(12)]
wrong = []
def call(i):
    for turn in range(30):
        if not np.array_equal(rotate(num_threads=(0, 2, 5)[turn % 3], seed=i).view(np.uint32), want[i].view(np.uint32)):
            wrong.append((i, turn))
callers = [threading.Thread(target=call, args=(i,)) for i in range(len(want))]
for caller in callers: caller.start()
for caller in callers: caller.join()
assert not wrong and started() <= 4, (wrong, started())
rotate(num_threads=5)
assert started() == 4, started()
"""
    run(program, OMP_NUM_THREADS="4")  # for the calls that take all


# ---- fork


def test_a_forked_child_starts_threads_of_its_own():
    """Its parent's are not there, and what they were doing is not its concern."""
    run("""
want = rotate(num_threads=3)
stop = threading.Event()
def call():
    while not stop.is_set():
        rotate(num_threads=3)
callers = [threading.Thread(target=call) for _ in range(2)]
for caller in callers: caller.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        same = all(np.array_equal(rotate(num_threads=3), want) for _ in range(3))
        os._exit(0 if same and len(os.listdir("/proc/self/task")) == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for caller in callers: caller.join()
""")


# ---- the end


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "pass"])
def test_the_process_ends_while_threads_sleep_and_work(leave):
    run(f"""
def call():
    while True:
        rotate(LARGE, 3)
for _ in range(2): threading.Thread(target=call, daemon=True).start()
for _ in range(20): rotate(LARGE, 4)
{leave}
""")


UNLOAD = """
import ctypes, _ctypes, numpy as np, os, sys, time

class Frequencies(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("scaling", ctypes.c_int32), ("angle", ctypes.c_int32),
                ("rotary_dim", ctypes.c_int32), ("rest", ctypes.c_double * 16)]
class Rows(ctypes.Structure):  # rope_build_cos_sin_desc
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("backend", ctypes.c_int32),
                ("dtype", ctypes.c_int32), ("angle", ctypes.c_int32), ("rotary_dim", ctypes.c_int32),
                ("num_threads", ctypes.c_int32), ("position_dtype", ctypes.c_int32), ("frequencies", ctypes.c_void_p),
                ("attention_factor", ctypes.c_float), ("reserved", ctypes.c_int32), ("num_rows", ctypes.c_int64),
                ("cos", ctypes.c_void_p), ("rest", ctypes.c_int64 * 7)]

def build(library):
    words, table = (ctypes.c_uint64 * 64)(), np.zeros((20000, 128), np.float32)
    frequencies, rows = Frequencies(), Rows()
    frequencies.struct_size, rows.struct_size = ctypes.sizeof(Frequencies), ctypes.sizeof(Rows)  # of an older header
    frequencies.rotary_dim = rows.rotary_dim = 128
    rows.backend, rows.num_rows, rows.num_threads = 1, len(table), 4
    rows.frequencies, rows.cos = ctypes.addressof(words), table.ctypes.data
    assert library.rope_frequencies(ctypes.byref(frequencies), words, None, None) == 0
    assert library.rope_build_cos_sin(ctypes.byref(rows)) == 0
    return table

first = None
for _ in range(5):
    library = ctypes.CDLL(sys.argv[1])
    table = build(library)
    first = table if first is None else first
    assert (table == first).all() and table[3, 64] != 0
    _ctypes.dlclose(library._handle)
    time.sleep(0.002)  # threads that were awake go to sleep
assert len(os.listdir("/proc/self/task")) >= 4
"""


def test_the_library_is_closed_while_its_threads_sleep():
    """And opened again. It stays where it is, for its threads are in it."""
    command = [sys.executable, "-c", UNLOAD, INSTALLED / "libroperope.so"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
