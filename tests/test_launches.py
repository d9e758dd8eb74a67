"""``python -m experiments launches``: how many operations and calls a step takes, and that they do not become more."""

import csv
import json

import pytest
import torch

from experiments.__main__ import main
from experiments.launches import OPTIMIZERS, TORCHS_WAY, CountedOperations, Row, aim, count, readme_table
from torch_clipped.clipping import CLIPPING_TYPES

TYPES = [name for name in CLIPPING_TYPES if name != "none"]
OVER_THE_AIM = {"zscore": 48, "zclip": 48}  # where 45 were aimed at
CALLS = {"norm": (53, 30)}  # functions and changes of module, where 35 and 15 were aimed at


def test_operations_that_launch_a_kernel_are_counted_and_views_are_not():
    values = torch.ones(4, 4)
    with CountedOperations() as counted:
        (values.view(16)[:3].unsqueeze(0) + 1).sum()
        torch._foreach_mul_([values, values], 2.0)
    assert (counted.small, counted.foreach) == (2, 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_torchs_way_takes_six(optimizer):
    assert count(optimizer, "clip_grad_norm_", 10).small_operations == 6


@pytest.mark.parametrize("tensors", [10, 40])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clipping_type", TYPES)
def test_small_operations_of_a_step_are_few(clipping_type, optimizer, tensors):
    counted = count(optimizer, clipping_type, tensors).small_operations
    assert counted <= OVER_THE_AIM.get(clipping_type, aim(clipping_type, tensors))


@pytest.mark.parametrize("clipping_type", CALLS)
def test_calls_of_a_step_are_few(clipping_type):
    calls, changes = count("SGD", clipping_type, 10)[-2:]
    assert calls <= CALLS[clipping_type][0]
    assert changes <= CALLS[clipping_type][1]


def test_counts_are_the_same_each_time_and_global_types_do_not_depend_on_the_number_of_tensors():
    assert count("SGD", "auto", 10) == count("SGD", "auto", 10)
    assert count("SGD", "auto", 10)[3:5] == count("SGD", "auto", 30)[3:5]


def test_command_writes_a_row_for_every_type(tmp_path, capsys):
    assert main(["launches", "--tensors", "2", "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "launches.csv").read_text().splitlines()))
    assert [*rows[0]] == [*Row._fields]
    assert [(row["optimizer"], row["clipping_type"]) for row in rows] == [
        (o, t) for o in OPTIMIZERS for t in [*TORCHS_WAY, *TYPES]
    ]
    assert json.loads((tmp_path / "launches.json").read_text())["settings"]["tensors"] == [2]
    assert "clip_grad_norm_" in capsys.readouterr().out


def test_bad_numbers_of_tensors_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["launches", "--tensors", "0", "--out", str(tmp_path)])
    assert "tensors must be integers >= 1, got 0" in capsys.readouterr().err


def test_table_of_readme_has_a_column_for_each_number_of_tensors():
    rows = [count("SGD", name, tensors) for tensors in (1, 2) for name in ("clip_grad_norm_", "norm")]
    header, _, *lines = readme_table(rows).splitlines()
    assert header == "| SGD with momentum | 1 tensors | 2 tensors | Python calls |"
    assert [line.split("|")[1].strip() for line in lines] == ["`clip_grad_norm_`", "`norm`"]
