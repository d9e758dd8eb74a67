"""clip_optimizer: an optimizer that exists already is made to clip, and refused where it cannot."""

import copy
import inspect
import itertools
import math
import pickle

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import gradients_of, pairwise, saved_and_loaded
from support.ways import BASES, base, shapes_of
from torch.optim import lr_scheduler

from torch_clipped import Clipped, ClippedAdam, ClippedAdamW, ClippedSGD, clip_optimizer
from torch_clipped.clipping import CLIPPING_TYPES

F64 = torch.float64
ALL = list(CLIPPING_TYPES)


@pytest.mark.parametrize("name", BASES)
def test_clip_optimizer_returns_the_same_object_with_its_state_and_groups(problem, name):
    shapes = shapes_of(name, problem)
    params = problem.parameters(shapes=shapes)
    optimizer = base(name)([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], **BASES[name])
    problem.step(optimizer, problem.gradients(0, shapes=shapes))
    groups, state, defaults = optimizer.param_groups, optimizer.state, dict(optimizer.defaults)
    each_group, options = list(groups), [dict(group) for group in groups]
    tensors = {(p, key): value for p, values in state.items() for key, value in values.items()}
    assert clip_optimizer(optimizer, "norm", 0.5) is optimizer
    assert type(optimizer).__name__ == f"Clipped{name}"
    assert isinstance(optimizer, base(name))
    assert isinstance(optimizer, Clipped)
    assert optimizer.param_groups is groups
    assert all(a is b for a, b in zip(optimizer.param_groups, each_group, strict=True))
    for group, before in zip(groups, options, strict=True):
        assert {key: group[key] for key in before} == before
        assert (group["clipping_type"], group["clipping_level"]) == ("norm", 0.5)
    assert optimizer.state is state
    assert tensors
    assert all(state[p][key] is value for (p, key), value in tensors.items())
    assert {key: optimizer.defaults[key] for key in defaults} == defaults


@pytest.mark.parametrize(("name", "wanted"), [("SGD", ClippedSGD), ("Adam", ClippedAdam), ("AdamW", ClippedAdamW)])
def test_clip_optimizer_of_the_named_three_gives_the_named_classes(problem, name, wanted):
    assert type(clip_optimizer(base(name)(problem.parameters()))) is wanted


def test_clip_optimizer_takes_optimizers_with_variable_keyword_arguments():
    class Wrapper(torch.optim.SGD):
        def __init__(self, params, rate, **others):
            super().__init__(params, lr=rate, **others)

    optimizer = clip_optimizer(Wrapper([torch.nn.Parameter(torch.zeros(2))], 0.1))
    names = list(inspect.signature(type(optimizer)).parameters)
    assert names[:3] == ["params", "rate", "clipping_type"]
    assert names[-1] == "others"


def test_clip_optimizer_of_two_optimizers_of_one_class_gives_one_class(problem):
    first, second = (clip_optimizer(torch.optim.NAdam(problem.parameters())) for _ in range(2))
    assert type(first) is type(second)
    assert not isinstance(torch.optim.NAdam(problem.parameters()), Clipped)


@pytest.mark.parametrize(("clipped_class", "clipping_type"), [*zip(itertools.cycle([ClippedSGD, ClippedAdamW]), ALL)])
def test_clip_optimizer_is_the_clipped_class_bit_for_bit(problem, clipped_class, clipping_type):
    name = clipped_class.__name__.removeprefix("Clipped")
    arguments = {"clipping_type": clipping_type, "clipping_window": 5, "clipping_seed": 4, "clipping_beta": 0.7}
    params, other_params = problem.parameters(), problem.parameters()
    optimizer = clip_optimizer(base(name)(params, **BASES[name]), **arguments)
    other = clipped_class(other_params, **BASES[name], **arguments)
    for step in range(12):
        grads = problem.gradients(step)
        assert equal(problem.step(optimizer, grads), problem.step(other, grads))
    assert equal(params, other_params)
    assert optimizer.clipping_stats() == pytest.approx(other.clipping_stats(), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", BASES)
def test_clip_optimizer_in_the_middle_of_a_run_goes_on_from_there(problem, name):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(F64, shapes), problem.parameters(F64, shapes)
    optimizer, plain = base(name)(params, **BASES[name]), base(name)(plain_params, **BASES[name])
    for step in range(8):
        if step == 4:
            clip_optimizer(optimizer, "norm", 0.7)
        grads = problem.gradients(step, norm=5.0, dtype=F64, shapes=shapes)
        problem.step(optimizer, grads)
        factor = 0.7 / 5 if step >= 4 else 1.0
        problem.step(plain, [g * factor for g in grads])
    assert_close(params, plain_params, 1e-2 if name == "Muon" else 1e-10)  # Muon's update is rounded to bfloat16
    assert optimizer.clipping_stats()["steps"] == 4


def test_clip_optimizer_keeps_clipping_arguments_that_a_group_names(problem):
    params = problem.parameters()
    groups = [{"params": params[:2], "clipping_type": "layer_wise", "clipping_level": 7.0}, {"params": params[2:]}]
    optimizer = clip_optimizer(torch.optim.RMSprop(groups), "coord_wise", 0.5)
    written = [(group["clipping_type"], group["clipping_level"]) for group in optimizer.param_groups]
    assert written == [("layer_wise", 7.0), ("coord_wise", 0.5)]


def test_clip_optimizer_keeps_a_type_that_a_group_names_at_its_default_level(problem):
    params = problem.parameters()
    groups = [{"params": params[:2], "clipping_type": "layer_wise"}, {"params": params[2:]}]
    optimizer = clip_optimizer(torch.optim.RMSprop(groups), "norm", 5.0)
    written = [(group["clipping_type"], group["clipping_level"]) for group in optimizer.param_groups]
    assert written == [("layer_wise", 0.3), ("norm", 5.0)]


def test_clip_optimizer_serves_groups_added_later(problem):
    params = problem.parameters()
    optimizer = clip_optimizer(torch.optim.RMSprop(params[:2]), "norm", 0.5)
    optimizer.add_param_group({"params": params[2:]})
    assert optimizer.param_groups[1]["clipping_level"] == 0.5
    clipped = problem.step(optimizer, problem.gradients(0, norm=9.0))
    assert problem.length(clipped) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("registered", ["before", "after"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_clip_optimizer_keeps_hooks_and_runs_them_once(problem, name, registered):
    seen = []
    optimizer = base(name)(problem.parameters())
    if registered == "after":
        clip_optimizer(optimizer)
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    if registered == "before":
        clip_optimizer(optimizer)
    problem.step(optimizer, problem.gradients(0))
    assert seen == ["pre", "post"]
    problem.step(base(name)(problem.parameters()), problem.gradients(0))  # torch patches step of the plain class
    problem.step(optimizer, problem.gradients(1))
    assert seen == ["pre", "post"] * 2
    optimizer.state_dict()
    assert seen[4:] == ["saved"]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_schedulers_attached_before_and_after_clip_optimizer_drive_it_without_a_warning(problem, name):
    params, plain_params = problem.parameters(), problem.parameters()
    rates = []
    for clips, tensors in ((True, params), (False, plain_params)):
        optimizer = base(name)(tensors, lr=0.1)
        before = lr_scheduler.ExponentialLR(optimizer, 0.9)
        if clips:
            clip_optimizer(optimizer, "norm", 1e6)
        after = lr_scheduler.StepLR(optimizer, 2, 0.5)
        run = []
        for step in range(6):
            problem.step(optimizer, problem.gradients(step))
            before.step()
            after.step()
            run.append(optimizer.param_groups[0]["lr"])
        rates.append(run)
        assert not clips or optimizer.clipping_stats()["steps"] == 6
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 6
    assert_close(params, plain_params, 1e-5)


def test_scheduler_attached_before_still_warns_of_the_wrong_order(problem):
    optimizer = torch.optim.RMSprop(problem.parameters(), lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    clip_optimizer(optimizer)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()


@pairwise(name=["SGD", "AdamW", "RMSprop", "Muon"], copied=["deepcopy", "pickle", "torch.save"], scheduled=[False, True])
def test_copies_keep_class_and_clipping(problem, name, copied, scheduled):
    copiers = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda value: pickle.loads(pickle.dumps(value)),
        "torch.save": lambda value: saved_and_loaded(value, weights_only=False),
    }
    shapes = shapes_of(name, problem)
    params = problem.parameters(shapes=shapes)
    optimizer = base(name)(params, **BASES[name])
    if scheduled:
        lr_scheduler.ExponentialLR(optimizer, 0.9)
    clip_optimizer(optimizer, "linear_rand_auto", 0.4, clipping_window=5, clipping_seed=9)
    for step in range(7):
        problem.step(optimizer, problem.gradients(step, shapes=shapes))
    twin = copiers[copied](optimizer)
    assert type(twin) is type(optimizer)
    assert twin is not optimizer
    for step in range(7, 14):
        grads = problem.gradients(step, shapes=shapes)
        assert equal(problem.step(twin, grads), problem.step(optimizer, grads))
    assert equal([p for group in twin.param_groups for p in group["params"]], params)
    assert twin.clipping_stats() == optimizer.clipping_stats()
    assert twin.clipping_stats()["clipped_steps"] > 0
    twin.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))]})
    assert twin.param_groups[-1]["clipping_level"] == 0.4


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"clipping_type": "nrom"}, ValueError, "nrom"),
        ({"clipping_level": -1.0}, ValueError, "clipping_level"),
        ({"clipping_level": "high"}, ValueError, "clipping_level"),
        ({"clipping_level": math.nan}, ValueError, "clipping_level"),
        ({"clipping_type": "none", "clipping_level": 1.0}, ValueError, "clipping_level"),
        ({"clipping_type": "auto", "clipping_level": 75}, ValueError, "clipping_level"),
        ({"clipping_beta": 1.5}, ValueError, "clipping_beta"),
        ({"clipping_window": 1}, ValueError, "clipping_window"),
        ({"norm_type": 0.5}, ValueError, "norm_type"),
        ({"nonfinite": "explode"}, ValueError, "nonfinite"),
        ({"clipping_seed": -1}, ValueError, "clipping_seed"),
        ({"clipping_levle": 1.0}, TypeError, "clipping_levle"),
    ],
    ids=str,
)
def test_clip_optimizer_with_bad_arguments_leaves_the_optimizer_untouched(problem, arguments, error, match):
    for name in ("SGD", "RMSprop"):
        assert_untouched_by_clip_optimizer(problem, base(name)(problem.parameters(), **BASES[name]), arguments, error, match)


@pytest.mark.parametrize("bad", [{"clipping_level": -1.0}, {"clipping_type": "nrom"}, {"nonfinite": "explode"}], ids=str)
def test_clip_optimizer_leaves_the_optimizer_untouched_where_a_group_holds_nonsense(problem, bad):
    params = problem.parameters()
    optimizer = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], **bad}], lr=0.1)
    assert_untouched_by_clip_optimizer(problem, optimizer, {}, ValueError, next(iter(bad)))


def test_clip_optimizer_leaves_a_differentiable_optimizer_untouched(problem):
    optimizer = torch.optim.SGD([p.detach().clone() for p in problem.parameters()], lr=0.1, differentiable=True)
    assert_untouched_by_clip_optimizer(problem, optimizer, {}, ValueError, "differentiable")


def assert_untouched_by_clip_optimizer(problem, optimizer, arguments, error, match):
    problem.step(optimizer, problem.gradients(0))
    before, groups = type(optimizer), [dict(group) for group in optimizer.param_groups]
    attributes, defaults = dict(vars(optimizer)), dict(optimizer.defaults)
    with pytest.raises(error, match=match):
        clip_optimizer(optimizer, **arguments)
    assert type(optimizer) is before
    assert optimizer.defaults == defaults
    assert vars(optimizer).keys() == attributes.keys()
    assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in groups]
    problem.step(optimizer, problem.gradients(1))


def test_clip_optimizer_twice_is_refused(problem):
    optimizer = clip_optimizer(torch.optim.RMSprop(problem.parameters()), "norm", 0.5)
    for clips in (optimizer, ClippedSGD(problem.parameters())):
        with pytest.raises(ValueError, match=r"clips already|does not clip yet"):
            clip_optimizer(clips, "coord_wise")
    assert optimizer.param_groups[0]["clipping_type"] == "norm"


@pytest.mark.parametrize(
    "wrong", [None, torch.nn.Linear(2, 2), torch.optim.SGD, [torch.zeros(2)]], ids=["None", "module", "class", "list"]
)
def test_clip_optimizer_of_something_else_is_refused(wrong):
    with pytest.raises(TypeError, match=r"optimizer must be"):
        clip_optimizer(wrong)


class Wrapper(torch.optim.Optimizer):
    """Hands everything on to an optimizer, as those that libraries put around ours do."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def defaults(self):
        return self.optimizer.defaults

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Copier(Wrapper):
    """Has the attributes of an optimizer without what Optimizer.__init__ makes, so that torch's hooks have no place."""

    param_groups = defaults = None

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.param_groups, self.defaults, self.state = optimizer.param_groups, optimizer.defaults, {}


@pytest.mark.parametrize("kind", [Wrapper, Copier])
def test_clip_optimizer_of_a_wrapper_is_refused_and_leaves_it_as_it_is(kind, problem):
    wrapper = kind(torch.optim.SGD(problem.parameters()))
    with pytest.raises(TypeError, match=f"got {kind.__name__}; clip an optimizer before a library wraps it"):
        clip_optimizer(wrapper)
    assert type(wrapper) is kind
    assert type(wrapper.optimizer) is torch.optim.SGD
    assert "clipping_type" not in wrapper.param_groups[0]


@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_checkpoints_go_between_clip_optimizer_and_the_plain_and_the_clipped_class(problem):
    optimizer = clip_optimizer(torch.optim.SGD(problem.parameters(), **BASES["SGD"]), "auto", 0.5)
    for step in range(5):
        problem.step(optimizer, problem.gradients(step))
    state = saved_and_loaded(optimizer.state_dict(), weights_only=True)
    clipped = ClippedSGD(problem.parameters(), **BASES["SGD"])
    clipped.load_state_dict(state)
    assert clipped.grad_norms().tolist() == optimizer.grad_norms().tolist()
    plain = torch.optim.SGD(problem.parameters(), **BASES["SGD"])
    plain.load_state_dict(state)
    problem.step(plain, problem.gradients(9))
    again = clip_optimizer(torch.optim.SGD(problem.parameters(), **BASES["SGD"]), "norm", 3.0)
    again.load_state_dict(torch.optim.SGD(problem.parameters(), **BASES["SGD"]).state_dict())
    assert again.param_groups[0]["clipping_level"] == 3.0


@pytest.mark.parametrize("call", ["positional", "keyword"])
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "LBFGS"])
def test_clip_optimizer_clips_after_the_closure(problem, name, call):
    params = problem.parameters()
    optimizer = clip_optimizer(base(name)(params, lr=0.01), "norm", 0.5)
    grads, calls = problem.gradients(0, norm=10.0), []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
        loss.backward()
        return loss

    loss = optimizer.step(closure) if call == "positional" else optimizer.step(closure=closure)
    assert loss.item() == pytest.approx(
        sum((p * g).sum().item() for p, g in zip(problem.parameters(), grads, strict=True)), rel=1e-5
    )
    assert problem.length(gradients_of(params)) == pytest.approx(0.5, rel=1e-5)
    assert optimizer.clipping_stats()["steps"] == len(calls)
