"""Figures of one run: time and GB/s against size, and how many times pyrope's time each peer takes."""

import math
import pathlib
import textwrap

from report import ROOFS, STEP_KINDS, groups, shape_of, size

try:
    import matplotlib
except ImportError as error:
    raise SystemExit(f"--plot needs matplotlib: {error}") from None
matplotlib.use("Agg")
import matplotlib.pyplot as plt

CHARACTERS = 13  # of a title in an inch
COLORS = plt.get_cmap("tab10").colors
plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                 "grid.color": "#dddddd", "axes.axisbelow": True, "figure.dpi": 130}  # fmt: skip


def head(figure, *lines: str) -> None:
    """The title of a figure, in as many lines as its width needs."""
    width = int(CHARACTERS * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=9)


def timed(cases: list[dict], kind: str = "cold") -> list[str]:
    """Implementations that have a time in any of the cases, the roofs left out."""
    names = dict.fromkeys(name for case in cases for name, entry in case["results"].items() if kind in entry)
    return [name for name in names if name not in ROOFS]


def against_size(record: dict, cases: list[dict], path: pathlib.Path) -> None:
    """Two panels: microseconds and GB/s over the number of tokens, cold, the ceiling dashed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    x = range(len(cases))
    for i, name in enumerate([*timed(cases), "ceiling"]):
        entries = [case["results"][name] for case in cases]
        at = [j for j in x if "cold" in entries[j]]
        times = [entries[j]["cold"] for j in at]
        bulk = [case["ideal_bytes"] / 1e3 for case in cases]
        style = {"color": COLORS[i % 10], "linestyle": ("-", ":")[i // 10], "marker": ".", "linewidth": 1.3}
        if name == "ceiling":
            style = {"color": "black", "linestyle": "--", "linewidth": 1.5}
        elif name == "pyrope":
            style |= {"linewidth": 2.8, "marker": "o", "zorder": 5}
        left.plot(at, [t["q50"] for t in times], label=name, **style)
        right.plot(at, [bulk[j] / t["q50"] for j, t in zip(at, times, strict=True)], **style)
        if name == "pyrope":
            low, high = ([t[q] for t in times] for q in ("q20", "q80"))
            left.fill_between(at, low, high, color=style["color"], alpha=0.25)
    for axes, label in ((left, "µs per call (caches cold, median)"), (right, "GB/s")):
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(cases) > 10 else {}
        axes.set_xticks(list(x), [size(case) for case in cases], **slanted)
        axes.set(xlabel="tokens", ylabel=label)
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside right center", frameon=False)
    head(figure, shape_of(cases[0]), record["device"]["name"])
    figure.savefig(path)
    plt.close(figure)


def ratios(record: dict, cases: list[dict], path: pathlib.Path) -> None:
    """A panel for each peer: bars of its time over pyrope's."""
    names = [name for name in timed(cases) if name != "pyrope"]
    if not names:
        return
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    height = 0.9 + 0.21 * len(cases)
    figure, panels = plt.subplots(rows, columns, figsize=(3.6 * columns, 0.7 + height * rows), squeeze=False,
                                  sharey=True, layout="constrained")  # fmt: skip
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.flat, names, strict=False):
        values = [case["results"][name].get("ratio") for case in cases]
        faster = [v is not None and v >= 1 for v in values]
        axes.barh(range(len(cases)), [v or 0 for v in values], color=["#2a7ab9" if f else "#d1603d" for f in faster])
        top = max([v for v in values if v] + [1])
        for j, v in enumerate(values):
            text = f"{v:#.3g}".rstrip(".") if v else cases[j]["results"][name]["status"]
            at, color = (max(v, 1), "black") if v else (0, "#888888")
            axes.text(at + 0.02 * top, j, text, va="center", fontsize=8, color=color)
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xlim=(0, 1.2 * top), title=name)
        axes.set_yticks(range(len(cases)), [size(case) for case in cases])
        axes.grid(visible=False, axis="y")
    panels[0][0].invert_yaxis()
    for row in panels:
        row[0].set_ylabel("tokens")
    head(figure, shape_of(cases[0]), record["device"]["name"],
         "time over pyrope's time, caches cold; blue, above 1: pyrope is faster")  # fmt: skip
    figure.savefig(path)
    plt.close(figure)


def in_step(record: dict, cases: list[dict], path: pathlib.Path) -> None:
    """A panel for each kind of neighbour: microseconds that a call adds to a layer over the number of tokens."""
    figure, panels = plt.subplots(1, len(STEP_KINDS), figsize=(11, 4.8), layout="constrained", sharey=True)
    x = range(len(cases))
    names = list(dict.fromkeys(name for kind in STEP_KINDS for name in timed(cases, kind)))
    for i, name in enumerate([*names, "floor"]):
        style = {"color": COLORS[i % 10], "linestyle": ("-", ":")[i // 10], "marker": ".", "linewidth": 1.3}
        if name == "floor":
            style = {"color": "black", "linestyle": "--", "linewidth": 1.5}
        elif name.startswith("pyrope"):
            style |= {"linewidth": 2.2, "marker": "o", "zorder": 5}
        for axes, kind in zip(panels, STEP_KINDS, strict=True):
            at = [j for j in x if kind in cases[j]["results"].get(name, {})]
            axes.plot(at, [cases[j]["results"][name][kind]["q50"] for j in at], label=name, **style)
    for axes, kind in zip(panels, STEP_KINDS, strict=True):
        axes.set_xticks(list(x), [size(case) for case in cases])
        axes.set(xlabel="tokens", title=f"behind {kind}")
    panels[0].set_yscale("log")
    panels[0].set_ylabel("µs that a call adds to a layer (median)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    head(figure, shape_of(cases[0]), record["device"]["name"])
    figure.savefig(path)
    plt.close(figure)


def draw(record: dict, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the figures of a run into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, cases in enumerate(groups(record["cases"]).values(), 1):
        alone = (("size", against_size), ("ratio", ratios))
        for kind, function in (("step", in_step),) if cases[0]["step"] else alone:
            path = folder / f"{cases[0]['op']}-{number:02}-{kind}.png"
            function(record, cases, path)
            paths.append(path)
    return [path for path in paths if path.exists()]
