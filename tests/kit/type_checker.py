"""mypy, as a user runs it."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

REQUIRED = os.environ.get("PYROPE_REQUIRE_MYPY") == "1"


def mypy(folder, *arguments, module="mypy"):
    """The finished run; where mypy is missing the test skips, or fails with PYROPE_REQUIRE_MYPY=1."""
    if not REQUIRED and find_spec("mypy") is None:
        pytest.skip("mypy is missing")
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
