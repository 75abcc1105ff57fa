#!/usr/bin/env bash
# The GPU tests under compute-sanitizer, on a machine with a GPU. Arguments replace the default selection of tests:
#   PYTHON=.venv/bin/python cuda/tests/sanitize.sh tests/test_rotation.py -k bfloat16
set -euo pipefail
cd "$(dirname "$0")/../.."

[ $# -gt 0 ] || set -- tests/test_rotation.py tests/test_positions.py tests/test_same_bits.py
for tool in memcheck initcheck racecheck; do
  echo "==== $tool"
  # Nothing is to be skipped: a run without a device must not pass.
  PYROPE_REQUIRE_GPU=1 compute-sanitizer --tool "$tool" --error-exitcode 99 --require-cuda-init yes \
    "${PYTHON:-python3}" -P -m pytest -q -m gpu -p no:cacheprovider "$@"
done
echo "==== no errors"
