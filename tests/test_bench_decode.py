"""bench/decode.py on the CPU: what it times was checked, and a wrong result is not timed."""

import json

import pytest

from kit.torch_tensors import require_torch

torch = require_torch()
ARGUMENTS = ["--device", "cpu", "--requests", "1", "3", "--lengths", "33", "--heads", "4/2", "--head-dim", "32"]


@pytest.fixture
def bench(modules_of_bench):
    import decode

    return decode


@pytest.mark.parametrize("cache", ["bfloat16", "float8_e4m3fn"])
def test_runs(bench, cache, tmp_path, capsys):
    target = tmp_path / "results.json"
    assert bench.main([*ARGUMENTS, "--cache", cache, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [(row["requests"], row["length"]) for row in rows] == [(1, 33), (3, 33)]
    assert all({"fused", "core"} == set(row["us"]) == set(row["of_copy"]) for row in rows)
    size = 2 * 33 * 2 * 32 * (1 if cache == "float8_e4m3fn" else 2)
    assert [row["bytes"] for row in rows] == [size, 3 * size]
    assert "pages of 16" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [lambda out: out[0, 0, 5].add_(0.1), lambda out: out[-1, -1].zero_()])
def test_a_wrong_result_is_not_timed(bench, wrong, monkeypatch):
    own = bench.Case.own

    def broken(self, i, rotated):
        out = own(self, i, rotated)
        wrong(out)
        return out

    monkeypatch.setattr(bench.Case, "own", broken)
    with pytest.raises(SystemExit, match=r"fused: head \d of request \d is off by"):
        bench.main(ARGUMENTS)
