"""What bench/ refuses before it measures anything, which results it takes for right, and the files it writes."""

import contextlib
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from kit import reference as ref
from kit.library import ROOT

BENCH = ROOT / "bench"
RESULTS = BENCH / "results/h100-quick.json"


def bench(program, *arguments):
    done = subprocess.run([sys.executable, BENCH / program, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module", autouse=True)
def modules_of_bench():
    """They are found, as when a program of that folder is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield


def module_of_bench(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("program", "arguments", "text"),
    [
        ("run.py", ["--num-threads", "-1"], "--num-threads: invalid count value: '-1'"),
        ("run.py", ["--json", "no/such/folder.json"], "--json: no/such is not a folder"),
        ("run.py", ["--suite", "cpu-busy", "--plot"], "--plot: not with --suite cpu-busy"),
        ("compare.py", ["missing.json", RESULTS], "missing.json"),
        ("compare.py", [RESULTS, __file__], "not the results of run.py"),
        ("compare.py", [RESULTS, BENCH], "results.json"),
    ],
)
def test_refused(program, arguments, text):
    done = bench(program, *arguments)
    assert done.returncode == 2 and done.stdout == "" and text in done.stderr


def test_a_step_needs_a_gpu():
    done = bench("run.py", "--device", "cpu", "--suite", "step")
    assert done.returncode == 1 and done.stdout == "" and "a step is measured on a CUDA device only" in done.stderr


def test_a_line_a_case_where_no_terminal_is(tmp_path):
    small = ["--device", "cpu", "--peers", "none", "--num-heads", "2", "--num-kv-heads", "1", "--seq-len", "1", "2"]
    done = bench("run.py", *small, "--save-path", tmp_path)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert [line[:5] for line in lines] == ["[1/2]", "[2/2]"] and "1x2 tokens, 2/1 heads of 128" in lines[1]
    assert bench("compare.py", tmp_path, tmp_path / "results.json").returncode == 0


@pytest.mark.parametrize(("field", "value"), [("name", "NVIDIA B200"), ("threads", 7)])
def test_compare_names_other_devices(field, value, tmp_path):
    record = json.loads(RESULTS.read_text())
    record["device"][field] = value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    assert f"NOT COMPARABLE: the device's {field}: " in bench("compare.py", RESULTS, other).stdout
    assert "NOT COMPARABLE" not in bench("compare.py", other, other).stdout


# ---- files of results


@pytest.fixture(scope="module")
def report():
    return module_of_bench("report")


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_small(report, path, tmp_path):
    """A line a case: what it is, and three quantiles of each time or why there are none. Rewritten, it is the same."""
    record = json.loads(path.read_text())
    fields = [name for name in record if name != "cases"]
    assert len(path.read_text().splitlines()) == len(record["cases"]) + len(fields) + 4
    for case in record["cases"]:
        assert [name for name in report.FIELDS if name in case or name not in report.SELDOM] == list(case)[:-1]
        assert list(case)[-1] == "results"
        for entry in case["results"].values():
            if isinstance(entry, dict):
                assert set(entry) <= set(report.KINDS) and all(len(times) == 3 for times in entry.values())
                assert all(low <= median <= high for low, median, high in entry.values())
                assert all(times[0] > 0 for kind, times in entry.items() if kind not in report.STEP_KINDS)
            else:
                assert entry.startswith(("n/a: ", "wrong: ", "failed: "))
    report.save(report.load(path), tmp_path / path.name)
    assert (tmp_path / path.name).read_text() == path.read_text()
    assert bench("compare.py", path, tmp_path / path.name).returncode == 0


def measured_case(cases, **fields):
    """As measure() returns it."""
    case = cases.Case(**fields)
    op = cases.OPS[case.op]
    quantiles = {"q20": 1.4449999, "q50": 1.4850000001, "q80": 3.0, "samples": 25}
    kinds = ("gemm", "early") if case.step else ("cold", "host")
    entry = {"status": "ok", "error": 0.9, "new_tensors": False, **dict.fromkeys(kinds, quantiles)}
    entry[kinds[-1]] = quantiles | {"q80": 2.5}
    roof = {"status": "ok", "what": "a flip", kinds[0]: quantiles | {"q50": 1.2}, kinds[-1]: quantiles}
    results = {
        **dict.fromkeys(("layer", "floor") if case.step else ("ceiling", "copy"), roof),
        "pyrope": entry,
        "none": {"status": "n/a", "reason": "no k"},
        "bad": {"status": "wrong", "reason": "q at position 3: 1, should be 2"},
    }
    sizes = {"ideal_bytes": op.ideal_bytes(case), "touched_bytes": op.touched_bytes(case)}
    return {"title": str(case), **vars(case), "tokens": case.tokens, **sizes, "slots": 128, "results": results}


def run_of(report, found):
    """Cases as a whole run."""
    for case in found:
        report.add_rates(case)
    device = {"name": "a card", "clocks.sm": "1980", "clocks.mem": "2619", "temperature.gpu": "41"}
    about = {"date": "today", "commit": None, "arguments": [], "versions": {"pyrope": "0"}, "peers": {}}
    return about | {"cases": found, "device": device, "device_after": device | {"clocks.sm": "1755"}}


def test_a_run_is_read_as_it_was_measured(report, tmp_path):
    import cases

    found = [measured_case(cases, seq_len=7, rotary_dim=20), measured_case(cases, op="append", batch_size=3)]
    record = run_of(report, [*found, measured_case(cases, op="append", batch_size=3, step=True)])
    report.save(record, tmp_path / "run.json")
    again = report.load(tmp_path / "run.json")
    assert report.table(again) == report.table(record) and "SM 1755 MHz" in report.table(again)
    first = again["cases"][0]
    roof, own = (first["results"][name] for name in ("ceiling", "pyrope"))
    assert roof["gbps"] == pytest.approx(2 * first["touched_bytes"] / 1.2e3) and roof["percent"] == 100
    assert own["gbps"] == pytest.approx(first["ideal_bytes"] / 1.485e3) and own["ratio"] == 1
    assert own["percent"] == pytest.approx(100 * 1.2 / 1.485) and roof["ratio"] == pytest.approx(1.2 / 1.485)
    for case, old in zip(again["cases"], record["cases"], strict=True):
        assert case["results"]["bad"] == old["results"]["bad"]
        assert {name: case[name] for name in old if name not in ("slots", "results")} == {
            name: old[name] for name in old if name not in ("slots", "results")
        }


def test_a_step_is_a_table_of_sizes_by_implementations(report):
    import cases

    sizes = [measured_case(cases, step=True, **tokens) for tokens in ({"seq_len": 2048}, {"batch_size": 8})]
    lines = report.table(run_of(report, sizes)).splitlines()
    assert [line for line in lines if "behind early, us" in line] == [
        "apply, bfloat16, neox, 32 query and 8 key heads of 128, positions: ids, in place, in a step; behind early, us"
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[0] == rows[4] == ["tokens", "layer", "floor", "pyrope", "+-"]
    assert rows[2:4] == [[size, "1.20", "1.20", "1.49", "0.78"] for size in ("8", "2k")]
    assert rows[6:] == [[size, "1.49", "1.49", "1.49", "0.78"] for size in ("8", "2k")]
    assert lines.count("  bad: wrong: q at position 3: 1, should be 2") == 1


def test_wide_quantiles_are_named(report):
    """Those of another process that is busy; rates of small cases have digits."""
    import cases

    record = run_of(report, [measured_case(cases, seq_len=1, num_heads=1, num_kv_heads=1, head_dim=8)])
    text = report.table(record)
    assert "warning: wide quantiles in 1 of 1 cases (" in text and "is another process busy?" in text
    assert re.search(r"pyrope +1\.49 +1\.44-3\.00 +0\.0\d+ ", text)
    for entry in record["cases"][0]["results"].values():
        if "cold" in entry:
            entry["cold"]["q80"] = 1.5
    assert "warning" not in report.table(record)


def test_idle_and_busy_are_measured_in_turns(report, monkeypatch, tmp_path):
    """Every implementation that is right has both, from single calls; what is written shows the same table."""
    busy = module_of_bench("busy")
    monkeypatch.setattr(busy, "ROUNDS", 2)
    monkeypatch.setattr(busy, "WINDOW", 5e-3)
    switched, process = [], busy.busy_process

    @contextlib.contextmanager
    def watched():
        with process() as run:
            yield lambda on: (switched.append(on), run(on))

    monkeypatch.setattr(busy, "busy_process", watched)
    import cases
    import cpu
    import peers

    device, present = cpu.Cpu(2), [peer for peer in peers.PEERS if peer.name in ("pyrope", "numpy")]
    found = busy.measure(device, cases.Case(seq_len=8), present, {}, 0, lambda *_: None)
    assert switched == [False, True, False, True]
    assert list(found["results"]) == ["ceiling", "copy", "pyrope", "numpy"]
    for entry in found["results"].values():
        for kind in ("idle", "busy"):
            times = [entry[kind][q] for q in report.BUSY_QUANTILES]
            assert times[0] > 0 and times == sorted(times) and entry[kind]["samples"] >= busy.ROUNDS
    record = {"date": "today", "commit": None, "arguments": [], "versions": {"pyrope": "0"}, "peers": {},
              "device": device.info(), "cases": [found]}  # fmt: skip
    report.save(record, tmp_path / "run.json")
    loaded = report.load(tmp_path / "run.json")
    report.save(loaded, tmp_path / "again.json")  # of times that are rounded already
    table = report.table(loaded)
    assert table == report.table(report.load(tmp_path / "again.json"))
    assert "90% / idle" in table and "load average" in table
    numbers = [[float(x) for x in re.findall(r"\d+\.\d+", text)] for text in (table, report.table(record))]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.011)  # a digit rounded twice


def test_another_schema_is_refused(tmp_path):
    other = tmp_path / "old.json"
    other.write_text(json.dumps(json.loads(RESULTS.read_text()) | {"schema": 1}))
    done = bench("compare.py", RESULTS, other)
    assert done.returncode == 2 and "old.json: not the results of run.py: schema 1, must be 2" in done.stderr


@pytest.mark.parametrize(("factor", "word", "status"), [(1.1, "slower", 1), (0.9, "faster", 0), (1.01, "same", 0)])
def test_compare_finds_what_changed(report, factor, word, status, tmp_path):
    record = json.loads(RESULTS.read_text())
    for case in record["cases"]:
        cold = case["results"]["pyrope"]["cold"]
        case["results"]["pyrope"]["cold"] = [factor * time for time in cold]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    done, count = bench("compare.py", RESULTS, other), len(record["cases"])
    assert done.returncode == status
    assert (f"{count} {word}" in done.stdout) == (word != "same") == (f"{word} cold: " in done.stdout)


def test_results_are_drawn(report, tmp_path):
    """Times and bandwidths against size, and a panel for each peer."""
    plots = module_of_bench("plots")
    paths = plots.draw(report.load(RESULTS), tmp_path)
    assert {path.name for path in paths} == {"apply-01-size.png", "apply-01-ratio.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_titles_are_inside_of_their_figures(report, monkeypatch, tmp_path):
    """Of one panel, which is the narrowest, and of a step."""
    import cases

    plots, figures = module_of_bench("plots"), []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    found = [measured_case(cases, rotary_dim=20, step=step) for step in (False, True)]
    found[0]["results"] |= {"sglang": found[0]["results"]["pyrope"]}
    assert [path.name for path in plots.draw(run_of(report, found), tmp_path)] == [
        "apply-01-size.png", "apply-01-ratio.png", "apply-02-step.png"]  # fmt: skip
    for figure in figures:
        box = figure._suptitle.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


# ---- the check that every result passes before it is timed

THETA, EPS = 10000.0, 1e-6
POSITIONS = np.array([1, 300, 8191, 20_000, 73_727])  # up to the largest that is measured
SMALL = {"num_heads": 3, "num_kv_heads": 2, "seq_len": len(POSITIONS)}
CASES = {
    **{f"{dtype} {layout}": {"dtype": dtype, "layout": layout}
       for dtype in ("float32", "float16", "bfloat16") for layout in ("neox", "gptj")},
    "partial": {"rotary_dim": 64},
    "partial, out of place": {"rotary_dim": 32, "in_place": False},
    "no k": {"num_kv_heads": 0},
    "mrope": {"op": "mrope"},
    "append": {"op": "append"},
    "norm-append": {"op": "norm-append", "in_place": False},
    "append-fp8": {"op": "append-fp8", "in_place": False},
    "mla-fp8": {"op": "mla-fp8", "in_place": False, "head_dim": 64, "num_kv_heads": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def checker():
    return module_of_bench("reference")


class Measured:
    """A case of the benchmark with random inputs, and its results by the tests' own reference."""

    def __init__(self, checker, fields):
        import cases

        self.checker, self.case = checker, cases.Case(**SMALL | fields)
        self.op, rng = cases.OPS[self.case.op], np.random.default_rng(1)
        shapes = self.op.tensors(self.case)
        self.form = {name: ref.storage(self.op.dtypes.get(name, self.case.dtype)) for name in shapes}
        self.before = {name: rng.standard_normal(shapes[name]).astype(self.form[name])
                       for name in self.op.inputs if name in shapes}  # fmt: skip
        self.parts = dict(self.before)
        if "qkv" in self.parts:
            ends = np.cumsum([self.case.num_heads, self.case.num_kv_heads])
            self.parts = dict(zip("qkv", np.split(self.parts["qkv"], ends, axis=1), strict=True))
        self.weights = {x: rng.standard_normal(self.case.head_dim).astype(np.float32) for x in "qk"}
        self.positions = POSITIONS
        if self.op.sections:
            streams = np.stack([POSITIONS, POSITIONS[::-1], POSITIONS // 3])
            self.positions = np.repeat(streams, self.op.sections, axis=0).T

    def results(self, layout=None, angle="exact"):
        """Each rounded once; those that are rotated, also in another way than they should be."""
        case, after, rotated = self.case, {}, self.case.rotated
        positions = self.positions if self.positions.ndim == 2 else np.repeat(POSITIONS[:, None], rotated // 2, axis=1)
        cos, sin = ref.cos_sin_of_phases(ref.phases(positions, angle, rotated, THETA))
        for name, where in self.op.results(case).items():
            value = ref.exact(self.parts[name])
            if name in "qk":
                if self.op.norm:
                    value = ref.rms_norm(value, self.weights[name], EPS, 0.0)
                value = ref.rotate(value, cos, sin, layout or case.layout, rotated, 0)
            form = self.form[where]
            limit = float(ref.ml_dtypes.finfo(form).max)
            after[name] = np.clip(value[0], -limit, limit).astype(form)
        return after

    def check(self, after, angle=0.0):
        return self.checker.check(self.case, self.before, after, self.positions, self.weights, THETA, angle)

    def refused(self, after, text=""):
        with pytest.raises(self.checker.WrongResultError, match=text):
            self.check(after)


@pytest.fixture
def measured(request, checker):
    return Measured(checker, CASES[request.param])


def each_case(names=tuple(CASES)):
    return pytest.mark.parametrize("measured", names, indirect=True)


EIGHT_BITS = ("append-fp8", "mla-fp8")
WIDE = [name for name in CASES if name not in EIGHT_BITS]


@each_case()
def test_right_results_pass(measured):
    assert measured.check(measured.results()) <= 1


@each_case()
@pytest.mark.parametrize("token", range(len(POSITIONS)))
def test_one_wrong_element_does_not_pass(measured, token):
    """The largest of a head, by few units in its last place; by any, where elements are only stored."""
    for name, y in measured.results().items():
        steps = {4: 32, 2: 2, 1: 2}[y.itemsize] if name in "qk" or y.itemsize == 1 else 1
        after, head = measured.results(), y.shape[1] - 1
        i = np.abs(y[token, head, : measured.case.rotated].astype(np.float64)).argmax()
        after[name].view(f"i{y.itemsize}")[token, head, i] -= steps
        measured.refused(after, f"^{name}")


@each_case()
@pytest.mark.parametrize("token", range(len(POSITIONS)))
def test_a_missing_token_does_not_pass(measured, token):
    """In place what was there before, elsewhere nothing."""
    for name, y in measured.results().items():
        after = measured.results()
        left = measured.parts[name] if name in "qk" and measured.case.in_place else np.zeros_like(y)
        after[name][token] = left[token]
        measured.refused(after, f"^{name}")


@each_case()
def test_a_wrong_pairing_does_not_pass(measured):
    measured.refused(measured.results(layout={"neox": "gptj", "gptj": "neox"}[measured.case.layout]), "^q")


@each_case(WIDE)
def test_an_angle_from_float32_does_not_pass(measured):
    """But where such an error is allowed, as of tables that others make."""
    after = measured.results(angle="fp32")
    measured.refused(after, "^q at position")
    assert measured.check(after, angle=POSITIONS.max() * 2.0**-23) <= 1


@each_case([name for name, fields in CASES.items() if "rotary_dim" in fields])
@pytest.mark.parametrize("element", [0, -1])
def test_a_change_outside_of_the_rotated_part_does_not_pass(measured, element):
    """Of one bit."""
    for name, y in measured.results().items():
        after = measured.results()
        after[name][..., measured.case.rotated :].view(f"u{y.itemsize}")[2, 1, element] ^= 1
        measured.refused(after, f"^{name}: elements outside the rotated part changed")


@each_case()
@pytest.mark.parametrize("element", [0, 63, -1])
def test_a_nan_does_not_pass(measured, element):
    for name in measured.results():
        after = measured.results()
        after[name][-1, 0, element] = np.nan
        measured.refused(after, f"^{name}")
