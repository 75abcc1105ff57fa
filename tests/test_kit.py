"""How the tests are put together."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from kit import hf, type_checker

TESTS = Path(__file__).parent
MODULES = {path: ast.parse(path.read_text()) for path in [*TESTS.glob("*.py"), *TESTS.glob("kit/*.py")]}


def imported(tree):
    """Names of the modules that are imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


def test_no_test_module_is_imported():
    """What tests share is in kit/."""
    alone = {path.stem for path in TESTS.glob("*.py")}
    found = [(path.name, name) for path, tree in MODULES.items() for name in imported(tree) if name in alone]
    assert found == [] and len(MODULES) > 30


def test_the_reference_shares_nothing_with_the_library():
    names = {name.partition(".")[0] for name in imported(MODULES[TESTS / "kit/reference.py"])}
    assert names == {"fractions", "functools", "itertools", "ml_dtypes", "mpmath", "numpy"}


def test_no_helper_is_written_twice():
    """By any name."""
    places = defaultdict(list)
    for path, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("test_"):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                places["".join(map(ast.dump, [*node.decorator_list, *body]))].append((path.name, node.name))
    assert [found for found in places.values() if len(found) > 1] == []


def test_modules_are_short():
    assert [path.name for path in MODULES if len(path.read_text().splitlines()) > 450] == []


def test_what_ci_requires_does_not_skip(monkeypatch, tmp_path):
    monkeypatch.setattr(hf, "version_of", lambda package: "1.0")
    for required, refused in ((False, pytest.skip.Exception), (True, AssertionError)):
        monkeypatch.setattr(hf, "REQUIRED", required)
        with pytest.raises(refused, match=r"transformers is 1\.0"):
            hf.require_transformers()
    monkeypatch.setattr(type_checker, "find_spec", lambda name: None)
    monkeypatch.setattr(type_checker, "REQUIRED", False)
    with pytest.raises(pytest.skip.Exception, match="mypy is missing"):
        type_checker.mypy(tmp_path, "--version")
    monkeypatch.setattr(type_checker, "REQUIRED", True)
    assert type_checker.mypy(tmp_path, "--version", module="no_such_module").returncode == 1
