"""What bench/ refuses before it measures anything, and which results it takes for right."""

import importlib.util
import json
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


@pytest.mark.parametrize(
    ("program", "arguments", "text"),
    [
        ("run.py", ["--num-threads", "-1"], "--num-threads: invalid count value: '-1'"),
        ("run.py", ["--json", "no/such/folder.json"], "--json: no/such is not a folder"),
        ("compare.py", ["missing.json", RESULTS], "missing.json"),
        ("compare.py", [RESULTS, __file__], "not the results of run.py"),
    ],
)
def test_refused(program, arguments, text):
    done = bench(program, *arguments)
    assert done.returncode == 2 and done.stdout == "" and text in done.stderr


@pytest.mark.parametrize(("field", "value"), [("name", "NVIDIA B200"), ("threads", 7)])
def test_compare_names_other_devices(field, value, tmp_path):
    record = json.loads(RESULTS.read_text())
    record["device"][field] = value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    assert f"NOT COMPARABLE: the device's {field}: " in bench("compare.py", RESULTS, other).stdout
    assert "NOT COMPARABLE" not in bench("compare.py", other, other).stdout


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
    """bench/reference.py, which is not the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        spec = importlib.util.spec_from_file_location("bench_reference", BENCH / "reference.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


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
