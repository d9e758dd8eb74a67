"""Random draws of the steps: the stream is pinned, because a resumed run has to draw what the unbroken one would have."""

import random

import numpy as np
import pytest
import torch

from torch_clipped._engine import draws
from torch_clipped._engine.draws import DrawTable, is_capturing
from torch_clipped.decisions import uniform

WORD = 2**32


def scattered(word):
    """fmix32, the finalizer of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ word >> shift) * factor % WORD
    return word


def formula(seed, stream, step):
    """The draw in whole numbers of Python: words of 32 bits, each scattered before the next one enters."""
    state = 0x9E3779B9
    for word in (seed % WORD, seed // WORD % WORD, stream):
        state = scattered(state ^ scattered((word + 0x7F4A7C15) % WORD))
    low = scattered(scattered((step % WORD + 0x7F4A7C15) % WORD) ^ state)
    return scattered(low ^ scattered((step // WORD + 0x165667B1) % WORD)) // 2**8 / 2**24


PLACES = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (2**32, 0, 0), (0, 0, 2**32), (7, 3, 123_456), (2**64 - 1, 5, 2**40 + 9)]
PINNED = [4692496, 15637124, 2916803, 5879961, 7469504, 3408657, 3886465, 12129097]  # of 2**24


def test_scattering_is_that_of_murmurhash3():
    assert [scattered(word) for word in (0, 1, 2)] == [0, 0x514E28B7, 0x30F4C306]  # its known values


@pytest.mark.parametrize(("place", "pinned"), [*zip(PLACES, PINNED, strict=True)])
def test_draw_of_a_seed_stream_and_step_is_pinned(place, pinned):
    assert uniform(*place) == pinned / 2**24 == formula(*place)


@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 + 1, 2**63])
def test_draws_are_the_formulas_for_ints_and_tensors(seed):
    steps = [*range(50), 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 1]
    wanted = [formula(seed, 2, step) for step in steps]
    assert [uniform(seed, 2, step) for step in steps] == wanted
    assert uniform(seed, 2, torch.tensor(steps)).tolist() == wanted


def test_draws_lie_in_zero_to_one():
    """2**24 different numbers, from 0 to the last one below 1."""
    drawn = uniform(0, 0, torch.arange(200_000))
    assert 0 <= drawn.min().item() < 1e-4
    assert 1 - 1e-4 < drawn.max().item() < 1
    assert (drawn * 2**24 % 1 == 0).all()
    assert len(drawn.unique()) > 198_000  # 1,200 pairs are expected to agree


def test_draws_differ_between_steps_seeds_and_streams():
    table = {(seed, stream, step): uniform(seed, stream, step) for seed in range(5) for stream in range(5) for step in range(5)}
    assert len({*table.values()}) == 125


@pytest.fixture
def made(monkeypatch):
    """The steps for which draws have been made, a list of numbers or one number a call."""
    calls = []
    monkeypatch.setattr(
        draws, "uniform", lambda seed, stream, step: (calls.append(step.tolist()), uniform(seed, stream, step))[1]
    )
    return calls


@pytest.mark.parametrize("first", [0, 5, 2**32 - 2])
def test_table_draws_what_each_step_draws(first, monkeypatch):
    monkeypatch.setattr(DrawTable, "LENGTH", 4)
    table, step = DrawTable(3, 1), torch.tensor(first)
    for number in range(first, first + 11):
        drawn = table.draw(step)
        assert drawn.shape == ()
        assert drawn.item() == formula(3, 1, number)
        step += 1  # in place, as counts of steps grow


def test_table_is_made_anew_after_as_many_draws_as_it_is_long(made, monkeypatch):
    monkeypatch.setattr(DrawTable, "LENGTH", 3)
    table = DrawTable(0, 0)
    for number in range(7):
        table.draw(torch.tensor(number))
    assert made == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert DrawTable(0, 0).LENGTH == 3


def test_step_that_is_not_counted_draws_its_number_again(made, monkeypatch):
    monkeypatch.setattr(DrawTable, "LENGTH", 3)
    table = DrawTable(0, 2)
    drawn = [table.draw(torch.tensor(number)).item() for number in (9, 9, 9, 9, 10)]
    assert drawn == [formula(0, 2, number) for number in (9, 9, 9, 9, 10)]
    assert made == [[9, 10, 11], [9, 10, 11]]


def test_table_is_a_thousand_steps_long(made):
    DrawTable(0, 0).draw(torch.tensor(1))
    assert made == [[*range(1, 1001)]]


class OnCuda(torch.Tensor):
    """A tensor of the CPU that says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("step", [torch.tensor(4), torch.tensor(4).as_subclass(OnCuda)], ids=["CPU", "GPU"])
def test_table_is_not_used_once_a_graph_was_captured(step, made, monkeypatch):
    """A graph that is replayed takes steps of which the host knows nothing, so that it has to hold the draw itself."""
    table, is_on_gpu = DrawTable(0, 0), isinstance(step, OnCuda)
    table.draw(step)
    monkeypatch.setattr(draws, "is_capturing", lambda: True)
    assert table.draw(step).item() == formula(0, 0, 4)
    monkeypatch.setattr(draws, "is_capturing", lambda: False)
    assert table.draw(step + 2000 if is_on_gpu else step).item() == formula(0, 0, 2004 if is_on_gpu else 4)
    assert made[1:] == ([4, 2004] if is_on_gpu else [])


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("is_captured", [False, True])
def test_capture_needs_a_started_cuda(is_started, is_captured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_started)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_captured)
    assert is_capturing() is (is_started and is_captured)


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    uniform(0, 0, 1)
    DrawTable(0, 0).draw(torch.tensor(1))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert before[0].equal(after[0])
    assert before[1:] == after[1:]
