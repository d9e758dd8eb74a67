"""Other ways to use the engine: the mixin, clip_optimizer, clip_gradients_, GradientClipper, register_clipping."""

import copy
import inspect
import itertools
import math
import pickle

import pytest
import torch
from support.assertions import assert_close, equal
from support.cases import ONE_A_KIND, pairwise, saved_and_loaded
from support.reference import ReferenceClipper
from torch.optim import lr_scheduler

import torch_clipped
from torch_clipped import (
    Always,
    Clipped,
    ClippedAdam,
    ClippedAdamW,
    ClippedSGD,
    Clipping,
    Constant,
    GradientClipper,
    MeanStd,
    Quantile,
    Randomly,
    clip_gradients_,
    clip_optimizer,
    register_clipping,
)
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.decisions import uniform

F64 = torch.float64
ALL = list(CLIPPING_TYPES)
REAL = [name for name in ALL if name != "none"]
STATELESS = ["none", "norm", "layer_wise", "coord_wise", "adaptive"]
WITH_MEMORY = [name for name in ALL if name not in STATELESS]
MATRICES = ((4, 3), (2, 5), (3, 3))
BASES = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "weight_decay": 0.01},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01},
    "NAdam": {"lr": 0.01, "weight_decay": 0.01},
    "Muon": {"lr": 0.02, "momentum": 0.9},
    "Lion": {"lr": 0.01, "weight_decay": 0.1},
}
NEW = ["RMSprop", "Adagrad", "NAdam", "Muon", "Lion"]
BY_HAND = {"function": clip_gradients_, "clipper": lambda *args, **options: GradientClipper(*args, **options).step()}


def base(name):
    """The plain optimizer class of that name."""
    if name == "Lion":
        return pytest.importorskip("lion_pytorch", reason="lion-pytorch stands for the optimizers of third parties").Lion
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    return getattr(torch.optim, name)


def mixed(name):
    return type(f"Clipped{name}", (Clipped, base(name)), {"__doc__": f"{name} that clips."})


def shapes_of(name, problem):
    return MATRICES if name == "Muon" else problem.shapes  # Muon takes matrices only


def clip_by_hand(params, clipping_type, level):
    """Clip with torch alone."""
    if clipping_type == "norm":
        torch.nn.utils.clip_grad_norm_(params, level)
    elif clipping_type == "layer_wise":
        for p in params:
            torch.nn.utils.clip_grad_norm_([p], level)
    else:
        torch.nn.utils.clip_grad_value_(params, level)


def gradients_of(params):
    return [p.grad for p in params]


def step_by_hand(optimizer, clipper, grads):
    """Set gradients, clip them with a GradientClipper and step; the norm before and the clipped gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    norm = clipper.step()
    optimizer.step()
    return norm, gradients_of(params)


# The mixin


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise"])
@pytest.mark.parametrize("name", NEW)
def test_mixin_takes_the_step_of_the_plain_optimizer_with_gradients_clipped_by_hand(problem, name, clipping_type):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(F64, shapes), problem.parameters(F64, shapes)
    optimizer = mixed(name)(params, **BASES[name], clipping_type=clipping_type, clipping_level=0.7)
    plain = base(name)(plain_params, **BASES[name])
    lengths = []
    for step in range(12):
        grads = problem.gradients(step, dtype=F64, shapes=shapes)
        lengths.append(problem.length(grads))
        clipped = problem.step(optimizer, grads)
        for p, g in zip(plain_params, grads, strict=True):
            p.grad = g.clone()
        clip_by_hand(plain_params, clipping_type, 0.7)
        assert_close(clipped, gradients_of(plain_params), 1e-5 if clipping_type != "coord_wise" else 0)  # torch adds 1e-6
        for p, g in zip(plain_params, clipped, strict=True):
            p.grad = g.clone()
        plain.step()
        assert equal(params, plain_params)
    assert optimizer.clipping_stats()["clipped_steps"] > 2
    if clipping_type == "norm":
        assert optimizer.grad_norms().tolist() == pytest.approx(lengths, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "clipping_type"),
    [*itertools.product(["RMSprop"], REAL), *itertools.product(NEW[1:], ["adaptive", "linear_rand_auto"])],
)
def test_mixin_clips_as_the_oracle_for_every_type(problem, name, clipping_type):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(F64, shapes), problem.parameters(F64, shapes)
    arguments = {"clipping_type": clipping_type, "clipping_window": 5, "clipping_seed": 3}
    optimizer = mixed(name)(params, **BASES[name], **arguments)
    plain, oracle = base(name)(plain_params, **BASES[name]), ReferenceClipper(clipping_type, window=5)
    for step in range(35):
        grads = problem.gradients(step, dtype=F64, shapes=shapes)
        if step == 30:
            grads = [1000 * g for g in grads]
        draw = uniform(3, 0, oracle.steps)
        flat, weights = ([t.detach().flatten().tolist() for t in tensors] for tensors in (grads, params))
        wanted = oracle.clip(flat, weights=weights, uniform=draw, shapes=shapes)
        clipped = problem.step(optimizer, grads)
        assert_close([g.flatten() for g in clipped], [torch.tensor(w, dtype=F64) for w in wanted], 1e-10)
        for p, g in zip(plain_params, clipped, strict=True):
            p.grad = g.clone()
        plain.step()
        assert equal(params, plain_params)
    assert optimizer.clipping_stats()["clipped_steps"] == oracle.clipped_steps > 0


@pytest.mark.parametrize("name", NEW)
def test_mixin_without_clipping_is_the_plain_optimizer_bit_for_bit(problem, name):
    shapes = shapes_of(name, problem)
    params, plain_params = problem.parameters(shapes=shapes), problem.parameters(shapes=shapes)
    optimizer, plain = mixed(name)(params, **BASES[name], clipping_type="none"), base(name)(plain_params, **BASES[name])
    for step in range(5):
        grads = problem.gradients(step, shapes=shapes)
        problem.step(optimizer, grads)
        problem.step(plain, grads)
    assert equal(params, plain_params)


@pytest.mark.parametrize("name", NEW)
def test_mixin_keeps_its_clipping_in_checkpoints_and_copies(problem, name):
    shapes = shapes_of(name, problem)

    def new():
        params = problem.parameters(shapes=shapes)
        return params, mixed(name)(params, **BASES[name], clipping_type="auto", clipping_level=0.5, clipping_window=4)

    params, optimizer = new()
    for step in range(6):
        problem.step(optimizer, problem.gradients(step, shapes=shapes))
    other_params, other = new()
    other.load_state_dict(saved_and_loaded(optimizer.state_dict(), weights_only=True))
    for p, q in zip(other_params, params, strict=True):
        p.data.copy_(q.data)
    for step in range(6, 10):
        grads = problem.gradients(step, shapes=shapes)
        assert equal(problem.step(optimizer, grads), problem.step(other, grads))
    assert equal(params, other_params)
    assert other.grad_norms().tolist() == optimizer.grad_norms().tolist()


def test_mixin_refuses_a_typo_and_nonsense(problem):
    with pytest.raises(TypeError, match="clipping_levle"):
        mixed("RMSprop")(problem.parameters(), clipping_levle=1.0)
    with pytest.raises(ValueError, match=r"clipping_type must be one of .* got 'nrom'.*'norm'"):
        mixed("RMSprop")(problem.parameters(), clipping_type="nrom")
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):  # torch's own
        mixed("RMSprop")(problem.parameters(), lr=-1)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise", "coord_wise"])
def test_lbfgs_sees_clipped_gradients_in_every_evaluation(problem, clipping_type, search):
    options = {"lr": 0.5, "max_iter": 6, "history_size": 4, "line_search_fn": search}
    target = problem.gradients(0, norm=20.0, dtype=F64)
    runs = []
    for by_hand in (True, False):
        params, calls = problem.parameters(F64), []
        clipping = {} if by_hand else {"clipping_type": clipping_type, "clipping_level": 0.7}
        optimizer = (torch.optim.LBFGS if by_hand else mixed("LBFGS"))(params, **options, **clipping)

        def closure(params=params, calls=calls, optimizer=optimizer, by_hand=by_hand):
            optimizer.zero_grad()
            loss = sum(((p - t) ** 2).sum() + 0.1 * (p**4).sum() for p, t in zip(params, target, strict=True))
            loss.backward()
            calls.append(problem.length(gradients_of(params)))
            if by_hand:
                oracle_clip(params, clipping_type)
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        runs.append((problem.copies(params), calls, losses, optimizer))
    (by_hand, hand_calls, hand_losses, _), (weights, calls, losses, optimizer) = runs
    assert len(calls) == len(hand_calls) > 10
    assert losses == pytest.approx(hand_losses, rel=1e-7)
    assert_close(weights, by_hand, 1e-7)
    stats = optimizer.clipping_stats()
    assert stats["steps"] == len(calls)
    assert stats["clipped_steps"] > 3
    if clipping_type != "coord_wise":
        assert optimizer.grad_norms().tolist() == pytest.approx(calls, rel=1e-12)


def oracle_clip(params, clipping_type):
    oracle = ReferenceClipper(clipping_type, 0.7)
    clipped = oracle.clip([p.grad.flatten().tolist() for p in params])
    for p, flat in zip(params, clipped, strict=True):
        p.grad.copy_(torch.tensor(flat, dtype=F64).view_as(p))


# clip_optimizer


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


# clip_gradients_


def with_gradients(problem, norm=5.0, dtype=F64):
    params = problem.parameters(dtype)
    for p, g in zip(params, problem.gradients(0, norm=norm, dtype=dtype), strict=True):
        p.grad = g
    return params


@pytest.mark.parametrize("level", [0.3, 100.0])
@pytest.mark.parametrize("norm_type", [1, 2, 2.0, 3, math.inf])
def test_clip_gradients_is_torchs_clip_grad_norm(problem, norm_type, level):
    params, other = with_gradients(problem), with_gradients(problem)
    norm = clip_gradients_(params, "norm", level, norm_type=norm_type)
    wanted = torch.nn.utils.clip_grad_norm_(other, level, norm_type)
    assert isinstance(norm, torch.Tensor)
    assert norm.shape == ()
    assert norm.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert_close(gradients_of(params), gradients_of(other), 1e-5)  # torch adds 1e-6 to the norm
    after = torch.nn.utils.get_total_norm(gradients_of(params), norm_type).item()
    assert after == pytest.approx(min(level, wanted.item()), rel=1e-12)


@pytest.mark.parametrize("clipping_type", ["coord_wise", "value"])
def test_clip_gradients_is_torchs_clip_grad_value(problem, clipping_type):
    params, other = with_gradients(problem), with_gradients(problem)
    norm = clip_gradients_(params, clipping_type, 0.4)
    torch.nn.utils.clip_grad_value_(other, 0.4)
    assert equal(gradients_of(params), gradients_of(other))
    assert isinstance(norm, torch.Tensor)
    assert norm.item() == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("clipping_type", STATELESS)
def test_clip_gradients_is_the_oracle_and_returns_the_norm_before(problem, clipping_type):
    params = with_gradients(problem)
    before = [p.grad for p in params]
    oracle = ReferenceClipper(clipping_type)
    flat, weights = ([t.detach().flatten().tolist() for t in tensors] for tensors in (before, params))
    wanted = oracle.clip(flat, weights=weights, shapes=problem.shapes)
    norm = clip_gradients_(params, clipping_type)
    assert norm.item() == pytest.approx(5.0, rel=1e-12)
    assert norm.shape == ()
    assert_close([p.grad.flatten() for p in params], [torch.tensor(w, dtype=F64) for w in wanted])
    assert all(p.grad is g for p, g in zip(params, before, strict=True))
    assert oracle.clipped_steps == (clipping_type != "none")


def test_clip_gradients_has_no_step_to_skip_and_names_the_clipper():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    with pytest.raises(ValueError, match=r"clipping_action must be 'clip' here, got 'skip': .*GradientClipper"):
        clip_gradients_(weight, "norm", 1.0, clipping_action="skip")
    with pytest.raises(ValueError, match=r"clipping_action must be one of .*, got 'skipp'"):
        clip_gradients_(weight, "norm", 1.0, clipping_action="skipp")
    assert weight.grad.tolist() == [3, 4]


@pytest.mark.parametrize("clipping_type", WITH_MEMORY)
def test_clip_gradients_refuses_types_with_memory_and_names_the_clipper(problem, clipping_type):
    params = with_gradients(problem)
    before = problem.copies(gradients_of(params))
    with pytest.raises(ValueError, match=f"{clipping_type}.*GradientClipper|GradientClipper.*{clipping_type}"):
        clip_gradients_(params, clipping_type)
    assert equal(gradients_of(params), before)


@pytest.mark.parametrize("way", BY_HAND)
def test_other_ways_by_hand_take_generators_and_a_single_tensor(problem, way):
    params = with_gradients(problem)
    assert BY_HAND[way]((p for p in params), "norm", 1.0).item() == pytest.approx(5.0)
    assert problem.length(gradients_of(params)) == pytest.approx(1.0)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert BY_HAND[way](weight, "norm", 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("way", [clip_gradients_, GradientClipper])
def test_other_ways_by_hand_refuse_no_parameters(problem, way):
    used_up = iter(problem.parameters())
    list(used_up)
    for nothing in ([], (), used_up):
        with pytest.raises(ValueError, match="parameters"):
            way(nothing)


@pytest.mark.parametrize(
    "wrong",
    [
        [1.0],
        ["weight"],
        [None],
        {"weight": torch.zeros(2)},
        list(torch.nn.Linear(2, 2).named_parameters()),
        [{"params": [torch.zeros(2)]}],
        3,
        None,
        torch.nn.Linear(2, 2),
    ],
    ids=["number", "string", "None in a list", "dict", "named", "groups", "int", "None", "module"],
)
def test_other_ways_by_hand_refuse_what_is_no_tensor_and_name_the_argument(wrong):
    for way in (clip_gradients_, GradientClipper):
        with pytest.raises((ValueError, TypeError), match="parameters"):
            pytest.fail(f"{way.__name__} has taken {way(wrong)}")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"clipping_type": "nrom"}, "nrom.*norm"),
        ({"clipping_level": -1.0}, "clipping_level"),
        ({"norm_type": 0}, "norm_type"),
        ({"nonfinite": "x"}, "nonfinite"),
    ],
    ids=str,
)
def test_other_ways_by_hand_refuse_nonsense(problem, arguments, match):
    for way in (clip_gradients_, GradientClipper):
        with pytest.raises(ValueError, match=match):
            pytest.fail(f"{way.__name__} has taken {way(problem.parameters(), **arguments)}")


@pytest.mark.parametrize("clipping_type", STATELESS)
def test_clip_gradients_without_any_gradient_is_zero_and_changes_nothing(problem, clipping_type):
    params = problem.parameters()
    assert clip_gradients_(params, clipping_type).item() == 0
    assert gradients_of(params) == [None] * len(params)


@pairwise(way=BY_HAND, clipping_type=STATELESS, value=[math.inf, math.nan])
@pytest.mark.filterwarnings("ignore:a gradient was not finite")
def test_other_ways_by_hand_obey_the_policy_for_nonfinite_gradients(problem, way, clipping_type, value):
    def run(nonfinite):
        params = with_gradients(problem)
        params[0].grad[1, 1] = value
        before = problem.copies(gradients_of(params))
        return BY_HAND[way](params, clipping_type, nonfinite=nonfinite), gradients_of(params), before

    for nonfinite in ("skip", "propagate"):
        norm, grads, before = run(nonfinite)
        assert not norm.isfinite()
        whole = nonfinite == "skip" or clipping_type in ("none", "norm")  # else the tensors that are finite may be clipped
        for a, b in list(zip(grads, before, strict=True))[: None if whole else 1]:
            if clipping_type == "coord_wise" and not whole:
                b = b.clamp(-0.1, 0.1)  # keeps NaN
            same = a.nan_to_num(7.0) == b.nan_to_num(7.0)
            assert same.all() if clipping_type != "adaptive" or whole else same[1].all()
    if clipping_type != "none":  # torch's optimizer, bit for bit: no policy
        with pytest.raises(RuntimeError, match="not finite"):
            run("error")
        _, grads, _ = run("zero")
        assert all(g.isfinite().all() for g in grads)
        assert grads[0][1, 1] == 0


# GradientClipper


@pytest.mark.parametrize(
    ("clipping_type", "dtype"), [*itertools.product(ALL, [F64]), *itertools.product(ONE_A_KIND, [torch.float32])], ids=str
)
def test_clipper_clips_like_the_optimizer_of_the_same_type(problem, clipping_type, dtype):
    arguments = {"clipping_type": clipping_type, "clipping_window": 6, "clipping_seed": 5, "clipping_beta": 0.7}
    params, other_params = problem.parameters(dtype), problem.parameters(dtype)
    optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, **arguments)
    plain, clipper = torch.optim.SGD(other_params, lr=0.05, momentum=0.9), GradientClipper(other_params, **arguments)
    tolerance = 1e-11 if dtype == F64 else 1e-4
    for step in range(40):
        grads = problem.gradients(step, dtype=dtype)
        norm, clipped = step_by_hand(plain, clipper, grads)
        assert isinstance(norm, torch.Tensor)
        assert norm.shape == ()
        assert norm.item() == pytest.approx(problem.length(grads), rel=1e-6)
        assert_close(clipped, problem.step(optimizer, grads), tolerance)
    assert_close(params, other_params, tolerance)
    stats, wanted = clipper.clipping_stats(), optimizer.clipping_stats()
    assert {k: stats[k] for k in ("steps", "clipped_steps")} == {k: wanted[k] for k in ("steps", "clipped_steps")}
    assert stats["clipped_steps"] > 0 or clipping_type == "none"
    assert clipper.grad_norms().tolist() == pytest.approx(optimizer.grad_norms().tolist(), rel=1e-6)


# each kind of state is saved after one step, once its window of 8 is full, and after 60 steps
MEMORIES = ["linear_rand_auto", "layer_wise_auto", "zscore", "layer_wise_zscore", "zclip", "adagc"]


@pytest.mark.parametrize(
    ("clipping_type", "stop"),
    [*itertools.product(MEMORIES, [1, 20, 60]), *((name, 20) for name in ALL if name not in MEMORIES)],
)
def test_resumed_clipper_is_the_unbroken_one_bit_for_bit(problem, clipping_type, stop):
    arguments = {"clipping_window": 8, "clipping_seed": 5}

    def run(start, end, state=None):
        params = problem.parameters()
        clipper = GradientClipper(params, clipping_type, **arguments)
        if state is not None:
            clipper = GradientClipper(params)  # all of it comes from the checkpoint
            clipper.load_state_dict(saved_and_loaded(state, weights_only=True))
        clipped = []
        for step in range(start, end):
            for p, g in zip(params, problem.gradients(step), strict=True):
                p.grad = g
            clipper.step()
            clipped += problem.copies(gradients_of(params))
        return clipper, clipped

    unbroken, wanted = run(0, stop + 50)
    broken, first = run(0, stop)
    resumed, second = run(stop, stop + 50, broken.state_dict())
    assert equal(first + second, wanted)
    assert resumed.clipping_stats() == pytest.approx(unbroken.clipping_stats(), rel=0, abs=0, nan_ok=True)
    assert resumed.grad_norms().tolist() == unbroken.grad_norms().tolist()


def test_loaded_clipper_does_not_share_its_memory(problem):
    params = problem.parameters()
    clipper, other = GradientClipper(params, "auto", 0.5), GradientClipper(params)
    for p, g in zip(params, problem.gradients(0), strict=True):
        p.grad = g
    clipper.step()
    other.load_state_dict(clipper.state_dict())
    other.step()
    assert len(clipper.grad_norms()) == 1
    assert len(other.grad_norms()) == 2


def test_clipper_refuses_a_wrong_state_and_stays_as_it_was(problem):
    params = problem.parameters()
    clipper = GradientClipper(params, "layer_wise_auto", 0.5, clipping_window=4)
    for step in range(3):
        for p, g in zip(params, problem.gradients(step), strict=True):
            p.grad = g
        clipper.step()
    norms, good = clipper.grad_norms().tolist(), clipper.state_dict()
    of_others = GradientClipper(params[:2], "layer_wise_auto", clipping_window=4).state_dict()
    wrong_level = good | {"clipping_level": 7.0}
    for wrong in ({}, ClippedSGD(params).state_dict(), torch.optim.SGD(params).state_dict(), of_others, wrong_level):
        with pytest.raises(ValueError, match=r"state_dict|clipping_level"):
            clipper.load_state_dict(wrong)
        assert clipper.grad_norms().tolist() == norms
        assert clipper.state_dict()["clipping_level"] == 0.5
    clipper.step()
    assert len(clipper.grad_norms()) == 4


def test_clipper_measures_all_parameters_as_one_vector(problem):
    params = with_gradients(problem, norm=8.0)
    clipper = GradientClipper(params, "norm", 2.0)
    assert clipper.step().item() == pytest.approx(8.0)
    assert problem.length(gradients_of(params)) == pytest.approx(2.0)
    assert clipper.step().item() == pytest.approx(2.0)  # what is clipped already stays so


# register_clipping


@pytest.mark.usefixtures("table")
def test_own_row_that_repeats_a_type_clips_like_it(problem):
    register_clipping("my_auto", Clipping("global", Quantile(0.6)))
    for mine, theirs in (("my_auto", {"clipping_type": "auto", "clipping_level": 0.6}),):
        optimizer = ClippedSGD(problem.parameters(), clipping_type=mine)
        other = ClippedSGD(problem.parameters(), **theirs)
        for step in range(10):
            grads = problem.gradients(step)
            assert equal(problem.step(optimizer, grads), problem.step(other, grads))
        assert optimizer.clipping_stats()["clipped_steps"] > 0


@pytest.mark.usefixtures("table")
def test_own_row_of_new_parts_works_in_all_other_ways(problem):
    register_clipping("layer_wise_rand", Clipping("layer", Constant(0.5), Randomly(power=1)))
    runs = []
    for way in ("class", "clip_optimizer", "mixin", "clipper"):
        params = problem.parameters()
        plain, arguments = torch.optim.RMSprop(params), {"clipping_type": "layer_wise_rand", "clipping_seed": 2}
        if way in ("class", "mixin"):
            optimizer = mixed("RMSprop")(params, **arguments)
        elif way == "clip_optimizer":
            optimizer = clip_optimizer(plain, **arguments)
        else:
            clipper = GradientClipper(params, **arguments)
        clipped = []
        for step in range(12):
            grads = problem.gradients(step, norm=10.0)
            after = step_by_hand(plain, clipper, grads)[1] if way == "clipper" else problem.step(optimizer, grads)
            clipped += problem.copies(after)
            changed = [not torch.equal(a, g) for a, g in zip(after, grads, strict=True)]
            long = [g.norm() > 0.5 for g in grads]
            assert changed in (long, [False] * len(long))  # one draw for all, none that is short
        runs.append(clipped)
    for left, right in itertools.pairwise(runs):
        assert equal(left, right)


@pytest.mark.usefixtures("table")
def test_own_row_takes_its_default_level_and_checks_levels(problem):
    register_clipping("gentle", Clipping("global", Constant(3.0)))
    assert ClippedSGD(problem.parameters(), clipping_type="gentle").param_groups[0]["clipping_level"] == 3.0
    clipped = problem.step(ClippedSGD(problem.parameters(), clipping_type="gentle"), problem.gradients(0, norm=50.0))
    assert problem.length(clipped) == pytest.approx(3.0, rel=1e-5)
    with pytest.raises(ValueError, match=r"clipping_level.*gentle"):
        ClippedSGD(problem.parameters(), clipping_type="gentle", clipping_level=-3.0)
    params = with_gradients(problem, norm=50.0)
    assert clip_gradients_(params, "gentle").item() == pytest.approx(50.0)
    assert problem.length(gradients_of(params)) == pytest.approx(3.0)


@pytest.mark.parametrize("row", [Clipping("layer", MeanStd(1.0)), Clipping("global", Constant(1.0), Randomly(power=2))], ids=str)
@pytest.mark.usefixtures("table")
def test_own_row_with_memory_or_draws_is_refused_by_clip_gradients(problem, row):
    register_clipping("remembering", row)
    with pytest.raises(ValueError, match="GradientClipper"):
        clip_gradients_(with_gradients(problem), "remembering")


def test_checkpoint_holds_the_name_of_an_own_row(problem, table):
    register_clipping("mine", Clipping("layer", Quantile(0.4)))

    def new(name):
        return ClippedSGD(problem.parameters(), lr=0.01, clipping_type=name)

    optimizer = new("mine")
    for step in range(5):
        problem.step(optimizer, problem.gradients(step))
    state = saved_and_loaded(optimizer.state_dict(), weights_only=True)
    assert state["param_groups"][0]["clipping_type"] == "mine"
    resumed = new("mine")
    resumed.load_state_dict(state)
    grads = problem.gradients(7)
    assert equal(problem.step(resumed, grads), problem.step(optimizer, grads))
    del table["mine"]
    with pytest.raises(ValueError, match="mine"):
        new("norm").load_state_dict(state)


@pytest.mark.parametrize("name", ["norm", "none", "value", "auto_clip", "no_clip", "zclip"])
@pytest.mark.usefixtures("table")
def test_taken_names_are_refused(name):
    row = CLIPPING_TYPES.get(name)
    with pytest.raises(ValueError, match=name):
        register_clipping(name, Clipping("global", Constant(1.0)))
    assert CLIPPING_TYPES.get(name) is row


@pytest.mark.parametrize("name", ["", "two words", "1st", None, 3, "a-b"])
def test_names_that_are_none_are_refused(name, table):
    before = dict(table)
    with pytest.raises((ValueError, TypeError), match="name"):
        register_clipping(name, Clipping("global", Constant(1.0)))
    assert table == before


@pytest.mark.parametrize("wrong", [None, "norm", Clipping, Constant(1.0), ("global", Constant(1.0), Always())], ids=str)
def test_rows_that_are_none_are_refused(wrong, table):
    before = dict(table)
    with pytest.raises((ValueError, TypeError), match=r"[Cc]lipping"):
        register_clipping("mine", wrong)
    assert table == before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("galaxy", Constant(1.0)), "measure"),
        (("global", 1.0), "threshold"),
        (("global", Constant), "threshold"),
        (("global", Constant(1.0), "always"), "decision"),
        (("global", Constant(1.0), Randomly), "decision"),
    ],
    ids=str,
)
def test_rows_of_wrong_parts_are_refused_when_made_or_registered(arguments, match, table):
    before = dict(table)
    with pytest.raises((ValueError, TypeError), match=match):
        register_clipping("mine", Clipping(*arguments))
    assert table == before


def test_every_other_way_is_a_public_name():
    for name in ("Clipped", "clip_optimizer", "clip_gradients_", "GradientClipper", "register_clipping", "Clipping"):
        assert name in torch_clipped.__all__
