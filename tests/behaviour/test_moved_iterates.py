"""Restarter and ClippedSSTM where parameters come to lie elsewhere, or get another type or shape, between two steps."""

import pytest
import torch
from torch import nn, optim

from torch_clipped import ClippedSGD, ClippedSSTM, Restarter


def gradient(step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def restarted_run(steps, between=lambda step, model, restarter: None, optimizer_class=optim.SGD, swap=False):
    """Steps with windows of 4 and 5, something done to the model or the restarter after each; the model and the restarter."""
    torch.manual_seed(3)
    model = nn.Linear(3, 2)
    restarter = Restarter(optimizer_class(model.parameters(), lr=0.1, momentum=0.9), 4)
    go_on(model, restarter, range(steps), between)
    return model, restarter


def go_on(model, restarter, steps, between=lambda step, model, restarter: None):
    for step in steps:
        for p in model.parameters():
            p.grad = gradient(step, p.shape).to(p.device, p.dtype)
        restarter.optimizer.step()
        restarter.step()
        restarter.optimizer.zero_grad()
        between(step, model, restarter)


def sstm_run(steps, between=lambda step, model, optimizer: None):
    torch.manual_seed(3)
    model = nn.Linear(3, 2)
    optimizer = ClippedSSTM(model.parameters(), 0.1, 2.0)
    for step in range(steps):
        for p in model.parameters():
            p.grad = gradient(step, p.shape).to(p.device, p.dtype)
        optimizer.step()
        optimizer.zero_grad()
        between(step, model, optimizer)
    return model, optimizer


def assert_same(one, other, move):
    """Compare weights: equal to the bit, except where another layout leads torch to another kernel, which rounds otherwise."""
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if move is transpose else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), **tolerance)


def share(step, model, _):
    if step == 1:
        model.share_memory()


def replace(step, model, _):
    for p in model.parameters():
        p.data = p.data.clone()


def transpose(step, model, _):
    model.weight.data = model.weight.data.t().contiguous().t()


def leave_in_a_queue(step, model, holder):
    if step % 3 == 1:
        queue = torch.multiprocessing.Queue()
        queue.put([holder.state_dict(), *model.parameters()])
        queue.get()


MOVES = [share, replace, transpose, leave_in_a_queue]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("optimizer_class", [optim.SGD, ClippedSGD])
def test_a_restarted_run_whose_memory_moves_is_the_undisturbed_one(move, optimizer_class):
    model, restarter = restarted_run(14, move, optimizer_class)
    assert restarter.restarts == 2
    assert_same(model, restarted_run(14, optimizer_class=optimizer_class)[0], move)


@pytest.mark.parametrize("move", MOVES)
def test_an_sstm_run_whose_memory_moves_is_the_undisturbed_one(move):
    model, optimizer = sstm_run(14, move)
    other, twin = sstm_run(14)
    for one in (optimizer, twin):
        assert one.clipping_stats()["steps"] == 14
        one.eval()
    assert_same(model, other, move)


def count_restarts(restarter, answers):
    go_on_by_ones(restarter, 2)
    answers.put(restarter.restarts)


def go_on_by_ones(restarter, steps):
    for _ in range(steps):
        for p in restarter.optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        restarter.optimizer.step()
        restarter.step()


@pytest.mark.slow
def test_restarter_as_argument_of_a_process_restarts_in_both():
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    restarter = Restarter(ClippedSGD([nn.Parameter(torch.zeros(3))], lr=0.1), 4)
    go_on_by_ones(restarter, 2)
    process = context.Process(target=count_restarts, args=(restarter, answers))
    process.start()
    assert answers.get(timeout=120) == 1
    process.join()
    assert restarter.restarts == 0
    go_on_by_ones(restarter, 2)
    assert restarter.restarts == 1
