"""What the guides say is true, as far as numbers and names go."""

import csv
import json
import re
from pathlib import Path

import pytest
from support.pages import page, python_blocks, run
from support.releases import guide_table as releases_table

from experiments.benchmark.rows import read_rows
from experiments.benchmark.table import guide_table
from experiments.compare import table as compare_table
from experiments.launches import run as launches
from experiments.spikes import summary as spikes_summary
from experiments.toy import table as toy_table
from torch_clipped._engine.arguments import Arguments
from torch_clipped.clipping import CLIPPING_TYPES, OLDER_SPELLINGS

TYPES, SPEED, RESULTS = page("docs/types.md"), page("docs/speed.md"), page("docs/results.md")
FIGURES = Path(__file__).parents[2] / "figures"


def test_printed_numbers_are_those_that_the_block_prints(capsys):
    guide = page("docs/heavy_tails.md")
    run(python_blocks(guide), "docs/heavy_tails.md")
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"^prints\n\n```\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    words = re.sub(r"\d+\.?\d*", "NUMBER", shown)
    (found,) = re.findall(re.escape(words).replace("NUMBER", r"\d+\.?\d*"), printed)
    numbers = [[float(number) for number in re.findall(r"\d+\.?\d*", text)] for text in (found, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1)


def test_table_lists_every_type_with_its_default_level():
    rows = [line.split("|") for line in TYPES.splitlines() if line.startswith("| `") and "default" not in line]
    table = {re.findall(r"`(\w+)`", row[1])[0]: row[-2].strip() for row in rows}
    assert {name: float(level) if level else None for name, level in table.items()} == {
        name: rule.threshold.default_level if rule else None for name, rule in CLIPPING_TYPES.items()
    }


def test_older_spellings_and_other_defaults_are_named():
    for name in OLDER_SPELLINGS:
        assert f"`{name}`" in TYPES
    for name, value in Arguments().as_dict().items():
        assert f"`{name}`" in TYPES
        if isinstance(value, (int, float)):
            assert re.search(rf"`{name}` \({value}", TYPES), name


def test_table_of_the_releases_is_what_the_command_wrote():
    rows = list(csv.DictReader((FIGURES / "releases.csv").read_text().splitlines()))
    assert releases_table(rows) in page("docs/supported.md")
    assert len(rows) >= 4


def test_table_of_the_benchmark_is_that_of_its_figures_with_the_machine_named():
    assert guide_table(read_rows(FIGURES / "benchmark.csv")) in SPEED
    machine = json.loads((FIGURES / "benchmark.json").read_text())["machine"]
    assert f"{machine['cpu']}, {machine['threads']} threads" in SPEED


def test_table_of_the_launches_is_that_of_its_figures():
    with (FIGURES / "launches.csv").open(newline="") as file:
        rows = [launches.Row(*row[:2], *map(int, row[2:])) for row in list(csv.reader(file))[1:]]
    assert launches.guide_table(rows) in SPEED


def compared():
    """Return what the experiment compare has written of its tasks."""
    return [json.loads(path.read_text()) for path in sorted(FIGURES.glob("compare_*.json"))]


def test_table_of_the_tasks_is_that_of_their_figures():
    assert compare_table.guide_table(compared()) in RESULTS


def test_table_of_the_spikes_is_that_of_their_figure():
    assert spikes_summary.guide_table(json.loads((FIGURES / "spikes.json").read_text())) in RESULTS


def test_table_of_the_published_problems_is_that_of_their_figures():
    names = ("quadratic", "adagrad", "regression", "published")
    rows = [row for name in names for row in json.loads((FIGURES / f"toy_{name}.json").read_text())["expected"]]
    assert toy_table.guide_table(rows) in page("docs/restarts.md")


def test_what_the_tasks_showed_is_said_as_in_their_figures():
    words = " ".join(RESULTS.split())
    for summary in compared():
        for name, label in (("better", "Better"), ("worse", "Worse")):
            methods = [one["method"] for one in summary["methods"] if (one["difference"] or {}).get("words") == name]
            said = f"{label} than without clipping on {summary['settings']['task']}: {', '.join(methods) or 'none'}."
            assert said in words
