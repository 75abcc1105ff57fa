"""``python -m pyrope`` and the stubs, of the installed package: run outside of the repository, which has sources."""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyrope
from kit.library import FOLDERS, ROOT
from kit.type_checker import mypy
from pyrope import _device


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
    assert python(tmp_path, "-m", "pyrope", "--help").stdout.startswith("usage: python -m pyrope [selftest")
    assert python(tmp_path, "-m", "pyrope", "--version").stdout == f"pyrope {pyrope.__version__}\n"
    done = python(tmp_path, "-m", "pyrope", "self-test")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("usage:")
    assert "unknown argument: self-test" in done.stderr


def test_selftest_passes(tmp_path):
    # -O: the checks may not rest on assert statements.
    done = python(tmp_path, "-O", "-m", "pyrope", "selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    without = f"passed on the CPU; CUDA not checked: {_device.why_not_cuda()}"
    said = without if _device.why_not_cuda() else "all checks passed"
    assert last == f"pyrope {pyrope.__version__}: {said}" and "FAILED" not in done.stdout


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
    """Neither numpy nor cuda-python: without site-packages, from a folder with nothing but the package."""
    (tmp_path / "pyrope").mkdir()
    for folder in FOLDERS:
        for path in [*folder.glob("*.py"), *folder.glob("*.so")]:
            link = tmp_path / "pyrope" / path.name
            if not link.exists():
                link.symlink_to(path)
    done = python(tmp_path, "-S", "-m", "pyrope", "selftest")
    assert done.returncode == 0, done.stdout + done.stderr


# ---- stubs

STUBS = sorted(Path(pyrope.__file__).parent.glob("*.pyi"))


def stub_functions():
    """Every public function and method of the stubs: {"module.Class.method": its definition}."""
    found = {}
    for path in STUBS:
        for node in ast.parse(path.read_text()).body:
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            found |= {f"{path.stem}.{prefix}{m.name}": m for m in members if isinstance(m, ast.FunctionDef)
                      and not {"property", "overload"} & {ast.unparse(d) for d in m.decorator_list}
                      and not (prefix or m.name).startswith("_")}  # fmt: skip
    return found


def parameters_of(definition):
    """[(name, kind, default)] of a function's syntax tree, without self; keywords, whose order says nothing, sorted."""
    arguments, kind = definition.args, inspect.Parameter
    given = [*arguments.posonlyargs, *arguments.args]
    missing = [None] * (len(given) - len(arguments.defaults))
    found = [(a, kind.POSITIONAL_OR_KEYWORD, d) for a, d in zip(given, missing + arguments.defaults, strict=True)]
    found += [(a, kind.KEYWORD_ONLY, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    found += [(arguments.kwarg, kind.VAR_KEYWORD, None)] if arguments.kwarg else []
    return in_order((a.arg, k, ast.literal_eval(d) if d else kind.empty) for a, k, d in found)


def in_order(parameters):
    found = [p for p in parameters if p[0] not in ("self", "cls")]
    named = inspect.Parameter.KEYWORD_ONLY
    return [p for p in found if p[1] != named], sorted((p for p in found if p[1] == named), key=lambda p: p[0])


def real_parameters(function):
    return in_order((p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", stub_functions())
def test_stub_signature(name):
    """The stub has the parameters and defaults that the module has."""
    module, *path = name.removesuffix(".__init__").split(".")
    real = functools.reduce(getattr, path, importlib.import_module(f"pyrope.{module}"))
    stub = parameters_of(stub_functions()[name])
    if path[-1] == "inverse":  # passes all that it is given on to apply, as inverse=True
        real = getattr(importlib.import_module(f"pyrope.{module}"), path[0]).apply
        stub[1].append(("inverse", inspect.Parameter.KEYWORD_ONLY, False))
        stub[1].sort(key=lambda p: p[0])
    assert stub == real_parameters(real)


CLASSES = pytest.mark.parametrize("cls", [pyrope.Rope, pyrope.FusedRope])


@CLASSES
def test_signature_of_the_constructor(cls):
    """What help() shows is in the docstring, where tools/stubs.py writes it."""
    source = "".join(path.read_text() for path in (ROOT / "pyrope").glob("*.pyx"))
    text = re.search(rf"^cdef class {cls.__name__}\b.*?def (__init__\(.*?\)) ->", source, re.S | re.M).group(1)
    assert parameters_of(ast.parse(f"def {text}: ...").body[0]) == real_parameters(cls)
    assert not cls.__doc__.startswith(cls.__name__)


@CLASSES
def test_stub_is_complete(cls):
    public = {name for name in vars(cls) if not name.startswith("_")}
    classes = [node for path in STUBS for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    body = next(node for node in classes if node.name == cls.__name__).body
    names = {
        m.name if isinstance(m, ast.FunctionDef) else m.target.id
        for m in body
        if hasattr(m, "name") or hasattr(m, "target")
    }
    assert names - {"__init__"} == public


def test_stubtest(tmp_path):
    """Every stub against its module: mypy's own comparison. pyrope.torch and pyrope.compat have none, and
    torch may be missing."""
    allowed = tmp_path / "allowed"
    allowed.write_text(r"pyrope\.(libroperope|typing\..*|_\w+\.__(test|pyx_capi)__|(torch|compat)(\..*)?)")
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\n[mypy-torch.*]\nignore_missing_imports = True\n")
    options = ["--allowlist", str(allowed), "--mypy-config-file", str(config)]
    done = mypy(tmp_path, "pyrope", *options, module="mypy.stubtest")
    assert done.returncode == 0, done.stdout + done.stderr


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
    done = mypy(tmp_path, "--strict", str(program))
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "error:" in line}
    first = good.count("\n") + 1
    assert lines == set(range(first, first + len(bad))), done.stdout + done.stderr
