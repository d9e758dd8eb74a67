"""Type checkers see the real signatures: the lines that are marked as errors are errors, and no others."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "typing"


@pytest.mark.slow
def test_mypy_finds_the_marked_errors_and_no_others():
    pytest.importorskip("mypy", reason="needs mypy")
    wanted = set()
    for path in FOLDER.glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if marked := re.search(r"# error: (\S+)$", line):
                wanted.add((path.name, number, marked[1]))
    assert len(wanted) == 20
    files = sorted(map(str, FOLDER.glob("*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *files], cwd=FOLDER.parent.parent, capture_output=True, text=True
    )
    found = re.findall(r"^.*?(\w+\.py):(\d+): error: .*\[(\S+)\]$", done.stdout, flags=re.MULTILINE)
    assert {(name, int(number), code) for name, number, code in found} == wanted, done.stdout + done.stderr


def test_program_that_type_checkers_accept_runs():
    spec = importlib.util.spec_from_file_location("right", FOLDER / "right.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [type(optimizer).__name__ for optimizer in module.right()] == [
        "ClippedSGD",
        "ClippedAdam",
        "ClippedAdamW",
        "ClippedRMSprop",
        "Derived",
    ]
