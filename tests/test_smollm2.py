"""The real-model example, examples/smollm2.py, against frozen results of an independent implementation.

tests/data/smollm2_reference.json was written by tests/data/make_smollm2_reference.py with transformers on CPU
torch in float32 (and llama.cpp for the texts under "tokenizer").

The tests skip where gguf, tokenizers or the model's file is missing; with PYROPE_REQUIRE_MODEL=1 they fail.
"""

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import pyrope

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "data" / "smollm2_reference.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=f"prompt{i}") for i, case in enumerate(REFERENCE["cases"])]
REQUIRED = os.environ.get("PYROPE_REQUIRE_MODEL") == "1"

# Largest difference of a logit from the frozen one, over all that are frozen: 3.3e-5 with NumPy (5.0e-5 for
# logsumexp, at any step).  The logits are up to 35 and come from 30 layers of float32 sums, whose order
# depends on the BLAS.  Rotating with the wrong pairing moves them by more than 1 (see test_wrong_pairing).
TOLERANCE = 1e-3


def require(module: str):
    return importlib.import_module(module) if REQUIRED else pytest.importorskip(module)


@pytest.fixture(scope="module")
def smollm2():
    """The example as a module."""
    require("gguf")
    require("tokenizers")
    spec = importlib.util.spec_from_file_location("smollm2", HERE.parent / "examples" / "smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def path(smollm2):
    try:
        path = smollm2.find_gguf()
    except FileNotFoundError as error:
        if REQUIRED:
            raise
        pytest.skip(str(error))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == REFERENCE["sha256"], f"{path} is not the file that the frozen results were made from"
    return path


@pytest.fixture(scope="module")
def checkpoint(smollm2, path):
    return smollm2.load(path)


def check_against_reference(smollm2, model, tokenizer, case):
    prompt_ids = smollm2.chat_ids(tokenizer, case["prompt"])
    assert prompt_ids == case["prompt_ids"]
    new_ids, steps = smollm2.generate(model, prompt_ids, max_tokens=32)
    assert new_ids == case["new_ids"]
    assert tokenizer.decode(new_ids) == case["text"]

    logsumexp = [s.max() + np.log(np.exp(s.astype(np.float64) - s.max()).sum()) for s in steps]
    np.testing.assert_allclose(logsumexp, case["logsumexp"], rtol=0, atol=TOLERANCE)
    for logits, expected in [(steps[0], case["first_step"]), (steps[-1], case["last_step"])]:
        np.testing.assert_allclose(logits[expected["top_ids"]], expected["top"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(logits[REFERENCE["fixed_ids"]], expected["fixed"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", REFERENCE["tokenizer"], ids=lambda case: ascii(case["text"]))
def test_tokenizer(checkpoint, case):
    ids = checkpoint.tokenizer.encode(case["text"]).ids
    assert ids == case["ids"]
    assert checkpoint.tokenizer.decode(ids, skip_special_tokens=False) == case["text"]


@pytest.fixture(scope="module", params=[("gptj", "arrays"), ("neox", "arrays"), ("gptj", "fused")])
def cpu_model(request, smollm2, checkpoint):
    layout, attention = request.param
    return smollm2.Model(checkpoint, layout=layout, device="cpu", attention=attention)


@pytest.mark.parametrize("case", CASES)
def test_cpu(smollm2, checkpoint, cpu_model, case):
    check_against_reference(smollm2, cpu_model, checkpoint.tokenizer, case)


def test_cache(cpu_model):
    """The prompt in three pieces gives the logits of the prompt in one."""
    case = REFERENCE["cases"][0]
    ids = case["prompt_ids"]
    cache = cpu_model.new_cache(len(ids))
    for piece in (ids[:20], ids[20:21], ids[21:]):
        logits = cpu_model.forward(piece, cache)
    expected = case["first_step"]
    np.testing.assert_allclose(logits[expected["top_ids"]], expected["top"], rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="cache"):
        cpu_model.forward([1], cache)


def test_wrong_pairing(smollm2, checkpoint, monkeypatch):
    """Rows left in GGUF order but rotated as "neox": the comparison above would notice."""
    monkeypatch.setattr(smollm2, "unpermute", lambda weight, heads: weight)
    model = smollm2.Model(checkpoint, layout="neox", device="cpu")
    case = REFERENCE["cases"][0]
    logits = model.forward(case["prompt_ids"], model.new_cache(len(case["prompt_ids"])))
    expected = case["first_step"]
    assert np.abs(logits[expected["top_ids"]] - expected["top"]).max() > 1000 * TOLERANCE


@pytest.fixture(scope="module", params=["gptj", "neox"])
def cuda_model(request, smollm2, checkpoint):
    if pyrope.device_count() == 0:
        pytest.skip("no CUDA device")
    require("cupy")
    return smollm2.Model(checkpoint, layout=request.param, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda(smollm2, checkpoint, cuda_model, case):
    check_against_reference(smollm2, cuda_model, checkpoint.tokenizer, case)


@pytest.mark.parametrize("attention", ["arrays", "fused"])
def test_command_line(smollm2, path, monkeypatch, capsys, attention):
    argv = ["smollm2.py", "--max-tokens", "4", "--device", "cpu", "--model", str(path), "--attention", attention]
    monkeypatch.setattr(sys, "argv", argv)
    smollm2.main()
    assert capsys.readouterr().out.startswith("The capital of France\n")
