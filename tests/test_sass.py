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
    r"^_ZN4rope4cuda\d+(?P<kind>pipeline|general|cache_rotation|cos_sin)_kernelINS_\d+(?P<dtype>[A-Z]+\d+|Codes)E"
    r"(LNS_6LayoutE(?P<layout>\d)E)?(LNS_5AngleE(?P<angle>\d)E)?Li(?P<vec>\d+)E(?P<rest>(?:L[ib]\d+E|LNS\d*_4FormE\d+E)*)EEv"
)
OF_ATTENTION = re.compile(r"attention_kernel|backward_keys_kernel|(prepare|convert)_rows_kernel|sinks_kernel")
FORMS = ("Usual", "Tables", "Any")  # of kernels/pipeline/plan.h
USUAL, ANY = 0, 2
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", re.M)


class Kernel(NamedTuple):
    kind: str  # pipeline, general, cache_rotation or cos_sin
    key: tuple[str, str | None, str | None]  # dtype, layout and angle, where the kernel is compiled for each
    access_bytes: int
    variant: tuple[int, ...]  # the other template arguments
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
    """But for sm_90a, of attention, whose kernels have their own test."""
    listing = cuobjdump("-lelf", check=False) if tools() else ""  # fails where there is no device code
    return sorted(set(re.findall(r"\.(sm_\d+)\.cubin", listing)))


@functools.cache
def functions(architecture):
    """(name, machine code). Of sm_90a there may be those of sm_90 too, and the other way."""
    parts = re.split(r"^\s*Function : (\S+)$", cuobjdump("-sass", "-arch", architecture, check=False), flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


@functools.cache
def kernels(architecture):
    found = []
    for name, sass in functions(architecture):
        if OF_ATTENTION.search(name) or "decode_kernel" in name:
            continue
        match = KERNEL.match(name)
        assert match, f"a kernel that these tests do not know: {name}"
        access_bytes = int(match["vec"]) * ELEMENT_BYTES[match["dtype"]]
        variant = tuple(map(int, re.findall(r"(?:L[ib]|4FormE)(\d+)E", match["rest"])))
        found.append(Kernel(match["kind"], match.group("dtype", "layout", "angle"), access_bytes, variant,
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


def listed_codes(name):
    """The rows of a list of all that is compiled, cuda/src/kernels/*/plan.h; "element" is the access of one."""
    kind = name.removeprefix("k").removesuffix("Codes").lower()
    text = (ROOT / f"cuda/src/kernels/{kind}/plan.h").read_text()
    rows = re.findall(r"\{([^{}]+)\}", re.search(rf"{name}\[\] = \{{(.*?)\}};", text, re.S)[1])
    values = {"kElementBytes": "element", "false": 0, "true": 1, **{f"Form::k{x}": i for i, x in enumerate(FORMS)}}
    return [tuple(values[x] if x in values else int(x) for x in re.split(r",\s*", row.strip())) for row in rows]


def pipeline_variants():
    """(access, variant) of each code: with and without a dependent launch, but of any call once."""
    for access, unroll, reduce, quantised, many, form in listed_codes("kPipelineCodes"):
        for dependent in (1,) if form == ANY else (0, 1):
            yield access, (unroll, reduce, quantised, form, dependent, 1024 if many else 128)


VARIANTS = {
    "pipeline": lambda: list(pipeline_variants()),
    "general": lambda: [(access, tuple(flags)) for access, *flags in listed_codes("kGeneralCodes")],
    "cos_sin": lambda: [(16, ()), ("element", ())],
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_instance_is_there(architecture, kind):
    """Each listed combination, once, and no other."""
    expected = [
        (key, ELEMENT_BYTES[key[0]] if access == "element" else access, variant)
        for key in {(d, None, angle if kind == "cos_sin" else None) for d, _, angle in compiled_keys()}
        for access, variant in VARIANTS[kind]()
    ]
    present = [(k.key, k.access_bytes, k.variant) for k in kernels(architecture) if k.kind == kind]
    assert len(expected) == len(set(expected))
    assert sorted(present, key=str) == sorted(expected, key=str)


def test_every_rotation_in_a_cache_is_there(architecture):
    """Of each dtype with wide accesses and by elements; of codes, half as wide, also with dynamic scales and groups."""
    found = [k for k in kernels(architecture) if k.kind == "cache_rotation"]
    expected = {(key[:2], ELEMENT_BYTES[key[0]], (1, 0, 0)) for key in compiled_keys()}
    expected |= {(key[:2], 16, (4, 0, 0)) for key in compiled_keys()}
    for layout in {key[1] for key in compiled_keys()}:
        variants = [(8, (4, 0, 0)), (8, (1, 1, 0)), (8, (1, 1, 1)), (1, (1, 0, 0)), (1, (1, 1, 0)), (1, (1, 1, 1))]
        expected |= {(("Codes", layout), *variant) for variant in variants}
    present = [(k.key[:2], k.access_bytes, k.variant) for k in found]
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


def widths(kernel, kind):
    """Of its loads or stores of a kind, e.g. LDG."""
    return {width(opcode) for opcode in kernel.opcodes if opcode.startswith(f"{kind}.")}


def test_accesses_are_as_wide_as_they_should_be(architecture):
    """Rows move in accesses of the instance's width. Narrower loads fetch a position or the request of a token.

    Stages also load scales, weights, cos and sin, and store codes and scales; rows of cos and sin are only stored.
    """
    for k in kernels(architecture):
        stores, loads = widths(k, "STG"), widths(k, "LDG")
        if k.kind == "cache_rotation" and k.variant[2]:
            continue  # groups and blocks: byte by byte
        rows = set() if k.kind == "cos_sin" else {k.access_bytes}
        assert k.access_bytes in stores and rows <= loads, k
        if k.kind == "cos_sin":
            assert stores == {k.access_bytes} and loads <= {8, 4}, k


def test_a_pipeline_loads_and_stores_nothing_narrow(architecture):
    """Positions, slots and scales are of 4 bytes or two of them, whatever is not rows and weights."""
    for k in kernels(architecture):
        if k.kind != "pipeline":
            continue
        _, reduce, quantised, form, _, _ = k.variant
        stores, loads = widths(k, "STG"), widths(k, "LDG")
        codes = {k.access_bytes // ELEMENT_BYTES[k.key[0]]} if quantised else set()
        assert stores == {k.access_bytes} | codes | ({4} if reduce and quantised else set()), k
        if form == USUAL:
            weights = {min(16, 4 * k.access_bytes // ELEMENT_BYTES[k.key[0]])} if reduce else set()
            assert loads <= {k.access_bytes, 4} | weights, k


# Generic loads, of memory that the compiler does not know: words of the argument, and what stream a pair turns by.
GENERIC = {"pipeline": {8, 1}, "general": {8, 4, 1}, "cache_rotation": {16, 8, 4, 1}, "cos_sin": {16, 8, 4}}


def test_generic_accesses_are_those_of_arguments(architecture):
    for k in kernels(architecture):
        scales = {4} if k.kind == "pipeline" and k.variant[2] else set()  # their address may be null
        assert widths(k, "LD") <= GENERIC[k.kind] | scales, k
        assert not widths(k, "ST"), k


def test_nothing_is_in_local_memory(architecture):
    for k in kernels(architecture):
        assert not any(opcode.startswith(("LDL", "STL")) for opcode in k.opcodes), k


@pytest.mark.parametrize("architecture", architectures()[:1] or ["none"], indirect=True)
def test_attention_backward_kernels(architecture):
    """Each listed one, for sm_90a alone; the products of 64 queries and 128 keys, in two loops; no spills."""
    shape = re.compile(r".*backward_keys_kernelINS0_13BackwardShapeILi(\d+)EEENS_\d+(\w?F16)E")
    kernels = {}
    for name, sass in functions("sm_90a"):
        if OF_ATTENTION.search(name) and "attention_kernel" not in name:
            opcodes = Counter(INSTRUCTION.findall(sass))
            assert not any(opcode.startswith(("LDL", "STL")) for opcode in opcodes), name
            if match := shape.match(name):
                kernels[match.groups()] = opcodes
    text = (ROOT / "cuda/src/kernels/attention_backward/shape.h").read_text()
    dims = re.search(r"kBackwardCodes\[\] = \{([\d, ]+)\}", text)[1].split(", ")
    assert set(kernels) == set(itertools.product(dims, ("F16", "BF16")))
    for (dim, _), opcodes in kernels.items():
        products = sum(count for opcode, count in opcodes.items() if opcode.startswith("HGMMA"))
        assert products == 2 * (2 * int(dim) // 16 + 2 * 64 // 16 + 128 // 16)


@pytest.mark.parametrize("architecture", architectures()[:1] or ["none"], indirect=True)
def test_attention_kernels(architecture):
    """Each listed one, for sm_90a alone; products in the loops' two forms, the first block and the last; no spills."""
    shape = re.compile(r".*attention_kernelINS0_14AttentionShapeILi(\d+)ELi(\d+)EEENS_\d+(\w?F16)ELb([01])E")
    kernels = {
        shape.match(name).groups(): Counter(INSTRUCTION.findall(sass))
        for name, sass in functions("sm_90a")
        if "attention_kernel" in name
    }
    text = (ROOT / "cuda/src/kernels/attention/shape.h").read_text()
    rows = re.findall(r"\{(\d+), (\d+), (false|true)\}", text[text.index("kAttentionCodes[]") :])
    assert rows
    assert set(kernels) == {(q, v, d, str(int(cap == "true"))) for q, v, cap in rows for d in ("F16", "BF16")}
    for (head_dim, *_), opcodes in kernels.items():
        products = sum(count for opcode, count in opcodes.items() if opcode.startswith("HGMMA"))
        assert products == 3 * (int(head_dim) // 16 + 128 // 16)
        assert not any(opcode.startswith(("LDL", "STL")) for opcode in opcodes)


def test_decode_kernels(architecture):
    """Each listed one; rows of the cache by wide loads, products of the two forms, no spills."""
    shape = re.compile(r".*decode_kernelINS0_11DecodeShapeILNS_7OutTypeE(\d)ELi(\d+)ELi(\d)EEENS\w*?_(\d+)(\w*?)E")
    found = {}
    for name, sass in functions(architecture):
        if "decode_kernel" in name:
            assert shape.match(name), name
            kind, head_dim, row_tiles = map(int, shape.match(name).groups()[:3])
            found.setdefault((kind, head_dim, row_tiles), []).append(Counter(INSTRUCTION.findall(sass)))
    text = (ROOT / "cuda/src/kernels/decode/shape.h").read_text()
    types = {"kSame": 0, "kE4M3": 1, "kE5M2": 2}
    listed = {(types[kind], int(d), int(n)) for kind, d, n in re.findall(r"\{OutType::(\w+), (\d+), (\d)\}", text)}
    assert listed and set(found) == listed
    for (kind, head_dim, row_tiles), kernels in found.items():
        assert len(kernels) == (1 if kind else 2)  # of codes one serves both dtypes
        groups = 1 if head_dim * (1 if kind else 2) == 256 else 2  # of 16 keys
        for opcodes in kernels:
            products = sum(n for opcode, n in opcodes.items() if opcode.startswith("HMMA"))
            assert products == groups * (2 + row_tiles) * head_dim // 16
            assert {width(opcode) for opcode in opcodes if opcode.startswith("LDG")} >= {16}
            assert not any(opcode.startswith(("LDL", "STL")) for opcode in opcodes)
