"""Writes the table of models of docs/models.md, out of the data file that pyrope reads.

python tools/hf_table.py [--check]
"""

import sys
from pathlib import Path
from typing import Any

from pyrope._hf_forms import OWN, SAME
from pyrope.hf import models

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- models: python tools/hf_table.py -->", "<!-- end of models -->"


def rotated(entry: dict[str, Any]) -> list[Any]:
    return [kind for kind in entry["layers"].values() if kind is not None]


def differ(entry: dict[str, Any]) -> bool:
    return any(kind != rotated(entry)[0] for kind in rotated(entry))


def still(entry: dict[str, Any]) -> bool:
    names = [name for name, kind in entry["layers"].items() if kind is None]
    return "nope_every" in entry or any(name.endswith("_attention") and name != "linear_attention" for name in names)


def table() -> str:
    entries = models()["models"] | OWN
    known = {name: entry for name, entry in entries.items() if "refused" not in entry}
    known |= {name: known[other] for name, other in SAME.items() if name not in known}
    refused = {name: entry["refused"] for name, entry in entries.items() if "refused" in entry}
    rows = [
        ("`i` with `i + rotary_dim / 2` (`neox`)", [n for n, e in known.items() if e["layout"] == "neox"]),
        ("`2i` with `2i + 1` (`gptj`)", [n for n, e in known.items() if e["layout"] == "gptj"]),
        ("turned the other way (negative `inv_freq`)", [n for n, e in known.items() if "backward" in e]),
        ("the last elements of a head", [n for n, e in known.items() if "last" in e]),
        ("layers that differ: `layer_type=`", [n for n, e in known.items() if differ(e)]),
        ("layers that are not rotated, and are refused", [n for n, e in known.items() if still(e)]),
        (
            "M-RoPE: sections of `FusedRope`",
            [n for n, e in known.items() if "sections" in e and "refused" not in e["sections"]],
        ),
    ]
    rows += [(f"refused: {why}", [n for n, w in refused.items() if w == why]) for why in sorted(set(refused.values()))]
    lines = [f"| {what} | {', '.join(sorted(names))} |" for what, names in rows]
    head = f"{len(known)} model types, by transformers {models()['transformers']} and by their publishers:"
    return "\n".join([BEGIN, "", head, "", "| | model types |", "|---|---|", *lines, "", END])


def written(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + table() + rest.partition(END)[2]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    if written(text) == text:
        sys.exit()
    if "--check" in sys.argv:
        sys.exit("The table of docs/models.md is not that of the data file: run tools/hf_table.py")
    PAGE.write_text(written(text), encoding="utf-8")
