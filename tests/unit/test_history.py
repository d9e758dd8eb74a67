from types import SimpleNamespace

import numpy as np
import pytest
import torch

from torch_clipped._engine.arrays import chronological, resized
from torch_clipped.history import history_shapes, mean_and_std, push, quantile


def host(window, blocks):
    return SimpleNamespace(**{name: tensor.numpy() for name, tensor in vars(device(window, blocks)).items()})


def device(window, blocks):
    shapes = history_shapes(window, blocks)
    return SimpleNamespace(**{name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()})


def array(memory, values):
    return torch.tensor(values) if isinstance(memory.lengths, torch.Tensor) else np.array(values)


STREAMS = {
    "rising": np.arange(1.0, 200.0),
    "falling": np.arange(200.0, 1.0, -1),
    "constant": np.ones(100),
    "heavy-tailed": np.exp(3 * np.random.default_rng(0).normal(size=300)),
    "with ties": np.random.default_rng(1).integers(1, 4, size=200).astype(float),
}


@pytest.mark.parametrize("new", [host, device])
@pytest.mark.parametrize("probability", [0.01, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("stream", STREAMS)
def test_quantile_is_numpys_of_the_last_window(stream, probability, new):
    memory = new(16, 1)
    for i, value in enumerate(STREAMS[stream]):
        push(memory, array(memory, [value]), array(memory, [True]))
        wanted = np.quantile(STREAMS[stream][max(0, i - 15) : i + 1], probability)
        assert float(quantile(memory, probability)[0]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("new", [host, device])
@pytest.mark.parametrize("stream", STREAMS)
def test_one_block_without_a_dimension_is_one_block(stream, new):
    flat, column = new(16, 1), new(16, 1)
    flat.lengths, flat.count = flat.lengths[:, 0], flat.count[..., 0]
    for value in STREAMS[stream]:
        push(flat, array(flat, [value])[0], array(flat, [True])[0])
        push(column, array(column, [value]), array(column, [True]))
        for ours, theirs in zip(
            [quantile(flat, 0.3), *mean_and_std(flat)], [quantile(column, 0.3), *mean_and_std(column)], strict=True
        ):
            assert ours.shape == ()
            assert ours == theirs[0]


@pytest.mark.parametrize("new", [host, device])
def test_what_was_sorted_before_stays_that_of_the_ring(new):
    random = np.random.default_rng(0)
    memory = new(7, 5)
    for _ in range(60):
        lengths, valid = random.integers(1, 6, size=5).astype(float), random.random(5) < 0.6
        push(memory, array(memory, lengths.tolist()), array(memory, valid.tolist()))
        fresh = SimpleNamespace(lengths=memory.lengths, count=memory.count)  # sorts anew
        assert quantile(memory, 0.6).tolist() == quantile(fresh, 0.6).tolist()


@pytest.mark.parametrize("new", [host, device])
def test_blocks_remember_on_their_own(new):
    memory = new(3, 2)
    for first, second in ((1.0, 10.0), (2.0, 0.0), (3.0, 20.0), (4.0, 0.0)):
        push(memory, array(memory, [first, second]), array(memory, [True, second > 0]))
    assert chronological(memory, 0).tolist() == [2, 3, 4]
    assert chronological(memory, 1).tolist() == [10, 20]
    assert quantile(memory, 0.5).tolist() == [3, 15]


@pytest.mark.parametrize("new", [host, device])
def test_block_without_history_has_no_threshold(new):
    memory = new(3, 2)
    push(memory, array(memory, [1.0, 5.0]), array(memory, [True, False]))
    assert quantile(memory, 0.5).tolist() == [1, np.inf]


@pytest.mark.parametrize("window", [2, 5, 50])
def test_resized_history_keeps_the_newest(window):
    memory = host(5, 2)
    for i in range(7):
        push(memory, np.array([i + 1.0, i + 10.0]), np.array([True, i < 3]))
    lengths, count = resized(torch.from_numpy(memory.lengths), torch.from_numpy(memory.count), window)
    kept = SimpleNamespace(lengths=lengths, count=count)
    assert chronological(kept, 0).tolist() == [3, 4, 5, 6, 7][-window:]
    assert chronological(kept, 1).tolist() == [10, 11, 12][-window:]
