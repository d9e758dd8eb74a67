"""Type checkers see the real signatures: the lines that are marked as errors are errors, and no others."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from torch_clipped import ClippingType

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "typing"


FILES = sorted(map(str, FOLDER.glob("*.py")))


def marked():
    """The lines that are marked as errors, with the code that mypy gives them."""
    wanted = set()
    for path in FOLDER.glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := re.search(r"# error: (\S+)$", line):
                wanted.add((path.name, number, found[1]))
    assert len(wanted) == 23
    return wanted


def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *arguments, *FILES], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_mypy_finds_the_marked_errors_and_no_others():
    pytest.importorskip("mypy", reason="needs mypy")
    done = run("mypy", "--strict")
    found = re.findall(r"^.*?(\w+\.py):(\d+): error: .*\[(\S+)\]$", done.stdout, flags=re.MULTILINE)
    assert {(name, int(number), code) for name, number, code in found} == marked(), done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_finds_the_marked_errors_and_no_others():
    pytest.importorskip("pyright", reason="needs pyright")
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable)
    assert done.returncode == 1, done.stdout + done.stderr  # it has run, and has found errors
    errors = json.loads(done.stdout)["generalDiagnostics"]
    found = {(Path(e["file"]).name, e["range"]["start"]["line"] + 1) for e in errors if e["severity"] == "error"}
    assert found == {(name, number) for name, number, _ in marked()}, done.stdout


def test_type_checkers_know_the_names_of_all_clipping_types():
    names = "from torch_clipped.clipping import CLIPPING_TYPES; print(*CLIPPING_TYPES)"  # other tests register types here
    built_in = subprocess.run([sys.executable, "-c", names], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {*get_args(ClippingType)} == {*built_in, "value"}


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
