"""What README.md says is true."""

import csv
import json
import re
from pathlib import Path

import pytest
from pages import page, python_blocks, run, sections
from support.releases import readme_table as releases_table

from experiments.benchmark.rows import read_rows
from experiments.benchmark.table import readme_table
from experiments.compare import table as compare_table
from experiments.launches import run as launches
from experiments.spikes import summary as spikes_summary
from experiments.toy import table as toy_table
from torch_clipped._engine.arguments import Arguments
from torch_clipped.clipping import CLIPPING_TYPES, OLDER_SPELLINGS

README = page("README.md")


def test_every_python_block_runs(capsys):
    blocks = python_blocks(README)
    assert blocks
    for block in blocks:
        run([block], "README.md")
    printed = capsys.readouterr().out
    assert "'steps': 100.0" in printed
    for shown in re.findall(r"^prints\n\n```\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE):
        words = re.sub(r"\d+\.?\d*", "NUMBER", shown)
        (found,) = re.findall(re.escape(words).replace("NUMBER", r"\d+\.?\d*"), printed)
        numbers = [[float(number) for number in re.findall(r"\d+\.?\d*", text)] for text in (found, shown)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.1)


def test_table_lists_every_type_with_its_default_level():
    section = sections(README)["Clipping types"]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `") and "default" not in line]
    table = {re.findall(r"`(\w+)`", row[1])[0]: row[-2].strip() for row in rows}
    assert {name: float(level) if level else None for name, level in table.items()} == {
        name: rule.threshold.default_level if rule else None for name, rule in CLIPPING_TYPES.items()
    }


def test_older_spellings_and_other_defaults_are_named():
    for name in OLDER_SPELLINGS:
        assert f"`{name}`" in README
    for name, value in Arguments().as_dict().items():
        assert f"`{name}`" in README
        if isinstance(value, (int, float)):
            assert re.search(rf"`{name}` \({value}", README), name


def test_table_of_the_releases_is_what_the_command_wrote():
    rows = list(csv.DictReader((Path(__file__).parent.parent / "figures" / "releases.csv").read_text().splitlines()))
    assert releases_table(rows) in README
    assert len(rows) >= 4


def test_table_of_the_benchmark_is_that_of_its_figures_with_the_machine_named():
    folder = Path(__file__).parent.parent / "figures"
    assert readme_table(read_rows(folder / "benchmark.csv")) in README
    machine = json.loads((folder / "benchmark.json").read_text())["machine"]
    assert f"{machine['cpu']}, {machine['threads']} threads" in README


def test_table_of_the_launches_is_that_of_its_figures():
    with (Path(__file__).parent.parent / "figures" / "launches.csv").open(newline="") as file:
        rows = [launches.Row(*row[:2], *map(int, row[2:])) for row in list(csv.reader(file))[1:]]
    assert launches.readme_table(rows) in README


def compared():
    """What the experiment compare has written of its tasks."""
    folder = Path(__file__).parent.parent / "figures"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("compare_*.json"))]


def test_table_of_the_tasks_is_that_of_their_figures():
    assert compare_table.readme_table(compared()) in README


def test_table_of_the_spikes_is_that_of_their_figure():
    folder = Path(__file__).parent.parent / "figures"
    assert spikes_summary.readme_table(json.loads((folder / "spikes.json").read_text())) in README


def test_table_of_the_published_problems_is_that_of_their_figures():
    folder = Path(__file__).parent.parent / "figures"
    names = ("quadratic", "adagrad", "regression", "published")
    rows = [row for name in names for row in json.loads((folder / f"toy_{name}.json").read_text())["expected"]]
    assert toy_table.readme_table(rows) in README


def test_what_the_tasks_showed_is_said_as_in_their_figures():
    words = " ".join(README.split())
    for summary in compared():
        for name, label in (("better", "Better"), ("worse", "Worse")):
            methods = [one["method"] for one in summary["methods"] if (one["difference"] or {}).get("words") == name]
            said = f"{label} than without clipping on {summary['settings']['task']}: {', '.join(methods) or 'none'}."
            assert said in words


@pytest.mark.parametrize("ending", ["-m pytest -n 2 --dist loadfile", "-m experiments heavy-tails --quick"])
def test_each_command_stands_there_once(ending):
    assert sum(line.startswith("python3 -m venv") and line.endswith(ending) for line in README.splitlines()) == 1
