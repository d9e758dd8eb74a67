"""Accelerate around clipped optimizers: accumulation, checkpoints, its own clipping, and its loss scaling."""

import warnings

import pytest
import torch

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning, clip_optimizer
from torch_clipped.integrations import log_clipping_stats

accelerate = pytest.importorskip("accelerate", reason="needs accelerate")

from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402

TYPES = ["norm", "auto", "linear_rand_norm", "layer_wise_auto"]


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))


def batches(count):
    generator = torch.Generator().manual_seed(9)
    return [(torch.randn(4, 4, generator=generator), 10 * torch.randn(4, 1, generator=generator)) for _ in range(count)]


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def prepared(optimizer_class=ClippedAdamW, lr=0.01, accumulation=1, **options):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = network()
    model, optimizer = accelerator.prepare(model, optimizer_class(model.parameters(), lr=lr, **options))
    return accelerator, model, optimizer


def train(accelerator, model, optimizer, data, max_norm=None):
    """The norms that accelerator.clip_grad_norm_ returned, where it was called."""
    norms = []
    for batch in data:
        with accelerator.accumulate(model):
            accelerator.backward(squared_error(model, batch))
            if max_norm is not None and accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), max_norm).item())
            optimizer.step()
            optimizer.zero_grad()
    return norms


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("clipping_type", TYPES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_prepared_optimizer_makes_the_weights_of_a_plain_loop(clip_types, clipping_type, accumulation):
    options = clip_types[clipping_type]
    by_hand = network()
    plain = ClippedAdamW(by_hand.parameters(), lr=0.01, **options)
    for i, batch in enumerate(batches(12)):
        (squared_error(by_hand, batch) / accumulation).backward()
        if (i + 1) % accumulation == 0:
            plain.step()
            plain.zero_grad()
    accelerator, model, optimizer = prepared(accumulation=accumulation, **options)  # sows the same random numbers again
    train(accelerator, model, optimizer, batches(12))
    assert equal(by_hand, model)
    assert optimizer.optimizer.clipping_stats() == plain.clipping_stats()
    assert plain.clipping_stats()["steps"] == 12 / accumulation
    assert plain.clipping_stats()["clipped_steps"] > 0


@pytest.mark.parametrize("clipping_type", TYPES)
def test_training_goes_on_bit_for_bit_after_load_state(clip_types, clipping_type):
    options = clip_types[clipping_type]
    accelerator, model, optimizer = prepared(accumulation=2, **options)
    train(accelerator, model, optimizer, batches(20)[:10])
    accelerator.save_state("checkpoint")
    train(accelerator, model, optimizer, batches(20)[10:])

    accelerator, resumed_model, resumed = prepared(accumulation=2, **options)
    train(accelerator, resumed_model, resumed, batches(2))  # something that loading has to undo
    accelerator.load_state("checkpoint")
    train(accelerator, resumed_model, resumed, batches(20)[10:])
    assert equal(model, resumed_model)
    assert torch.equal(optimizer.optimizer.grad_norms(), resumed.optimizer.grad_norms())
    assert optimizer.optimizer.clipping_stats() == resumed.optimizer.clipping_stats()
    assert resumed.optimizer.clipping_stats()["steps"] == 10


def test_measuring_by_accelerate_changes_nothing_and_gives_our_norms():
    accelerator, model, optimizer = prepared()
    norms = train(accelerator, model, optimizer, batches(8), max_norm=torch.inf)
    assert optimizer.optimizer.grad_norms().tolist() == pytest.approx(norms, rel=1e-6)
    accelerator, alone, optimizer = prepared()
    train(accelerator, alone, optimizer, batches(8))
    assert equal(model, alone)


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_library_warns_of_gradients_that_accelerate_has_clipped_and_of_no_others(max_norm):
    accelerator, model, optimizer = prepared(ClippedSGD, lr=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ClippingWarning)
        norms = train(accelerator, model, optimizer, batches(220), max_norm)
    messages = [str(warning.message) for warning in caught if warning.category is ClippingWarning]
    if max_norm is None:
        assert messages == []
        return
    assert min(norms) > 1
    assert len(messages) == 1
    assert "all arrived with norm 1" in messages[0]
    assert optimizer.optimizer.clipping_stats()["grad_norm"] == pytest.approx(1.0, rel=1e-5)


def test_statistics_are_written_of_the_prepared_optimizer():
    accelerator, model, optimizer = prepared()
    train(accelerator, model, optimizer, batches(3))
    written = {}

    class Writer:
        def add_scalar(self, name, value, step):
            written[name] = value, step

    log_clipping_stats(Writer(), optimizer, 3)
    assert written == {f"clipping/{name}": (value, 3) for name, value in optimizer.optimizer.clipping_stats().items()}


@pytest.mark.parametrize("fused", [None, False, True])
def test_overflow_under_accelerates_scaler_leaves_the_step_out(fused):
    accelerate.Accelerator(cpu=True)
    model = network().eval()
    inner = ClippedAdamW(model.parameters(), lr=0.01, clipping_level=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    for factor, skipped in ((torch.inf, True), (1.0, False)):
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(squared_error(model, batches(1)[0]) * factor).backward()
        optimizer.step()
        assert optimizer.step_was_skipped is (skipped and not fused)  # torch's fused kernels find out by themselves
        assert all(map(torch.equal, model.parameters(), before)) is skipped
        optimizer.zero_grad()
    by_hand = network().eval()
    plain = ClippedAdamW(by_hand.parameters(), lr=0.01, clipping_level=0.5, fused=fused)
    squared_error(by_hand, batches(1)[0]).backward()
    plain.step()
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert inner.grad_norms().tolist() == pytest.approx(plain.grad_norms().tolist(), rel=1e-6)


def test_optimizer_is_clipped_before_it_is_prepared_and_not_afterwards():
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    optimizer = clip_optimizer(torch.optim.RMSprop(model.parameters(), lr=0.01), "norm", 0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
    train(accelerator, model, optimizer, batches(4))
    assert optimizer.optimizer.clipping_stats()["steps"] == 2
    late = accelerator.prepare(torch.optim.SGD(network().parameters(), lr=0.01))
    with pytest.raises(TypeError, match="got AcceleratedOptimizer; clip an optimizer before a library wraps it"):
        clip_optimizer(late)
