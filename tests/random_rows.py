"""Random calls of the whole pipeline and of rotate_cache: all of their options (kit/stages.py, kit/cached.py), of
random shapes.

Each is compared with the float64 reference and, where there is a device or the kernels were compiled for the CPU, bit
by bit between the backends. Prints the number of each that fails, how many there were, and ends with 1 if any failed.

    python tests/random_rows.py [--seed 0] [--first 0] [--count 1000] [--device cpu]
"""

import argparse
import sys
import time
import traceback

import numpy as np

import pyrope
from kit import cached, cases, stages
from kit.pairwise import broken

SMALL_PAGES = (1, 2, 3, 5, 8, 16, 17)
KINDS = [*3 * [(stages, cases.Case)], (cached, cached.CacheCase)]


def choose(values, rng):
    return values[rng.integers(len(values))]


def draw_shapes(row, rng):
    """The row with shapes of its own."""
    d = int(choose([16 * rng.integers(1, 17), 2 * rng.integers(1, 129), rng.integers(2, 257)], rng))
    part, rotary = None, "partial" if d % 2 and row["rotary"] == "full" else row["rotary"]
    if rotary == "partial":
        unit = choose([n for n in (2, 8, 32) if n <= d], rng)
        width = unit * int(rng.integers(1, d // unit + 1))
        step = 1 if unit == 2 else unit
        part = width, int(rng.integers(0, (d - width) // step + 1)) * step
    page_size, tokens = int(choose(SMALL_PAGES, rng)), int(choose([rng.integers(1, 9), rng.integers(1, 65)], rng))
    num_pages = max(9, -(-tokens // page_size)) + int(rng.integers(4))
    if row["cache"] not in ("none", "slots32", "slots64"):  # requests have 9 of the pages
        tokens = min(tokens, 9 * page_size)
    return row | {
        "head_dim": d,
        "rotary": rotary,
        "part": part,
        "heads": tuple(int(n) for n in rng.integers(1, (8, 5))),
        "tokens": tokens,
        "pages": (num_pages, page_size),
    }


def is_refused(row, rules):
    """Whether a rule breaks, of which those of head_dim are of what divides it; or there are too few pairs."""
    d = row["head_dim"]
    alike = 64 if d % 32 == 0 else 80 if d % 16 == 0 else 20
    pairs = (row["part"][0] if row["part"] else d) // 2
    several = row["positions"] in cases.SECTIONS and row["rotary"] != "none"
    whole = pairs % 2 == 0 or pairs % 3 == 0 or row["positions"] not in cases.BLOCKS
    return broken(row | {"head_dim": alike}, rules) or (several and not (pairs > 1 and whole))


def draw(rng):
    """A random call that no rule refuses."""
    while True:
        options, make = choose(KINDS, rng)
        row = draw_shapes({name: choose(values, rng) for name, values in options.FACTORS.items()}, rng)
        if not is_refused(row, options.RULES):
            return make, row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, usual in (("seed", 0), ("first", 0), ("count", 1000)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--device", default="cuda" if pyrope.device_count() else "cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    failed, began = 0, time.time()
    for number in range(options.first, options.first + options.count):
        rng = np.random.default_rng((options.seed, number))
        make, row = draw(rng)
        try:
            make(row, rng).run(options.device)
        except Exception:
            failed += 1
            print(f"FAILED: --seed {options.seed} --first {number} --count 1: {make.__name__} {row}", flush=True)
            traceback.print_exc(limit=-3 if options.count > 1 else None)
    print(f"{options.count} calls on {options.device} in {time.time() - began:.0f} s, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
