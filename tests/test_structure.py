"""The shape of the sources: how long files and functions are, and that adding something touches as few files as
CONTRIBUTING says. Counts stand for what exists: the files that know a scaling are those that a new one would touch.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("cuda", "pyrope")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".c", ".cpp", ".h", ".cu", ".cuh", ".py", ".pyx", ".pxd", ".pyi"}
)
GENERATED = {"_capi.pxd", *(path.name for path in SOURCES if path.suffix == ".pyi")}  # by tools/, from other files


def test_files_are_short():
    """But for the public header, which is the whole interface, and what is made from others."""
    assert len(SOURCES) > 80
    written = [path for path in SOURCES if path.name not in GENERATED]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in written}
    assert lengths.pop("cuda/include/roperope/roperope.h") < 600
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def c_functions(text):
    """(first line, lines) of each block that ends with a brace in the first column."""
    start = None
    for number, line in enumerate(text.splitlines()):
        if start is None and re.match(r"[^\s#/}].*\{$|\s+\S.*\) (const )?\{$", line) and "namespace" not in line:
            start = number
        if line.startswith("}") and start is not None:
            yield start, number - start + 1
            start = None
        if line.startswith("extern"):
            start = None


def python_functions(text):
    """(first line, lines) of each def, without its docstring."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        m = re.match(r"( *)(?:cp?def|def) .*\(", line)
        if not m or line.endswith(";"):
            continue
        indent, end = len(m.group(1)), start + 1
        while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
            end += 1
        body = re.sub(r'""".*?"""', "", "\n".join(lines[start:end]), flags=re.S)
        yield start, len(body.rstrip().splitlines())


def test_functions_are_short():
    long, count = {}, 0
    for path in SOURCES:
        find = python_functions if path.suffix.startswith(".py") else c_functions
        for start, length in find(path.read_text()):
            count += 1
            # A struct is as long as it is; what it does is in its members.
            first = path.read_text().splitlines()[start]
            if length > 100 and not re.match(r"(struct|class|cdef class|enum|typedef)\b", first):
                long[f"{path.relative_to(ROOT)}:{start + 1}"] = length
    assert count > 500 and long == {}


def knowing(pattern):
    """The sources that know something, without those that are generated and without tests."""
    return {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name not in GENERATED
        and "tests" not in path.relative_to(ROOT).parts
        and re.search(pattern, path.read_text())
    }


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        (r"(?i)\b(ROPE_SCALING_)?PROPORTIONAL\b", 4),  # a scaling
        (r"\bE5M2\b|OUT_E5M2", 4),  # a stored type
        (
            r"weight_bias",
            7,
        ),  # an option of a stage; one is pyrope/torch/_norms.py, since the core has no backward of it
        (r"q_nope_dim", 6),
    ],
)
def test_what_knows_it(pattern, most):
    found = {file for file in knowing(pattern) if not re.search(r"__init__|/_?hf|/compat/", file)}  # which translate
    assert 1 < len(found) <= most, sorted(found)


OPERATIONS = re.findall(r"^  X\((\w+), \w+\)", (ROOT / "cuda/src/operations/operations.h").read_text(), re.M)


def test_an_operation_is_registered_once():
    """Its name stands in the list, where it is compiled and called; nothing else lists it."""
    assert OPERATIONS == [
        "pipeline", "rotate_cache", "build_cos_sin", "attention", "attention_backward", "decode",
    ]  # fmt: skip
    for name in OPERATIONS:
        # `rope::cuda::pipeline<` is an instance, `Outcome pipeline(` its definition, `operations->pipeline` its call.
        found = knowing(rf"\bcuda::{name}<|Outcome {name}[(<]|operations->{name}\b|X\({name},")
        folders = {str(Path(file).parent).removesuffix("/instances") for file in found}
        assert len(folders) <= 4, (name, sorted(found))


def test_nothing_is_left_over():
    """No source that no build reads."""
    listed = "".join((ROOT / folder / "CMakeLists.txt").read_text() for folder in ("cuda", "cuda/tests", "pyrope"))
    tracked = subprocess.run(
        ["git", "ls-files", "cuda", "pyrope"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for file in tracked.stdout.split():
        path = Path(file)
        if path.suffix in {".cpp", ".cu", ".c"} and "consumer" not in file:
            assert path.name in listed or path.stem in listed, file
        if path.suffix in {".h", ".cuh"} and "include" not in path.parts:
            users = [s for s in SOURCES if re.search(rf'#include ".*\b{re.escape(path.name)}"', s.read_text())]
            assert users, file
