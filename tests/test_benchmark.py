"""``python -m experiments benchmark``: that it runs, compares what it says it compares, and counts right. Nothing is timed here."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from experiments import benchmark_levels, benchmark_packages
from experiments.__main__ import main
from experiments.benchmark_problem import SIZES
from experiments.benchmark_rows import read_rows

SHAPES = [(100,), (10, 12), (8, 3, 3, 3)]
WINDOW, LONGEST_RUN = 250, 100  # the real ones are four times as long
assert benchmark_levels.LONGEST_RUN / benchmark_levels.WINDOW == LONGEST_RUN / WINDOW


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", SHAPES)
        patch.setattr(benchmark_levels, "WINDOW", WINDOW)
        patch.setattr(benchmark_packages, "version", not_installed)
        yield


def not_installed(package):
    raise PackageNotFoundError(package)


class Printed:
    """What the command leaves and prints."""

    def __init__(self, folder, capture):
        options = ["--sizes", "tiny", "--optimizers", "sgd", "adamw", "--budget", "1e-9", "--out", str(folder)]
        self.code = main(["benchmark", *options])
        self.text = capture.readouterr().out
        self.folder = folder
        self.rows = read_rows(folder / "benchmark.csv")
        self.summary = json.loads((folder / "benchmark.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def printed(tmp_path_factory, _small):
    from _pytest.capture import SysCapture  # capsys is of single tests

    capture = SysCapture(1)
    capture.start()
    try:
        code_before = tmp_path_factory.mktemp("benchmark")
        return Printed(code_before, type("Capture", (), {"readouterr": lambda self: type("Out", (), {"out": capture.snap()})})())
    finally:
        capture.done()
