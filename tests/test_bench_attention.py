"""bench/attention.py on the CPU: what it times was checked, and a wrong result is not timed."""

import json

import pytest

from kit.torch_tensors import require_torch

torch = require_torch()
ARGUMENTS = ["--device", "cpu", "--tokens", "20", "33", "--heads", "4/2", "--head-dim", "32", "--batch", "2"]


@pytest.fixture
def bench(modules_of_bench):
    import attention

    return attention


@pytest.mark.parametrize("mask", [[], ["--full"]])
def test_runs(bench, mask, tmp_path, capsys):
    target = tmp_path / "results.json"
    assert bench.main([*ARGUMENTS, *mask, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [(row["batch"], row["tokens"], row["causal"]) for row in rows] == [(2, 20, not mask), (2, 33, not mask)]
    assert all({"fused", "core", "sdpa", "pair sdpa", "pass"} == set(row["us"]) for row in rows)
    assert "geometric mean" in capsys.readouterr().out


def test_by_the_name_of_its_operation(modules_of_bench, capsys):
    import run

    run.main(["--op", "attention", *ARGUMENTS])
    run.main(["--suite", "seed-attention", *ARGUMENTS])  # what is given last holds
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("2 x 20,", "2 x 33,")) for line in lines) == 4
    with pytest.raises(SystemExit):
        run.main(["--op", "attention-decode", "--help"])
    assert "--page-size" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [lambda out: out[0, -1, 0, 5].add_(0.1), lambda out: out[0, 6, -1].zero_()])
def test_a_wrong_result_is_not_timed(bench, wrong, monkeypatch):
    own = bench.Case.own

    def broken(self, i, rotated):
        out = own(self, i, rotated)
        wrong(out)
        return out

    monkeypatch.setattr(bench.Case, "own", broken)
    with pytest.raises(SystemExit, match=r"fused: row \d+ of head \d is off by"):
        bench.main(ARGUMENTS)


def test_backward_runs(modules_of_bench, tmp_path):
    import attention_backward as bench

    target = tmp_path / "results.json"
    assert bench.main([*ARGUMENTS, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [(row["batch"], row["tokens"]) for row in rows] == [(2, 20), (2, 33)]
    assert all({"fused", "core", "deterministic", "sdpa", "pair sdpa"} == set(row["us"]) for row in rows)


def test_a_wrong_gradient_is_not_timed(modules_of_bench, monkeypatch):
    import attention_backward as bench

    own = bench.BackwardCase.differentiate

    def broken(self, *arguments):
        dq, dk, dv = own(self, *arguments)
        return dq, dk.mul_(1.1), dv

    monkeypatch.setattr(bench.BackwardCase, "differentiate", broken)
    with pytest.raises(SystemExit, match=r"fused: dk is off by 0\.(09|10)"):
        bench.main(ARGUMENTS)
