"""What several test modules need."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from support.problems import Problem
from support.versions import OLDER_TORCH

from torch_clipped import functional, mixin
from torch_clipped._engine.current_sets import CurrentSets
from torch_clipped.clipping import CLIPPING_TYPES, MEASURES

torch.set_num_threads(1)  # the tensors are tiny: threads that wait for each other take five times as long on a busy machine
torch.sparse.check_sparse_tensor_invariants.disable()  # the default: torch 2.12 and older warn where it was not said

KEPT = [str(Path(__file__).resolve().parent.parent / name) + "/" for name in ("figures", "results")]


def refuse_to_change_results(event, arguments):
    """Raise where a test would write over committed figures, or over results of the user, as a command without ``--out`` does."""
    if event == "open":
        paths = arguments[:1] if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR) else ()
    else:
        paths = arguments[:2] if event in ("os.rename", "os.remove", "os.mkdir") else ()
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            for folder in KEPT:
                if f"{os.path.abspath(os.fsdecode(path))}/".startswith(folder):
                    name = os.path.basename(folder[:-1])
                    raise RuntimeError(f"tests must not change {name}: give --out, got {event} of {os.fsdecode(path)!r}")


sys.addaudithook(refuse_to_change_results)


def pytest_configure(config):
    for message in OLDER_TORCH:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


@pytest.fixture
def problem():
    return Problem()


@pytest.fixture
def no_host(monkeypatch):
    """Makes clip sets with the arithmetic of accelerators, on the CPU."""
    for module in (mixin, functional):
        monkeypatch.setattr(module, "CurrentSets", partial(CurrentSets, is_accelerated=True))


@pytest.fixture
def table():
    """The table of types; it and that of measures are as they were before once the test is over."""
    before = [(rows, dict(rows)) for rows in (CLIPPING_TYPES, MEASURES)]
    yield CLIPPING_TYPES
    for rows, kept in before:
        rows.clear()
        rows.update(kept)
