"""What is generated from transformers, or from what was: the data file and the table of docs/models.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyrope
from kit.hf import has_transformers
from kit.library import ROOT
from pyrope.hf import models

DATA = Path(__file__).parent / "data"


def test_the_table_of_models():
    """The page has what the data file makes of it."""
    subprocess.run([sys.executable, ROOT / "tools/hf_table.py", "--check"], check=True)


@pytest.mark.parametrize("name", [name for name, entry in models()["models"].items() if "refused" not in entry])
def test_every_entry_gives_a_rope(name):
    """Of the class's own sizes; of each type of layers that is rotated."""
    entry = models()["models"][name]
    kinds = [kind or None for kind, values in entry["layers"].items() if values is not None]
    config = {"model_type": name, "num_attention_heads": 32, "hidden_size": 4096, "head_dim": 320}
    config |= {"position_embedding_type": "rotary", "use_mem_rope": True}  # of models that may do without
    if "nope_every" in entry:
        config["no_rope_layers"] = [1]
    for kind in kinds:
        rope = pyrope.Rope.from_hf_config(config, layer_type=kind, device="cpu", layout=entry["layout"])
        assert rope.layout == entry["layout"] and rope.rotary_dim <= rope.head_dim and len(rope.inv_freq)


if has_transformers(models()["transformers"]):

    def test_a_fresh_run(tmp_path):
        made = tmp_path / "hf_models.json"
        run = [sys.executable, DATA / "make_hf_models.py", "--to", made]
        subprocess.run(run, check=True, capture_output=True)
        fresh = json.loads(made.read_text(encoding="utf-8"))
        assert fresh["parts"] == models()["parts"]
        for name in fresh["models"].keys() | models()["models"].keys():
            assert fresh["models"].get(name) == models()["models"].get(name), name
