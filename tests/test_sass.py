"""The machine code of the kernels, per architecture: wide accesses, no spills, nothing missing.

$ROPEROPE_LIBRARY names the library to read; default: the installed one. Reading it takes cuobjdump and nvdisasm, from
the CUDA toolkit or from PyPI (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm). Without them, and for a library without
CUDA, the tests skip; with PYROPE_REQUIRE_CUDA_BUILD=1 they fail.
"""

import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.library import INSTALLED, ROOT

LIBRARY = Path(os.environ.get("ROPEROPE_LIBRARY") or INSTALLED / "libroperope.so")
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Codes": 1}

KERNEL = re.compile(
    r"^_ZN4rope4cuda\d+(?P<kind>rotate|pipeline|cache_rotation|cos_sin)_kernelINS_\d+(?P<dtype>[A-Z]+\d+|Codes)E"
    r"(LNS_6LayoutE(?P<layout>\d)E)?(LNS_5AngleE(?P<angle>\d)E)?Li(?P<vec>\d+)E(?P<rest>.*)$"
)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", re.M)


class Kernel(NamedTuple):
    kind: str  # rotate, pipeline, cache_rotation or cos_sin
    key: tuple[
        str, str | None, str | None
    ]  # dtype, layout (rows of cos and sin have none), angle (one code for all in a pipeline)
    access_bytes: int
    variant: str  # the other template arguments
    opcodes: Counter[str]


@functools.cache
def tools():
    """PATH with cuobjdump and nvdisasm, or None."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [str(Path(place) / "cu13/bin") for place in (spec.submodule_search_locations if spec else [])]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *wheels, "/usr/local/cuda/bin"])
    return path if shutil.which("cuobjdump", path=path) and shutil.which("nvdisasm", path=path) else None


def cuobjdump(*arguments, check=True):
    command = [shutil.which("cuobjdump", path=tools()), *arguments, str(LIBRARY)]
    environment = os.environ | {"PATH": tools()}
    return subprocess.run(command, capture_output=True, text=True, check=check, env=environment).stdout


@functools.cache
def architectures():
    listing = cuobjdump("-lelf", check=False) if tools() else ""  # fails where there is no device code
    return sorted(set(re.findall(r"\.(sm_\w+)\.cubin", listing)))


@functools.cache
def kernels(architecture):
    parts = re.split(r"^\s*Function : (\S+)$", cuobjdump("-sass", "-arch", architecture), flags=re.M)
    found = []
    for name, sass in zip(parts[1::2], parts[2::2], strict=True):
        match = KERNEL.match(name)
        assert match, f"a kernel that these tests do not know: {name}"
        access_bytes = int(match["vec"]) * ELEMENT_BYTES[match["dtype"]]
        found.append(Kernel(match["kind"], match.group("dtype", "layout", "angle"), access_bytes, match["rest"],
                            Counter(INSTRUCTION.findall(sass))))  # fmt: skip
    return found


@pytest.fixture(params=architectures() or ["none"])
def architecture(request):
    if request.param != "none":
        return request.param
    reason = "cuobjdump or nvdisasm is missing" if not tools() else f"{LIBRARY.name} holds no machine code"
    if os.environ.get("PYROPE_REQUIRE_CUDA_BUILD") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def compiled_keys():
    """The dtypes that cuda/src/operations/ lists, with every layout and angle that it has constants for."""
    operations, call = (ROOT / f"cuda/src/operations/{name}.h" for name in ("operations", "call"))
    listed = re.search(r"#define ROPE_FOR_EACH_DTYPE\(X\) (.*)", operations.read_text())[1]
    dtypes = re.findall(r"X\((\w+)\)", listed)
    layouts, angles = (len(re.findall(rf"Constant<{name}::", call.read_text())) for name in ("Layout", "Angle"))
    return set(itertools.product(dtypes, map(str, range(layouts)), map(str, range(angles))))


WIDTHS = {"rotate": {16, 8, "element"}, "pipeline": {16, 8, "element"}, "cos_sin": {16, "element"}}


@pytest.mark.parametrize("kind", WIDTHS)
def test_every_instance_is_there(architecture, kind):
    """Each listed combination, and each of them with the same variants."""
    found = [k for k in kernels(architecture) if k.kind == kind]
    has_layout, has_angle = kind != "cos_sin", kind != "pipeline"
    keys = {(d, layout if has_layout else None, angle if has_angle else None) for d, layout, angle in compiled_keys()}
    assert {k.key for k in found} == keys
    variants = {}
    for k in found:
        width = "element" if k.access_bytes == ELEMENT_BYTES[k.key[0]] else k.access_bytes
        variant = re.sub(r"^Li\d+E(?=.*SectionFormE[12])", "", k.variant)  # heads in flight: fewer of float32
        variants.setdefault(k.key, []).append((width, variant.partition("EEv")[0]))
    first = variants[min(key for key in keys if key[0] == "F32")]
    expected = sorted(map(str, first))
    assert len(set(expected)) == len(expected)
    assert {width for width, _ in first} == WIDTHS[kind]
    for key, present in variants.items():
        assert sorted(map(str, present)) == expected, key


def test_every_rotation_in_a_cache_is_there(architecture):
    """Of each dtype with wide accesses and by elements; of codes, half as wide, also with dynamic scales."""
    found = [k for k in kernels(architecture) if k.kind == "cache_rotation"]
    expected = {(key[:2], ELEMENT_BYTES[key[0]], "Li1ELb0") for key in compiled_keys()}
    expected |= {(key[:2], 16, "Li4ELb0") for key in compiled_keys()}
    for layout in {key[1] for key in compiled_keys()}:
        variants = [(8, "Li4ELb0"), (8, "Li1ELb1"), (1, "Li1ELb0"), (1, "Li1ELb1")]
        expected |= {(("Codes", layout), *variant) for variant in variants}
    present = [(k.key[:2], k.access_bytes, k.variant.partition("EEEv")[0]) for k in found]
    assert sorted(present) == sorted(expected)


def test_the_same_kernels_on_every_architecture(architecture):
    first = kernels(architectures()[0])
    assert [k[:4] for k in kernels(architecture)] == [k[:4] for k in first]


def width(opcode):
    """Bytes that a thread moves."""
    for part, size in {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}.items():
        if part in opcode.split("."):
            return size
    return 4


def test_accesses_are_as_wide_as_they_should_be(architecture):
    """Rows move in accesses of the instance's width. Narrower loads fetch a position or the request of a token.

    A pipeline, or a rotation in a cache, also loads scales, weights, cos and sin, and stores codes and scales; rows of
    cos and sin are only stored.
    """
    for k in kernels(architecture):
        stores = {width(opcode) for opcode in k.opcodes if opcode.startswith("STG")}
        loads = {width(opcode) for opcode in k.opcodes if opcode.startswith("LDG")}
        rows = set() if k.kind == "cos_sin" else {k.access_bytes}
        assert k.access_bytes in stores and rows <= loads, k
        if k.kind in ("rotate", "cos_sin"):
            assert stores == {k.access_bytes} and loads <= rows | {8, 4}, k
        # Loads of memory that the compiler does not know are those of words in the arguments.
        assert not any(opcode.startswith("ST.") for opcode in k.opcodes), k


def test_nothing_is_in_local_memory(architecture):
    for k in kernels(architecture):
        assert not any(opcode.startswith(("LDL", "STL")) for opcode in k.opcodes), k
