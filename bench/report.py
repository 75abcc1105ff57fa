"""The table that is printed and the JSON file."""

import json
import pathlib

NOTES = """\
GB/s: each rotated element (out of place, or with stages: each element) once read, each result once written; positions,
tables and weights not counted.
ceiling: a sign flip of one flat buffer of the bytes that must move, timed likewise; copy: a copy of those bytes.
of ceiling: the ceiling's time over the time shown. x: the time over that of pyrope; both with cold caches.
cold: caches cold, the median and the 20 % and 80 % quantiles. warm: the same buffer over and over, where it fits.
host: time to issue one eager call, launch included (on a CPU: the whole call, on no tokens)."""


def _us(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _row(name: str, entry: dict) -> list[str]:
    if entry["status"] != "ok":
        return [name, f"{entry['status']}: {entry['reason']}"]
    cold, warm, host = (entry.get(kind) for kind in ("cold", "warm", "host"))
    return [
        name,
        _us(cold and cold["q50"]),
        f"{_us(cold['q20'])}-{_us(cold['q80'])}" if cold else "-",
        f"{entry['gbps']:.0f}" if "gbps" in entry else "-",
        f"{entry['percent']:.1f}%" if "percent" in entry else "-",
        f"{entry['ratio']:.2f}" if "ratio" in entry else "-",
        _us(warm and warm["q50"]),
        _us(host and host["q50"]),
    ]


HEADER = ["", "cold us", "20%-80%", "GB/s", "of ceiling", "x", "warm us", "host us"]


def table(record: dict) -> str:
    """All cases of a run as text."""
    device, clocks = record["device"], ""
    if "clocks.sm" in device:
        after = record.get("device_after", device)
        clocks = f", SM {after['clocks.sm']} MHz, memory {after['clocks.mem']} MHz"
    roofs = {case["results"]["ceiling"]["what"] for case in record["cases"]}
    lines = [f"{device['name']}{clocks}; pyrope {record['versions']['pyrope']}; ceiling by {', '.join(sorted(roofs))}"]
    for case in record["cases"]:
        lines += ["", f"{case['title']}: {case['ideal_bytes'] / 1e6:.3g} MB"]
        rows = [HEADER, *(_row(name, entry) for name, entry in case["results"].items())]
        full = [row for row in rows if len(row) == len(HEADER)]
        widths = [max(len(row[i]) for row in full) for i in range(len(HEADER))]
        widths[0] = max(len(row[0]) for row in rows)
        for row in rows:
            cells = [f"{row[0]:<{widths[0]}}"]
            cells += [f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)] if row in full else row[1:]
            lines.append("  " + "  ".join(cells))
    lines += ["", NOTES]
    missing = [f"  {name}: {peer['reason']}" for name, peer in record["peers"].items() if peer["status"] == "absent"]
    if missing:
        lines += ["", "absent:", *missing]
    return "\n".join(lines).lstrip("\n")


def save(record: dict, path: pathlib.Path) -> None:
    """Write a run as JSON."""
    path.write_text(json.dumps(record, indent=1) + "\n")
