"""What README.md says is true, and it is one page."""

import re

import pytest
from support.pages import page, python_blocks, run

from torch_clipped.clipping import CLIPPING_TYPES

README = page("README.md")
COMMANDS = [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)]


def test_it_is_one_page():
    assert len(README.encode()) <= 9000
    assert [line for line in README.splitlines() if len(line) > 110] == []


def test_every_python_block_runs(capsys):
    blocks = python_blocks(README)
    assert blocks
    for block in blocks:
        run([block], "README.md")
    assert "'steps': 100.0" in capsys.readouterr().out


def test_table_lists_every_type_with_its_block():
    rows = [line.split("|") for line in README.splitlines() if line.startswith("| `") and "clipping_type" not in line]
    table = {re.findall(r"`(\w+)`", row[1])[0]: row[2].strip() for row in rows}
    blocks = {"global": "whole gradient", "layer": "tensor", "unit": "row or filter", "coordinate": "entry"}
    assert table == {name: blocks[rule.measure] if rule else "-" for name, rule in CLIPPING_TYPES.items()}


@pytest.mark.parametrize("ending", ["-m pytest -n 2 --dist loadfile", "-m experiments heavy-tails --quick"])
def test_each_command_stands_there_once(ending):
    (command,) = [lines for lines in COMMANDS if lines[-1].endswith(ending)]
    assert command[0].startswith("python3 -m venv")
    assert ending not in README.replace(command[-1], "", 1)
