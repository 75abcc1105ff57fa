"""The table that is printed and the JSON file."""

import itertools
import json
import pathlib

from cases import FIELDS, OPS, Case
from timing import QUANTILES

ALONE = """\
GB/s: each rotated element (out of place, or with stages: each element) once read, each result once written; positions,
tables and weights not counted.
ceiling: a sign flip of one flat buffer of the bytes that must move, timed likewise; copy: a copy of those bytes.
of ceiling: the ceiling's time over the time shown. x: the time over that of pyrope; both with cold caches.
cold: caches cold, the median and the 20 % and 80 % quantiles. warm: the same buffer over and over, where it fits.
host: time to issue one eager call, launch included (on a CPU: the whole call, on no tokens).

idle, busy: the median and higher quantiles of single calls, 1 ms apart, on an idle machine and beside a process that is
always busy; rates are those of the idle median."""
IN_STEP = """\
In a step: microseconds that the call adds to a layer, medians; +-: half of the widest span from the 20 % to the 80 %
quantile in the row, the layer's left out. layer: what the layer takes without the call. floor: a kernel that adds 1 to
one number, launched plainly. behind gemm: of the layer's own weights into the packed buffer, launched plainly, an
elementwise kernel after the call. behind early: a kernel that lets its dependents start before it writes the buffer, a
dependent reader after the call."""


def _us(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _rate(gbps: float) -> str:
    return f"{gbps:.0f}" if gbps >= 100 else f"{gbps:.3g}"


def _row(name: str, entry: dict) -> list[str]:
    if entry["status"] != "ok":
        return [name, f"{entry['status']}: {entry['reason']}"]
    cold, warm, host = (entry.get(kind) for kind in ("cold", "warm", "host"))
    return [
        name,
        _us(cold and cold["q50"]),
        f"{_us(cold['q20'])}-{_us(cold['q80'])}" if cold else "-",
        _rate(entry["gbps"]) if "gbps" in entry else "-",
        f"{entry['percent']:.1f}%" if "percent" in entry else "-",
        f"{entry['ratio']:.2f}" if "ratio" in entry else "-",
        _us(warm and warm["q50"]),
        _us(host and host["q50"]),
    ]


def _busy_row(name: str, entry: dict) -> list[str]:
    if entry["status"] != "ok":
        return [name, f"{entry['status']}: {entry['reason']}"]
    idle, busy = entry["idle"], entry["busy"]
    return [
        name,
        _us(idle["q50"]),
        _us(idle["q90"]),
        _rate(entry["gbps"]),
        f"{entry['percent']:.1f}%",
        f"{entry['ratio']:.2f}",
        _us(busy["q50"]),
        _us(busy["q90"]),
        _us(busy["q99"]),
        f"{busy['q90'] / idle['q50']:.2f}",
    ]


HEADER = ["", "cold us", "20%-80%", "GB/s", "of ceiling", "x", "warm us", "host us"]
BUSY_HEADER = ["", "idle us", "90%", "GB/s", "of ceiling", "x", "busy us", "90%", "99%", "90% / idle"]


# ---- cases in a step: a table for each shape and kind of neighbour, a row a size

SHAPE = [field for field in FIELDS if field not in ("batch_size", "seq_len")]


def groups(cases: list[dict]) -> dict[tuple, list[dict]]:
    """Cases that differ in their tokens only, by size."""
    found: dict[tuple, list[dict]] = {}
    for case in sorted(cases, key=lambda case: (case["tokens"], case["seq_len"])):
        found.setdefault(tuple(case[field] for field in SHAPE), []).append(case)
    return found


def size(case: dict) -> str:
    """Name of a case within its group."""
    tokens = case["tokens"]
    short = f"{tokens >> 10}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
    return short if 1 in (case["batch_size"], case["seq_len"]) else f"{short} ({case['batch_size']}x{case['seq_len']})"


def shape_of(case: dict) -> str:
    """What is the same in all cases of a group."""
    rotated = f", {case['rotary_dim']} rotated" if case["rotary_dim"] else ""
    place = ("in place" if case["in_place"] else "out of place") + (", in a step" if case["step"] else "")
    heads = f"{case['num_heads']} query and {case['num_kv_heads']} key heads of {case['head_dim']}{rotated}"
    return f"{case['op']}, {case['dtype']}, {case['layout']}, {heads}, positions: {case['positions']}, {place}"


def _step_table(cases: list[dict], kind: str) -> list[str]:
    """A Markdown table: tokens by implementations."""
    names = [name for name in dict.fromkeys(name for case in cases for name in case["results"])
             if any(kind in case["results"].get(name, {}) for case in cases)]  # fmt: skip
    rows = [["tokens", *names, "+-"]]
    for case in cases:
        entries = [case["results"].get(name, {}).get(kind) for name in names]
        spans = [entry["q80"] - entry["q20"] for name, entry in zip(names, entries, strict=True)
                 if entry and name != "layer"]  # fmt: skip
        rows.append([size(case), *(_us(entry and entry["q50"]) for entry in entries), _us(max(spans, default=0) / 2)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *lines[1:]]


def _step_lines(cases: list[dict]) -> list[str]:
    """The tables of all groups, and what has no time and why."""
    lines = []
    for group in groups(cases).values():
        for kind in STEP_KINDS:
            lines += ["", f"{shape_of(group[0])}; behind {kind}, us", *_step_table(group, kind)]
        missing = dict.fromkeys(f"  {name}: {entry['status']}: {entry['reason']}" for case in group
                                for name, entry in case["results"].items() if entry["status"] != "ok")  # fmt: skip
        lines += missing
    return lines


def _alone_lines(case: dict) -> list[str]:
    """One case as a table of implementations."""
    header, to_row = (BUSY_HEADER, _busy_row) if "idle" in case["results"]["pyrope"] else (HEADER, _row)
    rows = [header, *(to_row(name, entry) for name, entry in case["results"].items())]
    full = [row for row in rows if len(row) == len(header)]
    widths = [max(len(row[i]) for row in full) for i in range(len(header))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["", f"{case['title']}: {case['ideal_bytes'] / 1e6:.3g} MB"]
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)] if row in full else row[1:]
        lines.append("  " + "  ".join(cells))
    return lines


WIDE = 0.25  # of the median, from the 20 % to the 80 % quantile


def _wide(cases: list[dict]) -> list[str]:
    """A warning if times of pyrope or of the ceiling are spread more widely than those of an idle machine."""
    found = [case["title"] for case in cases for kind in ("cold", "idle") if any(
        kind in entry and entry[kind]["q80"] - entry[kind]["q20"] > WIDE * entry[kind]["q50"]
        for entry in (case["results"][name] for name in ("pyrope", "ceiling")))]  # fmt: skip
    if not found:
        return []
    few = ", ".join(found[:3]) + (" and others" if len(found) > 3 else "")
    return ["", f"warning: wide quantiles in {len(found)} of {len(cases)} cases ({few}): is another process busy?"]


def table(record: dict) -> str:
    """All cases of a run as text."""
    device, clocks = record["device"], ""
    if "clocks.sm" in device:
        after = record.get("device_after", device)
        clocks = f", SM {after['clocks.sm']} MHz, memory {after['clocks.mem']} MHz"
    if "load_average" in device:
        after = record.get("device_after", device)
        clocks = f", load average {device['load_average']} before, {after['load_average']} after"
    alone, inside = ([case for case in record["cases"] if case["step"] == step] for step in (False, True))
    by = ", ".join(sorted({case["results"]["ceiling"]["what"] for case in alone}))
    lines = [f"{device['name']}{clocks}; pyrope {record['versions']['pyrope']}" + (f"; ceiling by {by}" if by else "")]
    for case in alone:
        lines += _alone_lines(case)
    lines += _step_lines(inside)
    lines += [line for cases, notes in ((alone, ALONE), (inside, IN_STEP)) if cases for line in ("", notes)]
    lines += _wide(alone)
    missing = [f"  {name}: {peer['reason']}" for name, peer in record["peers"].items() if peer["status"] == "absent"]
    if missing:
        lines += ["", "absent:", *missing]
    return "\n".join(lines).lstrip("\n")


def add_rates(case: dict) -> None:
    """What follows from the cold or idle medians of a case: GB/s, percent of the ceiling, and times pyrope's time. In a
    step nothing does: its times are differences.
    """
    if case["step"]:
        return
    results = case["results"]
    kind = "idle" if "idle" in results["pyrope"] else "cold"
    own, roof = results["pyrope"][kind]["q50"], results["ceiling"][kind]["q50"]
    for name, entry in results.items():
        if kind in entry:
            took = entry[kind]["q50"]
            moved = 2 * case["touched_bytes"] if name in ROOFS else case["ideal_bytes"]
            entry |= {"gbps": moved / took / 1e3, "percent": 100 * roof / took, "ratio": took / own}


# ---- the file: a line for each field and for each case, of which only what was measured is kept

SCHEMA = 2
ROOFS = ("ceiling", "copy", "layer", "floor")
STEP_KINDS = ("gemm", "early")
KINDS = ("cold", "warm", "host", "idle", "busy", *STEP_KINDS)
SELDOM = {"step": False}  # fields that are written where they differ from this
BUSY_QUANTILES = (*QUANTILES, "q90", "q99")  # of "idle" and "busy"
DIGITS = 10  # of which a table shows the same figures, those half-way between two among them


def quantiles_of(kind: str) -> tuple[str, ...]:
    return BUSY_QUANTILES if kind in ("idle", "busy") else QUANTILES


def pack(record: dict) -> dict:
    """A run as it is written: times as lists of their quantiles in microseconds, why there are none as text."""

    def brief(entry: dict) -> dict | str:
        if entry["status"] != "ok":
            return f"{entry['status']}: {entry['reason']}"
        times = {kind: [entry[kind][q] for q in quantiles_of(kind)] for kind in KINDS if kind in entry}
        return {kind: [float(f"{t:.{DIGITS}g}") for t in values] for kind, values in times.items()}

    cases = record["cases"]
    what = {
        name: sorted({case["results"][name]["what"] for case in cases if name in case["results"]}) for name in ROOFS
    }
    header = {name: value for name, value in record.items() if name not in ("schema", "device_after", "roofs", "cases")}
    if after := record.get("device_after"):
        header["device_after"] = {name: x for name, x in after.items() if record["device"].get(name) != x}
    return {"schema": SCHEMA} | header | {
        "roofs": {name: ", ".join(names) for name, names in what.items() if names},
        "cases": [{field: case[field] for field in FIELDS
                   if field not in SELDOM or case[field] != SELDOM[field]}
                  | {"results": {name: brief(entry) for name, entry in case["results"].items()}} for case in cases],
    }  # fmt: skip


def unpack(record: dict) -> dict:
    """The run again, with all that follows from what is written."""
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema {record['schema']}, must be {SCHEMA}")

    def full(name: str, brief: dict | str) -> dict:
        if isinstance(brief, str):
            return dict(zip(("status", "reason"), brief.split(": ", 1), strict=True))
        entry = {kind: dict(zip(quantiles_of(kind), times, strict=True)) for kind, times in brief.items()}
        return {"status": "ok", **({"what": record["roofs"][name]} if name in ROOFS else {}), **entry}

    cases = []
    for packed in record["cases"]:
        case = Case(**{field: value for field, value in packed.items() if field in FIELDS})
        op, results = OPS[case.op], {name: full(name, brief) for name, brief in packed["results"].items()}
        found = {"title": str(case), **vars(case), "tokens": case.tokens, "ideal_bytes": op.ideal_bytes(case),
                 "touched_bytes": op.touched_bytes(case), "results": results}  # fmt: skip
        add_rates(found)
        cases.append(found)
    after = {"device_after": record["device"] | record["device_after"]} if "device_after" in record else {}
    return record | after | {"cases": cases}


def save(record: dict, path: pathlib.Path) -> None:
    """Write a run as JSON."""
    packed = pack(record)
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in packed.items() if name != "cases"]
    cases = ",\n".join(map(json.dumps, packed["cases"]))
    lines = ",\n".join(itertools.chain(fields, [f'"cases": [\n{cases}\n]']))
    path.write_text(f"{{\n{lines}\n}}\n")


def load(path: pathlib.Path) -> dict:
    """A run that was written."""
    return unpack(json.loads(path.read_text()))
