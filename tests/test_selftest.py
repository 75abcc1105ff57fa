"""``python -m pyrope`` and the stubs, of the installed package: run outside of the repository, which has sources."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyrope


def python(tmp_path, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)


def test_description(tmp_path):
    done = python(tmp_path, "-m", "pyrope")
    assert done.returncode == 0 and done.stderr == ""
    assert pyrope.__version__ in done.stdout and pyrope.build_info() in done.stdout
    assert done.stdout.count("yes") == len(pyrope.supported())
    assert done.stdout.count("\ndevice ") == pyrope.device_count()
    assert ("devices  none: " in done.stdout) == (pyrope.device_count() == 0)


def test_usage(tmp_path):
    assert python(tmp_path, "-m", "pyrope", "--help").stdout.startswith("usage: python -m pyrope [selftest]")
    done = python(tmp_path, "-m", "pyrope", "self-test")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("usage:")
    assert "unknown argument: self-test" in done.stderr


def test_selftest_passes(tmp_path):
    # -O: the checks may not rest on assert statements.
    done = python(tmp_path, "-O", "-m", "pyrope", "selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"pyrope {pyrope.__version__}: all checks passed\n") and "FAILED" not in done.stdout
    assert ("not checked: " in done.stdout) == (pyrope.device_count() == 0)


# An installation that turns by slightly too much, one that forgets a token, and one that cannot run.
FAULTS = {
    "angle": "rope.apply(q, k, n, positions=positions, **rest) if n == 300 else rope.apply(q, k, n, offset=1, **rest)",
    "output": "rope.apply(q, k, n - 1, positions=positions, **rest)",
    "error": "exec('raise pyrope.CudaError(\"launch failed\")')",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_selftest_fails(tmp_path, fault):
    program = f"""
import sys, pyrope
from pyrope import __main__

class Rope:
    def __init__(self, *arguments, **options):
        self.rope = pyrope_rope(*arguments, **options)
    def apply(self, q, k, n, *, positions, **rest):
        rope = self.rope
        {FAULTS[fault]}
    inverse = apply

pyrope_rope, pyrope.Rope = pyrope.Rope, Rope
sys.exit(__main__.main(["selftest"]))
"""
    done = python(tmp_path, "-c", program)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  " in done.stdout and "checks FAILED\n" in done.stdout


def test_needs_only_python(tmp_path):
    """Neither numpy nor cuda-python: without site-packages, from the package's own folder."""
    link = tmp_path / "pyrope"
    link.symlink_to(Path(pyrope.__file__).parent)
    done = python(tmp_path, "-S", "-m", "pyrope", "selftest")
    assert done.returncode == 0, done.stdout + done.stderr


# ---- stubs

STUB = Path(pyrope.__file__).with_name("_rope.pyi")


def stub_signatures():
    """Parameters of every public function in the stub: {name: ast.arguments}."""
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + m.name: m for m in members if isinstance(m, ast.FunctionDef) and not m.decorator_list}
    return {name: node.args for name, node in found.items() if not name.startswith("_") and name != "Rope.inverse"}


def defaults(arguments):
    """{parameter: default or None} of an ast.arguments, keywords with the rest."""
    given = [*arguments.posonlyargs, *arguments.args]
    pairs = list(zip(reversed(given), reversed(arguments.defaults), strict=False))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    values = {a.arg: ast.literal_eval(d) if d else inspect.Parameter.empty for a, d in pairs}
    names = [a.arg for a in [*given, *arguments.kwonlyargs] if a.arg != "self"]
    return {name: values.get(name, inspect.Parameter.empty) for name in names}


@pytest.mark.parametrize("name", stub_signatures())
def test_stub_signature(name):
    """The stub has the parameters and defaults that the module has."""
    stub = stub_signatures()[name]
    real = inspect.signature(eval(f"pyrope._rope.{name.removesuffix('.__init__')}")).parameters.values()
    assert defaults(stub) == {p.name: p.default for p in real if p.name != "self"}
    assert [a.arg for a in stub.kwonlyargs] == [p.name for p in real if p.kind is p.KEYWORD_ONLY]


CLASSES = pytest.mark.parametrize(("cls", "module"), [(pyrope.Rope, "_rope"), (pyrope.FusedRope, "_fused")])


@CLASSES
def test_signature_of_the_constructor(cls, module):
    """What help() shows is in the docstring, where tools/stubs.py writes it."""
    source = (Path(__file__).parent.parent / f"pyrope/{module}.pyx").read_text()
    text = re.search(r"def (__init__\(.*?\)) ->", source, re.S).group(1)
    written = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    assert defaults(ast.parse(f"def {text}: ...").body[0].args) == written
    assert not cls.__doc__.startswith(cls.__name__)


@CLASSES
def test_stub_is_complete(cls, module):
    public = {name for name in vars(cls) if not name.startswith("_")}
    stub = ast.parse(STUB.with_name(f"{module}.pyi").read_text())
    body = next(n for n in stub.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__).body
    names = {
        m.name if isinstance(m, ast.FunctionDef) else m.target.id
        for m in body
        if hasattr(m, "name") or hasattr(m, "target")
    }
    assert names - {"__init__"} == public


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed")
def test_stubtest(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text(r"pyrope\.(libroperope|typing\..*|_(rope|fused|library)\.__(test|pyx_capi)__)")
    done = python(tmp_path, "-m", "mypy.stubtest", "pyrope", "--allowlist", str(allowed))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed")
def test_types_of_a_user(tmp_path):
    """What a strict user writes passes, and common mistakes do not."""
    good = """
import numpy as np
import pyrope

rope = pyrope.Rope(64, 2, 1, scaling=pyrope.Llama3(), dtype="float32", device="cpu", rotary_dim=np.int64(32))
q = np.zeros((3, 2, 64), np.float32)
rope.apply(q, None, positions=np.arange(3))
rope.apply(q.ctypes.data, None, 3, q_strides=(128, 64), stream=None)
pyrope.Rope(64, 2, 1, inv_freq=[1.0] * 32)
pyrope.Rope(64, 2, 1, inv_freq=np.ones(32))
largest: float = rope.inv_freq.max() * rope.attention_factor
"""
    bad = [
        "rope.apply(1.0)",
        "rope.apply(q, stream='0')",
        "rope.apply('q')",
        "rope.head_dim = 3",
        "rope.theta = 1.0",
        "pyrope.Rope(64, 2, 1, layout='neo')",
        "pyrope.Rope(64, 2, 1, 64)",
        "pyrope.Rope(64, 2, 1, scaling=8.0)",
    ]
    program = tmp_path / "user.py"
    program.write_text(good + "\n".join(bad) + "\n")
    done = python(tmp_path, "-m", "mypy", "--strict", str(program))
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error:" in line}
    first = good.count("\n") + 1
    assert lines == set(range(first, first + len(bad))), done.stdout + done.stderr
