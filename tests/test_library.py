"""The built library as its users meet it: symbols, dependencies, header, C interface, floating point, import.

Needs gcc and, for the C project, cmake; what lacks its tool is skipped.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import pyrope
from kit.library import INSTALLED, ROOT
from kit.reference import DTYPES

HEADER = ROOT / "cuda/include/roperope/roperope.h"
SEARCH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def tool(name):
    found = shutil.which(name, path=SEARCH)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


# ---- shared objects


def test_only_the_interface_is_exported():
    symbols = run(tool("nm"), "-D", "--defined-only", "--format=posix", INSTALLED / "libroperope.so").splitlines()
    exported = {line.split()[0] for line in symbols}
    headers = "".join(path.read_text() for path in HEADER.parent.glob("*.h"))
    assert exported == set(re.findall(r"^ROPEROPE_API [^;(]*?(\w+)\(", headers, re.M))


@pytest.mark.parametrize("path", sorted(INSTALLED.glob("*.so")), ids=lambda path: path.name.partition(".")[0])
def test_dependencies(path):
    """The C and C++ runtimes alone: no CUDA, which is linked statically, and no framework."""
    dynamic = run(tool("readelf"), "-d", path)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    allowed = r"(lib(stdc\+\+|m|gcc_s|c|pthread|dl|rt)|ld-linux[\w-]*)\.so\.\d+|libroperope\.so"
    assert needed and [name for name in needed if not re.fullmatch(allowed, name)] == []
    assert set(re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)) <= {"$ORIGIN"}


# ---- the header


@pytest.mark.parametrize(("compiler", "language"), [("gcc", "c99"), ("g++", "c++17")])
def test_header_compiles(compiler, language, tmp_path):
    source = tmp_path / ("twice.c" if compiler == "gcc" else "twice.cpp")
    source.write_text("#include <roperope/roperope.h>\n" * 2 + "int main(void) { return (int)rope_version(); }\n")
    run(tool(compiler), f"-std={language}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
        f"-I{ROOT / 'cuda/include'}", source)  # fmt: skip


# ---- the C library by itself


def configure(build, cuda, *options):
    """Makes a build folder of the library without Python."""
    tool("g++")
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH) else []
    run(tool("cmake"), "-S", ROOT, "-B", build, *generator, f"-DROPEROPE_CUDA={cuda}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options, env=os.environ | {"PATH": SEARCH})  # fmt: skip
    return build


@pytest.fixture(scope="module")
def standalone(tmp_path_factory):
    """Build folder of the library without CUDA, with the C tests, built."""
    build = configure(tmp_path_factory.mktemp("standalone"), "OFF", "-DROPEROPE_TESTS=ON", "-DROPEROPE_WERROR=ON")
    run(tool("cmake"), "--build", build, "--parallel", "2")
    return build


def test_c_tests(standalone):
    """cuda/tests: the layout of the ABI, calls from C, and the plans of the kernels."""
    listing = run(tool("ctest"), "--test-dir", standalone, "--output-on-failure")
    assert re.search(r"100% tests passed.* out of 13\b", listing), listing


def test_installed_library_serves_a_c_project(standalone, tmp_path):
    prefix, build = tmp_path / "prefix", tmp_path / "build"
    run(tool("cmake"), "--install", standalone, "--prefix", prefix)
    consumer = ROOT / "cuda/tests/consumer"
    run(tool("cmake"), "-S", consumer, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run(tool("cmake"), "--build", build)
    assert "no CUDA" in run(build / "consumer")


def test_c_example_by_pkg_config(standalone, tmp_path):
    """As the file itself says, wherever the folder is."""
    prefix, moved = tmp_path / "prefix", tmp_path / "moved"
    run(tool("cmake"), "--install", standalone, "--prefix", prefix)
    prefix.rename(moved)
    source = ROOT / "examples/rotate.c"
    command = re.search(r"^ \*   (cc .*)$", source.read_text(), re.M).group(1)
    tool("pkg-config")
    shutil.copy(source, tmp_path)
    [folder] = moved.glob("lib*/**/pkgconfig")
    said = run("bash", "-c", command, cwd=tmp_path, env=os.environ | {"PKG_CONFIG_PATH": str(folder)})
    assert said == "(1, 1) at position 1000 is (-0.264500, 1.389259), at 1001 (-1.311931, 0.528050)\n"


# ---- floating point

FAST_MATH = r"fast[-_]math|-Ofast|-funsafe|-ffinite|-fassociative|-freciprocal|-fno-signed|-ftz|-prec-(div|sqrt)=false"


def commands(build, folder=ROOT):
    """(source, words of the command) of everything below a folder that is compiled."""
    entries = json.loads((build / "compile_commands.json").read_text())
    found = [(Path(entry["file"]), shlex.split(entry["command"])) for entry in entries]
    return [(path, words) for path, words in found if path.is_relative_to(folder)]


def last(words, option):
    """The value of the last `option=value`, by one dash or two, which is the one that counts."""
    values = [word.partition("=")[2] for word in words if word.lstrip("-").partition("=")[0] == option]
    return values[-1] if values else None


def test_no_fast_math_in_the_build(standalone):
    for _, words in commands(standalone):
        assert not re.search(FAST_MATH, " ".join(words))
    for path in [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *ROOT.glob("*/CMakeLists.txt")]:
        assert not re.search(FAST_MATH, path.read_text()), path


SOURCES = ROOT / "cuda/src"


@pytest.mark.parametrize("cuda", ["OFF", "EMULATED", "ON"])
def test_no_multiply_add_is_formed(cuda, tmp_path):
    """Contraction is off for every source and each set of instructions that it is compiled for, by g++ and by nvcc.

    Configured only, which says what a build would compile.
    """
    if cuda == "ON":
        tool("nvcc")
    compiled = commands(configure(tmp_path / cuda, cuda, "-DCMAKE_CUDA_ARCHITECTURES=90-real"), SOURCES)
    by_nvcc = [(path, words) for path, words in compiled if Path(words[0]).name == "nvcc"]
    by_host = [entry for entry in compiled if entry not in by_nvcc]
    assert by_host and bool(by_nvcc) == (cuda == "ON")
    assert [path for path, words in by_host if last(words, "ffp-contract") != "off"] == []
    assert [path for path, words in by_nvcc if last(words, "fmad") != "false"] == []
    assert [words for _, words in compiled if re.search(FAST_MATH, " ".join(words))] == []
    if cuda == "ON":  # nothing has escaped this: together with what takes the place of CUDA, it is all that there is
        without = commands(configure(tmp_path / "OFF", "OFF"), SOURCES)
        without += commands(configure(tmp_path / "part", "EMULATED", "-DROPEROPE_ATTENTION=OFF"), SOURCES)
        sources = {path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".cu")}
        assert {path for path, _ in compiled + without} == sources
        assert {path for path, _ in by_nvcc} == {path for path in sources if path.suffix == ".cu"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_are_kept(dtype):
    rope = pyrope.Rope(head_dim=64, num_q_heads=1, num_k_heads=0, dtype=dtype, device="cpu")
    storage = np.uint32 if dtype == "float32" else np.uint16
    bits = np.arange(1, 65, dtype=storage).reshape(1, 1, 64)
    x = bits.view(DTYPES[dtype]).copy()
    rope.apply(x)  # at position 0
    assert (x.view(storage) == bits).all()

    x = bits.view(DTYPES[dtype]).copy()
    rope.apply(x, offset=1)
    exact = bits.astype(np.float64)  # in units of the smallest denormal
    angle = rope.inv_freq
    first, second = exact[..., :32], exact[..., 32:]
    expected = np.concatenate([first * np.cos(angle) - second * np.sin(angle),
                               second * np.cos(angle) + first * np.sin(angle)], axis=-1)  # fmt: skip
    got = x.view(storage).astype(np.int64)
    sign = 1 << (31 if dtype == "float32" else 15)
    got = np.where(got & sign, sign - got, got)
    assert np.abs(got - expected).max() <= 1.5  # two roundings for float32: the product is denormal too


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans(dtype):
    rope = pyrope.Rope(head_dim=4, num_q_heads=1, num_k_heads=0, theta=1.0, dtype=dtype, device="cpu")
    inf, nan = np.inf, np.nan
    x = np.array([[inf, 1, 1, -inf], [nan, 1, 1, nan], [inf, 1, inf, 1]], DTYPES[dtype]).reshape(3, 1, 4)
    rope.apply(x, positions=np.full(3, 1))  # both pairs, (0, 2) and (1, 3), turn by one radian
    expected = [[inf, inf, inf, -inf], [nan, nan, nan, nan], [nan, x[2, 0, 1], inf, x[2, 0, 3]]]
    np.testing.assert_array_equal(x[:, 0].astype(np.float64), np.array(expected, np.float64))
    assert np.isfinite(x[2, 0, [1, 3]].astype(np.float64)).all()


# ---- import

IMPORT = """
import sys, time
start = time.process_time()  # another process does not count
import pyrope
seconds = time.process_time() - start
heavy = {"cuda", "cupy", "jax", "ml_dtypes", "numpy", "torch"} & {name.partition(".")[0] for name in sys.modules}
# A library linked with fast math would have set flush-to-zero for the process.
print(seconds, 2.0**-1030 * 0.5 * 2 == 2.0**-1030, *sorted(heavy))
"""


def test_import_is_light():
    """Under 30 ms of a processor, as the least of several runs."""
    runs = [run(sys.executable, "-P", "-c", IMPORT).split() for _ in range(7)]
    assert {tuple(words[1:]) for words in runs} == {("True",)}
    assert min(float(words[0]) for words in runs) < 0.030


@pytest.mark.parametrize("installed", [True, False])
def test_import_in_a_checkout(installed, tmp_path):
    """The sources, found first, take the compiled modules from the installed package, and say so without one."""
    shutil.copytree(ROOT / "pyrope", tmp_path / "pyrope", ignore=lambda _, names: [n for n in names if ".so" in n])
    sites = INSTALLED.parent if installed else ""
    program = """
import sys, pyrope
compiled = [x.__file__ for name, x in sys.modules.items() if name.startswith("pyrope.") and x.__file__.endswith(".so")]
print(pyrope.__file__, *{path.rpartition("/")[0] for path in compiled}, pyrope.Rope(8, 1, 1, device="cpu"))
"""
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True,
                          check=False, env=os.environ | {"PYTHONPATH": str(sites)})  # fmt: skip
    if installed:
        assert done.stdout.startswith(f"{tmp_path}/pyrope/__init__.py {INSTALLED} Rope("), done.stderr
    else:
        assert "ImportError: pyrope's compiled modules are missing; install it" in done.stderr


# ---- layers of the sources

FLOORS = {"math": 0, "frequencies": 1, "operations": 1, "cpu": 2, "kernels": 2, "api": 3}


def test_includes_go_downwards():
    """math, then what operations work on, then the backends, then the C interface; the backends are apart."""
    source = ROOT / "cuda/src"

    def folder(path):
        parts = path.relative_to(source).parts
        return parts[0] if len(parts) > 1 else ""

    wrong, count = [], 0
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        here = folder(path)
        for quote, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
            count += 1
            target = path.parent / name
            if quote == "<":
                fine = here == "kernels" or not name.startswith("cuda")
            elif name.startswith("roperope/"):
                fine = here in ("frequencies", "api")
            elif name in ("cuda_on_cpu.h", "hopper_on_cpu.h", "warp_on_cpu.h"):
                fine = here == "kernels"
            else:
                there = folder(target.resolve())
                fine = target.exists() and (there == here or FLOORS[there] < FLOORS[here])
            if not fine:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert count > 50 and wrong == []


def test_cython_knows_the_public_headers_alone():
    text = "".join(path.read_text() for path in (ROOT / "pyrope").glob("*.p[yx][xd]"))
    headers = [f'"roperope/{name}.h"' for name in ("roperope", "attention", "decode")]
    assert re.findall(r"cdef extern from (\S+)", text) == headers
