"""Parameters that are shared, frozen, moved and converted."""

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import FLAGS, ONE_A_KIND, TYPES, pairwise
from support.gradient_oracle import CLASSES, Oracle, Spiky, arguments_of, assert_oracles

from torch_clipped import ClippedSGD

F64 = torch.float64


@pytest.fixture
def problem():
    return Spiky()


@pytest.mark.parametrize("clipping_type", TYPES)
def test_tied_parameter_counts_once(clipping_type):
    torch.manual_seed(0)
    first, second = (torch.nn.Linear(3, 3, dtype=F64) for _ in range(2))
    second.weight = first.weight
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    params = list(model.parameters())
    assert len(params) == 3
    optimizer, oracle = ClippedSGD(model.parameters(), lr=0.05, **arguments_of(clipping_type)), Oracle(clipping_type)
    for step in range(20):
        optimizer.zero_grad()
        (model(torch.randn(4, 3, dtype=F64)) * 10 ** (step % 3)).square().sum().backward()
        wanted = oracle.clip([p.grad.clone() for p in params], params)
        optimizer.step()
        assert_oracles([p.grad for p in params], wanted, f"step {step}")


def test_parameter_given_twice_gives_torchs_error_and_warning(problem):
    weight = problem.parameters()[0]
    for optimizer_class in (torch.optim.SGD, ClippedSGD):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer_class([weight, weight], lr=0.1)
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer_class([{"params": [weight]}, {"params": [weight]}], lr=0.1)


@pairwise(name=CLASSES, clipping_type=TYPES, flags=["chosen", "fused"])
def test_parameters_frozen_and_unfrozen_are_the_oracles(problem, name, clipping_type, flags):
    clipped_class, plain_class, options = CLASSES[name]
    if name == "SGD":
        options = options | {"weight_decay": 0.01}
    params, plain_params = problem.parameters(), problem.parameters()
    params[0].requires_grad_(False)
    optimizer = clipped_class(params, **options, **FLAGS[flags], **arguments_of(clipping_type))
    plain, oracle = plain_class(plain_params, **options), Oracle(clipping_type)
    for step in range(36):
        if step == 6:
            params[0].requires_grad_(True)
        if step == 12:
            params[1].requires_grad_(False)
        if step == 20:
            params[1].requires_grad_(True)
        grads = [g if p.requires_grad else None for p, g in zip(params, problem.gradients(step), strict=True)]
        wanted = oracle.clip(grads, params)
        optimizer.zero_grad()
        sum((p * g).sum() for p, g in zip(params, grads, strict=True) if g is not None).backward()
        optimizer.step()
        clipped = [p.grad for p in params]
        assert_oracles(clipped, wanted, f"step {step}")
        problem.step(plain, clipped)
        assert_close(params, plain_params, 1e-4)


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
@pytest.mark.parametrize("name", CLASSES)
def test_parameter_whose_data_is_replaced_is_stepped_where_it_is_now(problem, name, clipping_type):
    clipped_class, _, options = CLASSES[name]
    params, other_params = problem.parameters(), problem.parameters()
    optimizer = clipped_class(params, **options, **arguments_of(clipping_type))
    other = clipped_class(other_params, **options, **arguments_of(clipping_type))
    for step in range(12):
        if step in (0, 5):
            kept = [p.data for p in params]
            for p in params:
                p.data = p.data.clone()
        grads = problem.gradients(step)
        assert equal(problem.step(optimizer, grads), problem.step(other, grads))
        assert equal(params, other_params)
    assert not equal(kept, params)


@pairwise(
    ids=str,
    name_and_step=[("SGD", 0), ("SGD", 4), ("AdamW", 0)],  # torch's AdamW needs parameters of the type of their moments
    clipping_type=["none", "norm", "coord_wise", "layer_wise_auto", "adaptive", "adagc"],
    dtype=[torch.float64, torch.bfloat16, torch.float16],
)
def test_model_converted_after_construction_steps_as_with_the_plain_optimizer(problem, name_and_step, clipping_type, dtype):
    name, after = name_and_step
    clipped_class, plain_class, options = CLASSES[name]
    if name != "SGD":
        options = options | {"eps": 1e-3}  # float16 does not know 1e-8
    params, plain_params = problem.parameters(), problem.parameters()
    model, plain_model = torch.nn.ParameterList(params), torch.nn.ParameterList(plain_params)
    arguments = arguments_of(clipping_type) if clipping_type != "none" else {"clipping_type": "none"}
    optimizer, plain = clipped_class(model.parameters(), **options, **arguments), plain_class(plain_model.parameters(), **options)
    oracle = Oracle(clipping_type)
    for step in range(10):
        if step == after:
            model.to(dtype)
            plain_model.to(dtype)
        now = dtype if step >= after else torch.float32
        grads = problem.gradients(step, norm=0.5 + 0.2 * step, dtype=now)
        wanted = oracle.clip(grads, params)
        clipped = problem.step(optimizer, grads)
        assert all(p.dtype == now for p in params)
        if clipping_type != "none":
            assert_oracles(clipped, wanted, f"step {step}", digits=2e-7)  # the history may hold lengths of float32
        problem.step(plain, clipped)
        assert_close(params, plain_params, 0.1 if dtype != F64 else 1e-4)  # rounded in other places
    assert optimizer.clipping_stats()["steps"] == (10 if clipping_type != "none" else 0)
