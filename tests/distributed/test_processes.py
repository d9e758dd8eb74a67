"""The processes themselves: what they return, and what they say when a rank fails or hangs."""

import os
import warnings
from multiprocessing import active_children

import pytest
import torch
import torch.distributed as dist
from processes import Processes
from programs import device_arithmetic

from torch_clipped import ClippedSGD


@pytest.fixture(scope="module")
def fragile():
    processes = Processes(2)
    yield processes
    processes.close()


def summed(tensor, factor):
    tensor = tensor * factor * (dist.get_rank() + 1)
    dist.all_reduce(tensor)
    return dist.get_rank(), tensor


def drawn():
    return os.getpid(), torch.rand(()).item()


def failing_before_a_barrier():
    if dist.get_rank() == 0:
        raise ValueError("no luck")
    dist.barrier()


def waiting_for_the_other():
    if dist.get_rank() == 0:
        dist.recv(torch.zeros(1), src=1)


def warning_or_dying():
    if dist.get_rank() == 0:
        warnings.warn("look here", stacklevel=1)
    os._exit(7)


def clipped_without_host():
    weight = torch.nn.Parameter(torch.zeros(2))
    with device_arithmetic():
        optimizer = ClippedSGD([weight], lr=1.0)
        weight.grad = torch.tensor([3.0, 4.0])
        optimizer.step()
    (within,), (outside,) = (o._clip_sets()[0] for o in (optimizer, ClippedSGD([weight])))
    return within.arrays.is_host, outside.arrays.is_host, weight.detach()


def test_each_rank_returns_its_own_result_by_rank(two):
    results = two.run(summed, torch.ones(3), 2.0)
    assert [rank for rank, _ in results] == [0, 1]
    assert all(torch.equal(total, torch.full((3,), 6.0)) for _, total in results)


def test_four_ranks(four):
    results = four.run(summed, torch.ones(1), 1.0)
    assert [(rank, total.item()) for rank, total in results] == [(0, 10.0), (1, 10.0), (2, 10.0), (3, 10.0)]


def test_the_same_processes_carry_out_the_next_function_with_the_same_seed(two):
    assert two.run(drawn) == two.run(drawn)


def test_device_arithmetic_in_a_process(two):
    for is_host_within, is_host, weight in two.run(clipped_without_host):
        assert (is_host_within, is_host) == (False, True)
        torch.testing.assert_close(weight, torch.tensor([-0.6, -0.8]))


def test_a_failing_rank_is_reported_with_its_traceback_and_the_rank_that_waits_for_it_with_its_stack(fragile):
    with pytest.raises(AssertionError, match=r"test_processes.failing_before_a_barrier failed on 2 processes") as caught:
        fragile.run(failing_before_a_barrier)
    failing, waiting = str(caught.value).split("rank 1")
    assert 'raise ValueError("no luck")' in failing
    assert "was still running" in waiting
    assert "in failing_before_a_barrier" in waiting


def test_the_run_after_a_failure_has_new_processes_and_one_over_its_time_limit_is_ended(fragile):
    assert fragile.run(summed, torch.ones(1), 1.0)[1] == (1, torch.tensor([3.0]))
    with pytest.raises(AssertionError, match=r"(?s)rank 0 was still running.*in waiting_for_the_other.*rank 1 returned"):
        fragile.run(waiting_for_the_other, seconds=2)


def test_warnings_are_errors_and_a_process_that_dies_is_reported(fragile):
    with pytest.raises(AssertionError, match=r"(?s)rank 0 raised.*UserWarning: look here.*rank 1 died with exit code 7"):
        fragile.run(warning_or_dying)


def test_closing_leaves_no_process(fragile):
    others = set(active_children())
    fragile.run(drawn)
    assert len(set(active_children()) - others) == 2
    fragile.close()
    assert set(active_children()) == others
