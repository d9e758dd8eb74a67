"""Parameters without numbers, default devices and types, and tensors of other classes: as with torch's own optimizers."""

import contextlib
from itertools import cycle, product

import pytest
import torch
from support.cases import ONE_A_KIND, TYPES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, GradientClipper, clip_gradients_, clip_optimizer

OPTIMIZERS = {
    "sgd": (ClippedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (ClippedAdam, torch.optim.Adam, {"lr": 0.1}),
    "adamw": (ClippedAdamW, torch.optim.AdamW, {"lr": 0.1}),
    "rmsprop": (lambda p, **k: clip_optimizer(torch.optim.RMSprop(p, lr=k.pop("lr")), **k), torch.optim.RMSprop, {"lr": 0.1}),
}
DEFAULTS = {
    "device": lambda: defaults("meta"),
    "device, by a context": lambda: torch.device("meta"),
    "type": lambda: defaults(None, torch.float64),
}


@contextlib.contextmanager
def defaults(device=None, dtype=None):
    before = torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def with_gradients(params):
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, 2.0 + i)
    return params


def trained(clipping_type, around):
    """Weights and statistics of some steps, each inside of ``around``, as construction and loading are."""
    params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    with around():
        optimizer = ClippedSGD(params, lr=0.1, momentum=0.9, clipping_type=clipping_type)
    for step in range(4):
        with_gradients(params)
        with around():
            optimizer.step()
            if step == 1:
                optimizer.load_state_dict(optimizer.state_dict())
    with around():
        stats, norms = optimizer.clipping_stats(), optimizer.grad_norms()
    return [p.detach() for p in params], stats, norms


@pytest.mark.parametrize(
    ("clipping_type", "default"), [*product(TYPES, ["device", "type"]), *product(ONE_A_KIND, ["device, by a context"])]
)
def test_defaults_of_torch_change_nothing(clipping_type, default):
    expected = trained(clipping_type, contextlib.nullcontext)
    found = trained(clipping_type, DEFAULTS[default])
    assert found[2].device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
def test_gradients_are_clipped_by_hand_under_another_default_device(clipping_type):
    params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    expected = GradientClipper(with_gradients(params), clipping_type).step()
    clipped = [p.grad.clone() for p in params]
    with torch.device("meta"):
        clipper = GradientClipper(params, clipping_type)
    with_gradients(params)
    with torch.device("meta"):
        assert torch.equal(clipper.step(), expected)
        assert expected.device.type == "cpu"
    torch.testing.assert_close([p.grad for p in params], clipped)


@pytest.mark.parametrize(("name", "clipping_type"), [*zip(cycle(OPTIMIZERS), TYPES)])
def test_step_on_the_meta_device_is_torchs(name, clipping_type):
    clipped, plain, options = OPTIMIZERS[name]
    states = []
    for make, more in ((plain, {}), (clipped, {"clipping_type": clipping_type})):
        with torch.device("meta"):
            model = nn.Linear(3, 2)
        optimizer = make(model.parameters(), **options, **more)
        for _ in range(3):
            model(torch.ones(2, 3, device="meta")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append({key: [*value] for key, value in optimizer.state_dict()["state"].items()})
    assert states[0] == states[1]
    assert optimizer.clipping_stats()["steps"] == 0


@pytest.mark.parametrize(("name", "clipping_type"), [*product(OPTIMIZERS, ["auto"]), *zip(cycle(OPTIMIZERS), ONE_A_KIND)])
def test_step_in_fake_tensor_mode_is_torchs(name, clipping_type):
    clipped, plain, options = OPTIMIZERS[name]
    states = []
    with FakeTensorMode():
        for make, more in ((plain, {}), (clipped, {"clipping_type": clipping_type})):
            model = nn.Linear(3, 2)
            optimizer = make(model.parameters(), **options, **more)
            for _ in range(3):
                model(torch.ones(2, 3)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            states.append({key: [*value] for key, value in optimizer.state_dict()["state"].items()})
        assert optimizer.clipping_stats()["steps"] == 0
    assert states[0] == states[1]


@pytest.mark.parametrize("clip", [lambda p: clip_gradients_(p, "norm", 1.0), lambda p: GradientClipper(p, "auto").step()])
def test_gradients_without_numbers_are_left_alone_by_hand(clip):
    p = nn.Parameter(torch.ones(3, device="meta"))
    p.grad = torch.ones(3, device="meta")
    assert clip(p).isnan()


@pytest.mark.parametrize("clipping_type", ONE_A_KIND)
def test_optimizer_of_meta_parameters_trains_once_they_are_materialised(clipping_type):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.device("meta"):
            model = nn.Linear(3, 2)
            optimizer = ClippedSGD(model.parameters(), lr=0.1, clipping_type=clipping_type)
        optimizer.step()
        model.to_empty(device="cpu")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    twin = nn.Linear(3, 2)
    model.load_state_dict(twin.state_dict())
    expected = ClippedSGD(twin.parameters(), lr=0.1, clipping_type=clipping_type)
    for one, trainer in ((model, optimizer), (twin, expected)):
        for _ in range(3):
            with_gradients([*one.parameters()])
            trainer.step()
    torch.testing.assert_close([*model.parameters()], [*twin.parameters()], rtol=0, atol=0)
    assert optimizer.clipping_stats()["steps"] == 3


def test_group_that_was_added_on_the_meta_device_is_a_dry_run_until_it_has_numbers():
    optimizer = ClippedSGD([nn.Parameter(torch.ones(3))], lr=0.1)
    with torch.device("meta"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
    assert optimizer.clipping_stats()["clipped_norm"] == pytest.approx(1.0)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise", "adaptive"])  # of each measure
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parameters_of_a_tensor_subclass_are_clipped_as_plain_ones(name, clipping_type):
    def run(wrap):
        params = [nn.Parameter(wrap(torch.ones(3, 2))), nn.Parameter(wrap(torch.ones(3)))]
        make, _, options = OPTIMIZERS[name]
        optimizer = make(params, **options, clipping_type=clipping_type, fused=False)
        for step in range(4):
            for p in params:
                p.grad = wrap(torch.full(p.shape, 2.0 + step**2))
            optimizer.step()
        return [p.detach() for p in params], optimizer.clipping_stats()

    found, stats = run(lambda t: TwoTensor(t.clone(), t.clone()))
    expected, expected_stats = run(lambda t: t)
    assert all(type(p) is TwoTensor for p in found)
    torch.testing.assert_close([p.b for p in found], expected)
    assert stats == pytest.approx(expected_stats, nan_ok=True)
