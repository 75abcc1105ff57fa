"""What bench/ refuses before it measures anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
RESULTS = BENCH / "results/h100-quick.json"


def bench(program, *arguments):
    done = subprocess.run([sys.executable, BENCH / program, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("program", "arguments", "text"),
    [
        ("run.py", ["--num-threads", "-1"], "--num-threads: invalid count value: '-1'"),
        ("run.py", ["--json", "no/such/folder.json"], "--json: no/such is not a folder"),
        ("compare.py", ["missing.json", RESULTS], "missing.json"),
        ("compare.py", [RESULTS, __file__], "not the results of run.py"),
    ],
)
def test_refused(program, arguments, text):
    done = bench(program, *arguments)
    assert done.returncode == 2 and done.stdout == "" and text in done.stderr


@pytest.mark.parametrize(("field", "value"), [("name", "NVIDIA B200"), ("threads", 7)])
def test_compare_names_other_devices(field, value, tmp_path):
    record = json.loads(RESULTS.read_text())
    record["device"][field] = value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    assert f"NOT COMPARABLE: the device's {field}: " in bench("compare.py", RESULTS, other).stdout
    assert "NOT COMPARABLE" not in bench("compare.py", other, other).stdout
