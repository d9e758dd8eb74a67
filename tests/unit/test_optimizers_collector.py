"""Properties of optimizers, models and restarts, and the collector that trains side by side from one start."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR

from torch_clipped import ClippedAdam, ClippedSGD, Restarter
from torch_clipped.optimizers_collector import ModelProperties, OptimizerProperties, OptimizersCollector, RestartProperties


class Net(nn.Module):
    def __init__(self, width, dropout=0.5):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, inputs):
        return self.layers(inputs)


NET = ModelProperties(Net, width=8)
CONTENDERS = [
    OptimizerProperties(SGD, lr=0.1),
    (OptimizerProperties(ClippedSGD, lr=0.1, momentum=0.9, clipping_level=0.5), RestartProperties(3, 1.5, 6)),
    OptimizerProperties(LBFGS, lr=0.1, max_iter=3),
    OptimizerProperties(ClippedAdam, lr=0.01, clipping_type="linear_rand_auto"),
]


def batches(count=8):
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count, 16, 3, generator=generator)


def squared_error(model, batch):
    return (model(batch).squeeze(1) - batch.sum(1)).square().mean()


def trained(contenders, count=8, seed=0):
    collector = OptimizersCollector(NET, contenders, seed=seed)
    for batch in batches(count):
        collector.step(batch, squared_error)
    return collector


def assert_alike(one, other, label):
    assert one.losses[label] == other.losses[label]
    for a, b in zip(one.models[label].state_dict().values(), other.models[label].state_dict().values(), strict=True):
        assert torch.equal(a, b)


# the collector


def test_other_contenders_and_their_order_change_nothing_bit_for_bit():
    everything, backwards = trained(CONTENDERS), trained(CONTENDERS[::-1])
    assert list(everything.models) == list(backwards.models)[::-1]
    for contender in CONTENDERS:
        alone = trained([contender])
        (label,) = alone.models
        assert len(alone.losses[label]) == 8
        assert_alike(alone, everything, label)
        assert_alike(backwards, everything, label)


def test_all_start_from_the_same_weights_and_buffers_in_models_of_their_own():
    collector = OptimizersCollector(NET, CONTENDERS, seed=4)
    torch.manual_seed(4)
    reference = Net(8)
    for model in collector.models.values():
        for mine, its in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
            assert torch.equal(mine, its)
    assert len({id(p) for model in collector.models.values() for p in model.parameters()}) == 4 * 6
    losses = collector.step(batches()[0], squared_error)
    assert len(set(losses.values())) == 1  # the same start, the same batch, the same dropout


def test_a_step_is_that_of_the_ordinary_loop():
    collector = OptimizersCollector(
        ModelProperties(nn.Linear, 3, 1), [(OptimizerProperties(ClippedSGD, lr=0.1, momentum=0.9), RestartProperties(3, 1.0))]
    )
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = ClippedSGD(model.parameters(), lr=0.1, momentum=0.9)
    restarter = Restarter(optimizer, 3, 1.0)
    losses = []
    for batch in batches():
        losses.append(squared_error(model, batch))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
        restarter.step()
        assert collector.step(batch, squared_error) == {label: losses[-1].item() for label in collector.models}
    (label,) = collector.models
    assert collector.losses == {label: [loss.item() for loss in losses]}
    assert torch.equal(collector.models[label].weight, model.weight)
    assert collector.restarters[label].restarts == 2
    assert torch.equal(collector.grad_norms()[label], optimizer.grad_norms())


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(8)
    before = torch.get_rng_state()
    trained(CONTENDERS, count=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_accelerator_with_one_device_only_is_seeded(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))  # has no manual_seed_all
    on_accelerator = trained(CONTENDERS[:1], count=2)
    monkeypatch.undo()
    assert_alike(on_accelerator, trained(CONTENDERS[:1], count=2), "SGD, lr 0.1")


def test_dropout_differs_between_steps_and_between_seeds():
    still = [OptimizerProperties(SGD, lr=0.0)]

    def losses(seed):
        model = nn.Sequential(nn.Dropout(0.5), nn.Flatten(0))
        model.register_parameter("unused", nn.Parameter(torch.zeros(())))
        collector = OptimizersCollector(ModelProperties(lambda: model), still, seed=seed)
        ones = torch.ones(64)
        return [collector.step(ones, lambda model, x: (model(x) + model.unused).sum())["SGD, lr 0"] for _ in range(6)]

    streams = [losses(seed) for seed in (0, 1, 2)]
    assert streams[0] == losses(0)
    assert len({tuple(stream) for stream in streams}) == 3
    assert streams[0][1:] != streams[1][:-1]  # not the same stream shifted by one step
    assert all(len(set(stream)) > 2 for stream in streams)


def test_every_closure_call_of_lbfgs_meets_the_same_random_numbers():
    seen = []

    def loss_function(model, batch):
        seen.append(torch.rand(()).item())
        return squared_error(model, batch)

    collector = OptimizersCollector(NET, CONTENDERS[1:3])
    for batch in batches(2):
        collector.step(batch, loss_function)
    assert len(seen) > 4
    assert len(set(seen)) == 2


def test_norms_are_kept_of_the_optimizers_that_clip():
    norms = trained(CONTENDERS).grad_norms()
    assert list(norms) == [
        "ClippedSGD, norm 0.5, lr 0.1, momentum 0.9, restarts 3 x 1.5 to 6",
        "ClippedAdam, linear_rand_auto, lr 0.01",
    ]
    assert all(len(values) == 8 for values in norms.values())


def test_equal_contenders_are_refused_by_their_places():
    same = [CONTENDERS[0], CONTENDERS[1], OptimizerProperties(SGD, lr=0.1)]
    with pytest.raises(ValueError, match=r"contenders 0 and 2 must differ, but both are 'SGD, lr 0\.1'"):
        OptimizersCollector(NET, same)
    OptimizersCollector(NET, [CONTENDERS[0], (CONTENDERS[0], RestartProperties())])


def test_nonsense_is_refused():
    with pytest.raises(TypeError, match="model_properties must be ModelProperties, got Linear"):
        OptimizersCollector(nn.Linear(1, 1), CONTENDERS)
    with pytest.raises(
        TypeError, match="contender 1 must be OptimizerProperties, or a pair of them and RestartProperties, got 3"
    ):
        OptimizersCollector(NET, [CONTENDERS[0], 3])
    with pytest.raises(TypeError, match="contender 0 must be"):
        OptimizersCollector(NET, [(CONTENDERS[0], 50)])
    with pytest.raises(ValueError, match="contenders must hold at least one OptimizerProperties, got none"):
        OptimizersCollector(NET, [])
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        OptimizersCollector(NET, CONTENDERS, seed=-1)
    with pytest.raises(TypeError, match=r"model_class must return a torch\.nn\.Module, got int"):
        OptimizersCollector(ModelProperties(lambda: 3), CONTENDERS)


# properties


@pytest.mark.parametrize(
    ("properties", "label"),
    [
        (OptimizerProperties(SGD), "SGD"),
        (OptimizerProperties(SGD, lr=1e-3, nesterov=True, momentum=0.9), "SGD, lr 0.001, nesterov True, momentum 0.9"),
        (OptimizerProperties(SGD, lr=0.12345678), "SGD, lr 0.12345678"),
        (OptimizerProperties(Adam, betas=(0.9, 0.95)), "Adam, betas (0.9, 0.95)"),
        (OptimizerProperties(ClippedSGD, lr=0.1, clipping_level=2.0), "ClippedSGD, norm 2, lr 0.1"),
        (OptimizerProperties(ClippedSGD, clipping_type="none"), "ClippedSGD, none"),
        (
            OptimizerProperties(ClippedSGD, lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1),
            "ClippedSGD, layer_wise 1, lr 0.05, momentum 0.9",
        ),
        (RestartProperties(), "restarts 50 x 1.25 to 2000"),
        (RestartProperties(10, 2, 40, average="last"), "restarts 10 x 2 to 40, average last"),
    ],
)
def test_labels_are_for_legends(properties, label):
    assert properties.label() == label


def test_wrong_arguments_are_refused_at_once():
    with pytest.raises(TypeError, match="ClippedSGD has no argument 'clipping_levle'; did you mean 'clipping_level'"):
        OptimizerProperties(ClippedSGD, clipping_levle=1)
    with pytest.raises(TypeError, match=r"SGD: multiple values for argument 'params'"):
        OptimizerProperties(SGD, params=[])
    with pytest.raises(TypeError, match="optimizer_class must be a class or a function, got 'SGD'"):
        OptimizerProperties("SGD")
    with pytest.raises(TypeError, match="Net has no argument 'widht'; did you mean 'width'"):
        ModelProperties(Net, widht=3)
    with pytest.raises(TypeError, match="Net: missing a required argument: 'width'"):
        ModelProperties(Net)
    with pytest.raises(TypeError, match="<lambda>: missing a required argument: 'width'"):
        ModelProperties(lambda width, **others: Net(width), depth=3)


def test_arguments_of_a_class_derived_from_a_clipped_one_are_known():
    class Named(ClippedSGD):
        def __init__(self, params, name, **others):
            super().__init__(params, **others)
            self.name = name

    properties = OptimizerProperties(Named, name="x", lr=0.3)
    assert properties.make([nn.Parameter(torch.zeros(1))]).name == "x"
    with pytest.raises(TypeError, match="Named: missing a required argument: 'name'"):
        OptimizerProperties(Named, lr=0.3)


def test_properties_make_what_they_say_and_do_not_change():
    net = NET.make()
    optimizer = OptimizerProperties(ClippedSGD, lr=0.3).make(net.parameters())
    assert type(optimizer) is ClippedSGD
    assert optimizer.param_groups[0]["lr"] == 0.3
    restarter = RestartProperties(7, 2, 20, "last").make(optimizer)
    assert (restarter.window, restarter.restart_coeff, restarter.max_steps_cnt, restarter.average) == (7, 2.0, 20, "last")
    assert restarter.optimizer is optimizer
    for properties in (NET, OptimizerProperties(SGD), RestartProperties()):
        name = dataclasses.fields(properties)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(properties, name, None)


def test_optimizers_of_one_kind_do_not_share_a_learning_rate_that_is_a_tensor():
    properties = OptimizerProperties(Adam, lr=torch.tensor(0.1))
    one, other = (properties.make([nn.Parameter(torch.zeros(1))]) for _ in range(2))
    scheduler = ExponentialLR(one, 0.5)
    one.step()
    scheduler.step()
    assert one.param_groups[0]["lr"] == 0.05
    assert other.param_groups[0]["lr"] == properties.optimizer_kwargs["lr"] == torch.tensor(0.1)
