#!/usr/bin/env python3
"""Say what got faster or slower between two runs of run.py, beyond their noise.

A time differs beyond noise where the 20 % to 80 % intervals of the two runs do not meet and the medians differ by more
than --least. The ceiling, in a step the layer and the floor, are compared as well: where they moved, the machine did.
Exit status 1: something got slower.
"""

import argparse
import pathlib
import sys

import report
from cases import FIELDS
from report import KINDS, ROOFS


def verdict(a: dict, b: dict, least: float) -> str | None:
    """ "faster", "slower", or None if b is no different from a."""
    if abs(b["q50"] / a["q50"] - 1) <= least:
        return None
    if b["q80"] < a["q20"]:
        return "faster"
    return "slower" if b["q20"] > a["q80"] else None


def load(path: pathlib.Path) -> tuple[dict, dict]:
    """(the record, its cases by identity) of a file, or of the folder that --save-path made."""
    try:
        path = path / "results.json" if path.is_dir() else path
        record = report.load(path)
        return record, {tuple(case[field] for field in FIELDS): case for case in record["cases"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not the results of run.py: {error}") from None


def changes(a: dict, b: dict, name: str, least: float) -> list[tuple]:
    """(case title, kind, before, after, verdict) for each time of one implementation that both have."""
    found = []
    for key in a.keys() & b.keys():
        first, second = (cases[key]["results"].get(name, {}) for cases in (a, b))
        for kind in KINDS:
            if kind in first and kind in second:
                word = verdict(first[kind], second[kind], least)
                found.append((a[key]["title"], kind, first[kind], second[kind], word))
    return sorted(found, key=lambda change: (change[1], change[3]["q50"] / change[2]["q50"]))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("before", type=pathlib.Path, help="results.json, or the folder that run.py --save-path made")
    p.add_argument("after", type=pathlib.Path)
    p.add_argument(
        "--names", default="pyrope,ceiling,layer,floor", help="implementations to compare (default: %(default)s)"
    )
    p.add_argument("--least", type=float, default=0.02, help="smallest change that counts (default: %(default)s)")
    args = p.parse_args()
    try:
        (before, a), (after, b) = load(args.before), load(args.after)
    except ValueError as error:
        p.error(str(error))
    for path, record in ((args.before, before), (args.after, after)):
        device = record["device"]
        clocks = "".join(f", {device[f]} MHz {f}" for f in ("clocks.sm", "clocks.mem") if f in device)
        print(f"{path}: {record['date']}, commit {record['commit']}, {device['name']}{clocks}")
    for field in ("name", "threads"):
        x, y = (record["device"].get(field) for record in (before, after))
        if x != y:
            print(f"NOT COMPARABLE: the device's {field}: {x}, {y}")
    if not a.keys() & b.keys():
        print("no case is in both")
        return 2
    slower = False
    for name in args.names.split(","):
        found = changes(a, b, name, args.least)
        if not found and name in ROOFS:
            continue
        counts = {word: sum(change[4] == word for change in found) for word in ("faster", "slower", None)}
        print(f"\n{name}: {counts['faster']} faster, {counts['slower']} slower, {counts[None]} the same")
        for title, kind, x, y, word in found:
            if word:
                print(
                    f"  {word} {kind}: {x['q50']:.3g} ({x['q20']:.3g}-{x['q80']:.3g}) -> {y['q50']:.3g} "
                    f"({y['q20']:.3g}-{y['q80']:.3g}) us, {100 * (y['q50'] / x['q50'] - 1):+.1f} %: {title}"
                )
        slower |= bool(counts["slower"]) and name not in ROOFS
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
