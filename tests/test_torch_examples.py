"""The examples that need torch."""

import importlib.util

import pytest

from kit.library import ROOT
from kit.torch_tensors import on, require_torch

torch = require_torch()


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("start", [0, 1_000_000])
def test_torch_diff(device, capsys, monkeypatch, start):
    """Each row has what it says: pyrope's difference from float64 is a rounding's, that of torch's grows."""
    module = example("torch_diff")
    monkeypatch.setattr(module, "cases", lambda device, full: [(2, 16, 128)])
    monkeypatch.setattr(module, "milliseconds", lambda function, device: 1.5)
    module.main(["--device", on(device), "--start", str(start)])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["dtype", "batch", "n", "m"] and len(lines) == 2
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines}
    assert all(row[:3] == [2, 16, 128] and row[-3:] == [1.5] * 3 for row in rows.values())
    naive, table, pyrope, naive_table, naive_pyrope, _ = rows["float32"][3:9]
    # Of pairs up to 6 long: 3.5e-7 of their length.
    assert pyrope < 2.1e-6 and naive == table and naive_table == 0
    assert (naive_pyrope > 1e-2) == (start > 0)
    assert abs(naive - naive_pyrope) <= pyrope + 0.01 * naive  # of which three digits are printed
    assert 0 < rows["bfloat16"][5] <= 2.0**-6 + 2.1e-6  # half a unit of numbers below 8


def test_torch_diff_cases():
    module = example("torch_diff")
    full = list(module.cases("cuda", True))
    assert len(full) == 20 and full[0] == (64, 512, 128) and full[-1] == (128, 8192, 256)
    assert module.milliseconds(lambda: torch.zeros(1), "cpu", 0.01) > 0


def test_train_tiny_fused():
    """Rotation and attention in one call, and their gradient: the same curve. On the CPU, where float32 is served."""
    curves = example("train_tiny").main(["--steps", "30", "--device", "cpu", "--attention", "fused"])
    ours, theirs = curves["pyrope"], curves["torch"]
    assert ours[-1] < ours[0] - 1
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def test_train_tiny(device, tmp_path):
    """Both learn, and their losses are equal to the rounding of a few steps."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curves.png"
    curves = example("train_tiny").main(["--steps", "30", "--device", on(device), "--plot", str(picture)])
    ours, theirs = curves["pyrope"], curves["torch"]
    assert len(ours) == len(theirs) == 30 and ours[-1] < ours[0] - 1
    # Measured on a CPU: at most 4.8e-7 in 300 steps. On a GPU torch's own backward adds with atomics, in any order.
    most = 1e-5 if device == "cpu" else 1e-3
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < most
    assert picture.stat().st_size > 1000
