"""What several test modules need."""

import sys

import pytest
import torch
from problems import Problem

torch.set_num_threads(1)  # the tensors are tiny: threads that wait for each other take five times as long on a busy machine
torch.sparse.check_sparse_tensor_invariants.disable()  # the default: torch 2.12 and older warn where it was not said


@pytest.fixture
def problem():
    return Problem()


@pytest.fixture
def no_host(monkeypatch):
    """Takes the tensor arithmetic of accelerators on the CPU, by denying that the CPU is the host."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch_clipped.") and hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", lambda device: False)
