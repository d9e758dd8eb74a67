"""A step on an accelerator neither looks at a number nor mixes devices, shown on tensors that say they are on CUDA."""

import json
import shutil
import subprocess
import sys

import pytest
from support import fake_accelerator
from support.fake_accelerator import looks_once
from support.pages import ROOT
from support.versions import needs_torch

from experiments.launches.run import count

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler, for torch's guard of CUDA devices"),
    needs_torch("2.12", "FakeTensorMode with CUDA in a build without it"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the steps raised, in a process of their own: torch takes CUDA for there from then on."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.fake_accelerator", str(tmp_path_factory.mktemp("guard"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_looks_and_mixes_are_noticed(found):
    assert found["notices"] == [True, True]
    assert found["cases"] == len(fake_accelerator.CASES) >= len(fake_accelerator.TYPES) * len(fake_accelerator.DEVICES)


@pytest.mark.slow
@pytest.mark.parametrize("clipping_type", fake_accelerator.TYPES)
def test_steps_of_a_type_neither_look_nor_mix_devices(found, clipping_type):
    raised = {case: error for case, error in found["raised"].items() if case.split("/")[-1] == clipping_type}
    assert not {case: error for case, error in raised.items() if not looks_once(case)}


@pytest.mark.slow
def test_on_two_kinds_of_device_the_host_looks_whether_to_skip_and_nowhere_else(found):
    errors = {error for case, error in found["raised"].items() if looks_once(case)}
    assert errors == {"DataDependentOutputException: aten._local_scalar_dense.default (mixin.py, _clipped_step)"}
    assert {case for case in fake_accelerator.CASES if looks_once(case)} <= found["raised"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("clipping_type", fake_accelerator.TYPES)
def test_step_takes_as_many_operations_as_launches_counts_on_the_cpu(found, clipping_type, optimizer):
    row = count(optimizer, clipping_type, fake_accelerator.COUNTED)
    assert found["counts"][f"{optimizer}/{clipping_type}"] == [row.small_operations, row.foreach_kernels]
