"""Run the test suite on other releases: ``python -m tests.support.releases 2.6.0/1.26.4@python3.10 2.9.1 2.14.1``.

Each release gets an environment of its own, made from nothing and deleted afterwards: half a gigabyte to one of downloads, six
of disk. Where the index has a build for CUDA only, stand-ins take the place of nvidia's libraries. What the tests said is written
to ``releases.csv``, and the failures and the reasons of what was skipped to ``releases.json``.
"""

import argparse
import csv
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.support.standins import build_standins

ROOT = Path(__file__).parents[2]
COLUMNS = ("torch", "numpy", "python", "passed", "failed", "skipped")
EXTRAS = "[test]"  # what needs a release of its own (transformers, lightning, ...) is skipped
NVIDIAS = re.compile(r"Requires-Dist: (nvidia|triton|cuda)", re.IGNORECASE)


def main(arguments=None):
    """Run the suite on each release and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.releases", description=__doc__.partition("\n")[0])
    parser.add_argument("releases", nargs="+", metavar="TORCH[/NUMPY][@PYTHON]", help="like 2.9.1 or 2.6.0/1.26.4@python3.10")
    parser.add_argument("--out", metavar="FOLDER", help="where to write the table (default: only print it)")
    parser.add_argument("--tests", nargs="+", default=[], metavar="ARGUMENT", help="for pytest, instead of the whole suite")
    options = parser.parse_args(arguments)
    rows, details = [], {}
    for release in options.releases:
        torch, numpy, interpreter = parsed(release)
        with tempfile.TemporaryDirectory() as folder:
            python = make_environment(Path(folder), torch, numpy, interpreter)
            row, found = run_tests(python, Path(folder) / "results.xml", options.tests)
        rows.append(row)
        details["torch {torch}, numpy {numpy}, Python {python}".format(**row)] = found
        print(" ".join(f"{name} {row[name]}" for name in COLUMNS), flush=True)
        for name in found["failed"]:
            print(f"    {name}")
    print(guide_table(rows))
    if options.out and not options.tests:
        write(Path(options.out), rows, details)


def parsed(release):
    """Return the releases of torch and numpy ("": the newest) and the interpreter that a word of the command line names.

    >>> parsed("2.6.0/1.26.4@python3.10")
    ('2.6.0', '1.26.4', 'python3.10')
    """
    releases, _, interpreter = release.partition("@")
    torch, _, numpy = releases.partition("/")
    return torch, numpy, interpreter or sys.executable


def make_environment(folder, torch, numpy, interpreter):
    """Make an environment with these releases and this package; return its Python."""
    python = folder / "env" / "bin" / "python"
    _run(interpreter, "-m", "venv", folder / "env")
    pip = (python, "-m", "pip", "install", "--quiet")
    _run(*pip, "--no-deps", f"torch=={torch}")
    packages = Path(_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for metadata in packages.glob("torch-*/METADATA"):
        lines = metadata.read_text().splitlines(keepends=True)
        metadata.write_text("".join(line for line in lines if not NVIDIAS.match(line)))
    build_standins(packages / "torch" / "lib")
    pinned = [f"torch=={torch}", f"numpy=={numpy}" if numpy else "numpy"]
    _run(*pip, *pinned, "-e", f"{ROOT}{EXTRAS}")
    return python


def run_tests(python, results, tests):
    """Run the suite; return a row of the table, and which tests failed and why others were skipped."""
    command = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--tb=short", f"--junitxml={results}", *tests]
    subprocess.run(command, cwd=ROOT, check=False)
    cases = ElementTree.parse(results).getroot().findall(".//testcase")
    failed = sorted(f"{c.get('classname')}::{c.get('name')}" for c in cases if {"failure", "error"} & {child.tag for child in c})
    skipped = Counter(child.get("message") for c in cases for child in c if child.tag == "skipped")
    versions = "import platform, numpy, torch; print(torch.__version__, numpy.__version__, platform.python_version())"
    row = dict(zip(COLUMNS, _output(python, "-c", versions).split(), strict=False))
    row |= {"passed": len(cases) - len(failed) - skipped.total(), "failed": len(failed), "skipped": skipped.total()}
    return row, {"failed": failed, "skipped": dict(skipped.most_common())}


def write(folder, rows, details):
    """Write the table, and beside it what it does not show."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "releases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    about = {"machine": platform.processor() or platform.machine(), "releases": details}
    (folder / "releases.json").write_text(json.dumps(about, indent=1) + "\n")


def guide_table(rows):
    """Return the rows as docs/supported.md shows them.

    >>> print(guide_table([dict(zip(COLUMNS, ("2.6.0+cu124", "1.26.4", "3.10.13", 12, 0, 3)))]))
    | torch | numpy | Python | passed | failed | skipped |
    |---|---|---|---|---|---|
    | 2.6.0+cu124 | 1.26.4 | 3.10.13 | 12 | 0 | 3 |
    """
    header = ("torch", "numpy", "Python", "passed", "failed", "skipped")
    lines = [header, ("---",) * len(header), *([row[name] for name in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines).replace(
        "| --- | --- | --- | --- | --- | --- |", "|---|---|---|---|---|---|"
    )


def _run(*command):
    subprocess.run([str(part) for part in command], check=True)


def _output(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
