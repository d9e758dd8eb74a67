"""States, groups and gradients that used to be taken, and made a later step wrong."""

import pytest
import torch
from torch.optim import SGD

from torch_clipped import Clipped, ClippedAdam, ClippedSGD, ClippingWarning, clip_gradients_, clip_optimizer

KEY = "clipping_memory_"


def trained(clipping_type, steps=60, cls=ClippedSGD, **options):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = cls([weight], lr=1e-3, clipping_type=clipping_type, clipping_window=50, **options)
    for step in range(steps):
        weight.grad = torch.randn(2, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return weight, optimizer


@pytest.mark.parametrize(
    ("clipping_type", "name", "spoil"),
    [
        ("auto", "lengths", torch.zeros(0, 1)),
        ("zscore", "lengths", torch.zeros(50, 2)),
        ("zclip", "average", torch.zeros(2)),
        ("zclip", "average", torch.zeros(0)),
        ("layer_wise_auto", "count", torch.zeros(0, dtype=torch.long)),
    ],
)
def test_histories_of_other_blocks_are_refused(clipping_type, name, spoil):
    for cls in (ClippedSGD, ClippedAdam):
        _, optimizer = trained(clipping_type, cls=cls)
        state = optimizer.state_dict()
        group = state["param_groups"][0]
        group[KEY + name] = spoil
        _, target = trained("norm", steps=3, cls=cls)
        before = repr(target.state_dict())
        with pytest.raises(ValueError, match=KEY + ("lengths|" + KEY + "count" if name == "count" else name)):
            target.load_state_dict(state)
        assert repr(target.state_dict()) == before


@pytest.mark.parametrize(("clipping_type", "name"), [("auto", "lengths"), ("zscore", "count"), ("zclip", "seen")])
def test_history_of_which_a_part_is_missing_starts_anew(clipping_type, name):
    _, optimizer = trained(clipping_type)
    state = optimizer.state_dict()
    del state["param_groups"][0][KEY + name]
    weight, target = trained(clipping_type, steps=3)
    target.load_state_dict(state)
    weight.grad = torch.tensor([3.0, 4.0])
    target.step()
    assert weight.grad.tolist() == [3.0, 4.0]  # the first norm of a history is not clipped


@pytest.mark.parametrize(("name", "value"), [("steps", [1, 100, 0]), ("last", [-1.0, 1.0, 1.0, 1.0])])
def test_statistics_that_cannot_be_are_refused(name, value):
    _, optimizer = trained("norm", steps=3)
    state = optimizer.state_dict()
    state["param_groups"][0][KEY + name] = torch.tensor(value)
    with pytest.raises(ValueError, match=f"{KEY}{name} must"):
        optimizer.load_state_dict(state)


def test_a_checkpoint_that_is_differentiable_is_refused_before_anything_changes():
    weight, optimizer = trained("norm", steps=3)
    state = optimizer.state_dict()
    state["param_groups"][0]["differentiable"] = True
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["differentiable"] is False
    weight.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 4


@pytest.mark.parametrize(
    ("saved", "clipping_type", "options"),
    [
        ("auto", "auto", {"norm_type": 1.0}),
        ("adagc", "zclip", {}),
        ("zscore", "auto", {"norm_type": 3.0}),
    ],
)
def test_clip_optimizer_starts_histories_anew_where_it_measures_otherwise_than_a_checkpoint(saved, clipping_type, options):
    _, optimizer = trained(saved, steps=130)
    weight = torch.nn.Parameter(torch.zeros(2))
    plain = SGD([weight], lr=1e-3)
    plain.load_state_dict(optimizer.state_dict())
    with pytest.warns(ClippingWarning, match="replaces"):
        clip_optimizer(plain, clipping_type, clipping_window=50, **options)
    fresh = ClippedSGD([torch.nn.Parameter(torch.zeros(2))], clipping_type=clipping_type, clipping_window=50, **options)
    for step in range(3):
        gradient = torch.randn(2, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        plain.step()
        fresh.param_groups[0]["params"][0].grad = gradient.clone()
        fresh.step()
    for name, value in fresh.param_groups[0].items():
        if name.removeprefix(KEY) in ("lengths", "count", "average", "variance", "seen") and value.numel():
            torch.testing.assert_close(plain.param_groups[0][name], value, rtol=0, atol=0)


def test_clip_optimizer_that_is_refused_leaves_the_groups_of_a_checkpoint_as_they_were():
    _, optimizer = trained("auto")
    weight = torch.nn.Parameter(torch.zeros(2))
    plain = SGD([weight], lr=1e-3)
    plain.load_state_dict(optimizer.state_dict())
    before = dict(plain.param_groups[0])
    with pytest.raises(ValueError, match="clipping_window"):
        clip_optimizer(plain, "zclip", 3.0, clipping_window=10**15)
    assert type(plain) is SGD
    assert plain.param_groups[0].keys() == before.keys()
    assert all(plain.param_groups[0][key] is value for key, value in before.items())


def test_groups_that_a_checkpoint_leaves_alone_stay_so():
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in "ab")
    groups = [{"params": [first]}, {"params": [second], "clipping_type": "none"}]
    saved = clip_optimizer(SGD(groups, lr=0.1), "norm", 1.0).state_dict()
    resumed = SGD([{"params": [first]}, {"params": [second]}], lr=0.1)
    resumed.load_state_dict(saved)
    clip_optimizer(resumed, "norm", 1.0)
    assert [group["clipping_type"] for group in resumed.param_groups] == ["norm", "none"]


class Around(torch.optim.Optimizer):
    """Wraps an optimizer and shares its groups."""

    def __init__(self, base):
        super().__init__([torch.nn.Parameter(torch.zeros(1))], {})
        self.base, self.param_groups = base, base.param_groups

    def step(self):
        self.base.step()


def test_a_wrapper_of_an_optimizer_that_clips_is_refused_by_name():
    _, inside = trained("norm", steps=1, clipping_level=2.0)
    with pytest.raises(ValueError, match="the ClippedSGD in its 'base' clips"):
        clip_optimizer(Around(inside))
    assert inside.param_groups[0]["clipping_level"] == 2.0


@pytest.mark.parametrize("key", ["norm_typ", "norm_tpye", "nonfinte", "non_finite", "NormType", "Clipping_level"])
def test_misspelt_keys_of_groups_are_named(key):
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(TypeError, match=key):
        ClippedSGD([{"params": [weight], key: 1.0}])
    optimizer = ClippedSGD([weight])
    optimizer.param_groups[0][key] = 1.0
    weight.grad = torch.ones(1)
    with pytest.raises(TypeError, match=key):
        optimizer.step()


@pytest.mark.parametrize(("name", "meant"), [("agc", "adaptive"), ("clip_grad_norm", "norm"), ("percentile", "auto")])
def test_types_of_other_libraries_lead_to_the_same_algorithm(name, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        ClippedSGD([torch.zeros(1)], clipping_type=name)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "adaptive", "coord_wise"])
def test_one_gradient_of_two_parameters_is_shortened_once_for_each(clipping_type):
    def run(shared):
        first, second = (torch.nn.Parameter(torch.tensor([3.0, 4.0])) for _ in "ab")
        gradient = torch.tensor([6.0, 8.0])
        first.grad, second.grad = gradient, gradient if shared else gradient.clone()
        optimizer = ClippedSGD([first, second], lr=1.0, clipping_type=clipping_type)
        optimizer.step()
        return first.detach(), second.detach()

    torch.testing.assert_close(run(shared=True), run(shared=False), rtol=0, atol=0)
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in "ab")
    first.grad = second.grad = torch.tensor([3.0, 4.0])
    clip_gradients_([first, second], "norm", 1.0)
    torch.testing.assert_close(first.grad.norm(), torch.tensor(0.5**0.5))
    torch.testing.assert_close(second.grad, first.grad)


def test_clip_optimizer_returns_an_optimizer_that_type_checkers_know_to_clip():
    assert isinstance(clip_optimizer(SGD([torch.zeros(1)])), Clipped)
