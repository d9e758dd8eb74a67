"""Checkpoints: every way out and in again, old and foreign ones, and a run that is killed."""

import copy
import math
import pickle
import random
import subprocess
import sys
import warnings
from itertools import cycle, product

import pytest
import torch
from support import resumable_run
from support.assertions import assert_same, equal
from support.cases import pairwise, parameters_of, saved_and_loaded
from support.pages import ROOT
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, clip_optimizer

TYPES = resumable_run.TYPES
CLIPPING = [name for name in TYPES if name != "none"]
KINDS = ["norm", "zclip", "adagc", "linear_rand_auto"]  # with "layer_wise_auto" one type of each kind of state
ARGUMENTS = {
    "clipping_type": "layer_wise_auto",
    "clipping_level": 0.5,
    "clipping_beta": 0.25,
    "clipping_window": 6,
    "norm_type": 1.0,
    "nonfinite": "zero",
    "clipping_seed": 3,
}


def clipped_rmsprop(params, lr=0.01, **clipping):
    return clip_optimizer(torch.optim.RMSprop(params, lr=lr, momentum=0.9), **clipping)


MAKERS = {
    "sgd": lambda params, **clipping: ClippedSGD(params, lr=0.01, momentum=0.9, **clipping),
    "sgd without momentum": lambda params, **clipping: ClippedSGD(params, lr=0.01, **clipping),
    "adam": lambda params, **clipping: ClippedAdam(params, lr=0.01, amsgrad=True, **clipping),
    "adamw": lambda params, **clipping: ClippedAdamW(params, lr=0.01, **clipping),
    "rmsprop": clipped_rmsprop,
}
PLAIN = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.9),
}


def told(optimizer):
    return [optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]


def same(stats):
    return [pytest.approx(s, rel=0, abs=0, nan_ok=True) for s in stats]


def two_groups(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]


def three_sets(params):
    return [
        {"params": params[:1]},
        {"params": params[1:3], "clipping_window": 5},
        {"params": params[3:], "clipping_type": "norm", "clipping_level": 2.0, "weight_decay": 0.1},
    ]


class Model(torch.nn.Module):
    """Holds parameters, for torch.distributed.checkpoint, which knows them by name."""

    def __init__(self, params):
        super().__init__()
        self.weights = torch.nn.ParameterList(params)


def fresh_like(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def by_state_dict(params, optimizer, make):
    fresh = make(fresh_like(params))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return list(parameters_of(fresh)), fresh


def by_file(params, optimizer, make):
    fresh = make(fresh_like(params))
    fresh.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    return list(parameters_of(fresh)), fresh


def by_deepcopy(params, optimizer, make):
    return copy.deepcopy((params, optimizer))


def by_pickle(params, optimizer, make):
    return pickle.loads(pickle.dumps((params, optimizer)))


def by_distributed_checkpoint(**options):
    def way(params, optimizer, make):
        chosen = StateDictOptions(**options)
        for p in params:
            p.grad = None
        saved = saved_and_loaded(get_optimizer_state_dict(Model(params), optimizer, options=chosen))
        fresh_params = fresh_like(params)
        fresh = make(fresh_params)
        set_optimizer_state_dict(Model(fresh_params), fresh, saved, options=chosen)
        return fresh_params, fresh

    return way


WAYS = {
    "state_dict": by_state_dict,
    "file": by_file,
    "deepcopy": by_deepcopy,
    "pickle": by_pickle,
    "distributed": by_distributed_checkpoint(),
    "distributed, flattened": by_distributed_checkpoint(flatten_optimizer_state_dict=True),
    "distributed, full": by_distributed_checkpoint(full_state_dict=True),
}


def torch_can(name, way):
    """The full form of torch 2.13 loses the empty state of an optimizer without any."""
    return (name, way) != ("sgd without momentum", "distributed, full")


def go_on(problem, optimizer, first, last):
    """The gradients after clipping of these steps, every seventh of which is bad."""
    clipped = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(first, last):
            grads = problem.gradients(step)
            if step % 7 == 5 and optimizer.param_groups[0]["clipping_type"] != "none":
                grads[0].view(-1)[2] = math.nan
            clipped += problem.copies(problem.step(optimizer, grads))
    return clipped


@pytest.mark.parametrize(
    ("clipping_type", "name", "way"),
    [
        *product(["layer_wise_auto"], MAKERS, WAYS),
        *((kind, name, way) for kind, name in zip(KINDS, cycle(["sgd", "adamw"]), strict=False) for way in WAYS),
        *product(["linear_rand_auto"], ["sgd without momentum"], ["distributed", "distributed, flattened"]),
        *zip(
            [name for name in TYPES if name not in (*KINDS, "layer_wise_auto")],
            cycle(["sgd", "adamw"]),
            cycle(WAYS),
            strict=False,
        ),
    ],
)
def test_run_goes_on_bit_for_bit_after_every_way_of_saving(problem, clipping_type, name, way):
    clipping = {"clipping_type": clipping_type, "clipping_window": 6, "clipping_beta": 0.5, "clipping_seed": 5}
    at, end = {"adagc": (60, 104), "zclip": (20, 32)}.get(clipping_type, (9, 20))  # the former in the warm-up

    def make(params):
        return MAKERS[name](three_sets(params), **clipping)

    if not torch_can(name, way):
        pytest.skip("torch cannot")

    params = problem.parameters()
    optimizer = make(params)
    go_on(problem, optimizer, 0, at)
    other_params, other = WAYS[way](params, optimizer, make)
    assert type(other) is type(optimizer)
    assert torch.equal(other.grad_norms(), optimizer.grad_norms())
    assert told(other) == same(told(optimizer))
    wanted = go_on(problem, optimizer, at, end)
    got = go_on(problem, other, at, end)
    assert_same([g.nan_to_num() for g in got], [g.nan_to_num() for g in wanted])
    assert equal(other_params, params)
    assert torch.equal(other.grad_norms(), optimizer.grad_norms())
    assert told(other) == same(told(optimizer))


@pytest.mark.parametrize(
    ("name", "way"),
    [*product(["rmsprop"], WAYS), *zip(cycle(["sgd without momentum", "adam", "sgd", "adamw"]), WAYS, strict=False)],
)
@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_arguments_of_the_checkpoint_win_as_lr_does(problem, name, way):
    if not torch_can(name, way):
        pytest.skip("torch cannot")
    params = problem.parameters()
    optimizer = MAKERS[name](two_groups(params), **ARGUMENTS)
    go_on(problem, optimizer, 0, 4)
    optimizer.param_groups[1]["clipping_level"] = 0.75
    optimizer.param_groups[1]["lr"] = 0.5
    _, other = WAYS[way](params, optimizer, lambda params: MAKERS[name](two_groups(params), clipping_type="auto"))
    keys = [*ARGUMENTS, "lr"]
    wanted = [{key: group[key] for key in keys} for group in optimizer.param_groups]
    assert [{key: group[key] for key in keys} for group in other.param_groups] == wanted
    assert wanted[0] == ARGUMENTS | {"lr": 0.01}
    assert len(other.grad_norms()) == 4


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_saving_twice_gives_the_same_checkpoint(problem, name):
    optimizer = MAKERS[name](three_sets(problem.parameters()), clipping_type="layer_wise_zscore")
    go_on(problem, optimizer, 0, 6)
    first = saved_and_loaded(optimizer.state_dict())
    other = MAKERS[name](three_sets(problem.parameters()), clipping_type="norm")
    other.load_state_dict(first)
    assert_same(saved_and_loaded(other.state_dict()), saved_and_loaded(optimizer.state_dict()))


@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_checkpoint_in_memory_is_not_changed_by_steps_of_the_one_who_loaded_it(problem):
    optimizer = ClippedSGD(problem.parameters(), clipping_type="layer_wise_auto", clipping_window=4)
    go_on(problem, optimizer, 0, 5)
    checkpoint = optimizer.state_dict()
    before = copy.deepcopy(checkpoint)
    others = [ClippedSGD(problem.parameters()) for _ in range(2)]
    for other in others:
        other.load_state_dict(checkpoint)
        go_on(problem, other, 20, 24)
    assert_same(checkpoint, before)
    assert told(others[0]) == same(told(others[1]))


# Plain torch checkpoints, older and newer ones.


@pytest.mark.parametrize(("clipping_type", "name"), [*zip(TYPES, cycle(PLAIN), strict=False)])
def test_checkpoints_go_from_torch_to_us_and_back(problem, name, clipping_type):
    plain_params = problem.parameters()
    plain = PLAIN[name](two_groups(plain_params))
    for step in range(3):
        problem.step(plain, problem.gradients(step))
    plain.param_groups[1]["lr"] = 0.125
    params = fresh_like(plain_params)
    groups = two_groups(params)
    groups[1] |= {"clipping_type": "layer_wise", "clipping_level": 7.0, "nonfinite": "zero"}
    optimizer = MAKERS[name](groups, clipping_type=clipping_type, clipping_window=4, clipping_seed=9)
    arguments = [{key: group[key] for key in ARGUMENTS} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved_and_loaded(plain.state_dict()))
    assert [{key: group[key] for key in ARGUMENTS} for group in optimizer.param_groups] == arguments
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.125]
    for step in range(3, 6):
        problem.step(optimizer, problem.gradients(step))
    assert optimizer.clipping_stats()["steps"] == 3
    returned = PLAIN[name](two_groups(fresh_like(params)))
    returned.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert [group["lr"] for group in returned.param_groups] == [0.01, 0.125]
    for step in range(6, 9):
        problem.step(returned, problem.step(optimizer, problem.gradients(step)))
    for p, wanted in zip(parameters_of(returned), params, strict=True):
        torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("missing", "name"), [*zip(ARGUMENTS, cycle(["sgd", "adamw", "rmsprop"]), strict=False)])
@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_argument_that_an_old_checkpoint_lacks_is_the_constructors(problem, missing, name):
    """The type goes with its level: an old checkpoint has both or none."""
    other = {
        "clipping_type": "layer_wise_auto",
        "clipping_level": 0.25,
        "clipping_beta": 0.75,
        "clipping_window": 9,
        "norm_type": 2.0,
        "nonfinite": "error",
        "clipping_seed": 8,
    }
    optimizer = MAKERS[name](two_groups(problem.parameters()), **ARGUMENTS)
    go_on(problem, optimizer, 0, 5)
    checkpoint = saved_and_loaded(optimizer.state_dict())
    for group in checkpoint["param_groups"]:
        del group[missing]
    fresh = MAKERS[name](two_groups(problem.parameters()), **other)
    fresh.load_state_dict(checkpoint)
    wanted = ARGUMENTS | {missing: other[missing]}
    assert [{key: group[key] for key in ARGUMENTS} for group in fresh.param_groups] == [wanted] * 2
    assert fresh.grad_norms().tolist() == optimizer.grad_norms().tolist()
    problem.step(fresh, problem.gradients(6))
    assert fresh.clipping_stats()["steps"] == 6


def memory_keys(optimizer):
    """What clipping remembers: tensors under keys of its own."""
    return sorted({key for group in optimizer.param_groups for key in group if key.startswith("clipping_memory_")})


@pytest.mark.parametrize("clipping_type", CLIPPING)
@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_memory_that_an_old_checkpoint_lacks_starts_anew(problem, clipping_type):
    optimizer = ClippedSGD(two_groups(problem.parameters()), clipping_type=clipping_type, clipping_window=4)
    go_on(problem, optimizer, 0, 5)
    keys = memory_keys(optimizer)
    assert keys
    for missing in [*keys, None]:
        checkpoint = saved_and_loaded(optimizer.state_dict())
        for group in checkpoint["param_groups"]:
            for key in keys if missing is None else [missing]:
                group.pop(key, None)
        params = problem.parameters()
        fresh = ClippedSGD(two_groups(params))
        fresh.load_state_dict(checkpoint)
        assert fresh.param_groups[0]["clipping_type"] == clipping_type
        go_on(problem, fresh, 6, 9)
        assert all(p.isfinite().all() for p in params)
        assert len(fresh.grad_norms()) <= 4
        if missing is None:
            assert fresh.clipping_stats()["steps"] == 3


def test_checkpoint_without_anything_of_ours_starts_the_history_anew(problem):
    optimizer = ClippedSGD(two_groups(problem.parameters()), momentum=0.9, clipping_type="auto")
    plain = torch.optim.SGD(two_groups(problem.parameters()), momentum=0.9)
    problem.step(plain, problem.gradients(0))
    optimizer.load_state_dict(saved_and_loaded(plain.state_dict()))
    assert len(optimizer.grad_norms()) == 0
    assert optimizer.clipping_stats()["steps"] == 0


# Parameter groups in another order, another window.


@pytest.mark.filterwarnings("ignore:the checkpoint has brought")
def test_parameter_groups_are_matched_by_position_as_torch_does(problem):
    shapes = ((3,), (3,), (3,), (3,))

    def groups(params, order):
        named = {
            "matrix": {"params": params[:2], "clipping_type": "layer_wise_auto", "clipping_window": 5, "lr": 0.5},
            "vector": {"params": params[2:], "clipping_type": "auto", "clipping_level": 0.25, "lr": 0.25},
        }
        return [named[name] for name in order]

    optimizer = ClippedSGD(groups(problem.parameters(shapes=shapes), ("matrix", "vector")), momentum=0.9)
    for step in range(7):
        problem.step(optimizer, problem.gradients(step, shapes=shapes))
    other = ClippedSGD(groups(problem.parameters(shapes=shapes), ("vector", "matrix")), momentum=0.9)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    keys = [*ARGUMENTS, "lr"]
    for got, wanted in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert {key: got[key] for key in keys} == {key: wanted[key] for key in keys}
    assert told(other) == same(told(optimizer))
    for step in range(7, 12):
        wanted = problem.step(optimizer, problem.gradients(step, shapes=shapes))
        assert equal(problem.step(other, problem.gradients(step, shapes=shapes)), wanted)


@pytest.mark.parametrize("clipping_type", ["norm", "auto", "layer_wise_auto", "zscore", "layer_wise_zscore"])
@pytest.mark.parametrize(("saved", "constructed"), [(4, 9), (9, 4), (2, 1000)])
def test_window_and_history_of_the_checkpoint_win(problem, clipping_type, saved, constructed):
    def make(window):
        return ClippedSGD(two_groups(problem.parameters()), clipping_type=clipping_type, clipping_window=window)

    optimizer, other = make(saved), make(constructed)
    go_on(problem, optimizer, 0, 13)
    go_on(problem, other, 30, 35)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert [group["clipping_window"] for group in other.param_groups] == [saved] * 2
    assert torch.equal(other.grad_norms(), optimizer.grad_norms())
    assert len(other.grad_norms()) == min(saved, 11)
    assert_same(go_on(problem, other, 14, 18), go_on(problem, optimizer, 14, 18))


@pairwise(clipping_type=["auto", "layer_wise_auto"], p=[0.3, 1.0], window=[2, 3, 6, 50])
def test_window_edited_after_loading_keeps_the_newest_lengths(clipping_type, p, window):
    def make():
        param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        return ClippedSGD([param], lr=0.0, clipping_type=clipping_type, clipping_level=p, clipping_window=6)

    norms = [3.0, 11.0, 2.0, 7.0, 5.0, 1.0, 13.0, 4.0]

    def step(optimizer, norm):
        parameters_of(optimizer)[0].grad = torch.tensor([norm], dtype=torch.float64)
        optimizer.step()

    optimizer, other = make(), make()
    for norm in norms:
        step(optimizer, norm)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    other.param_groups[0]["clipping_window"] = window
    assert other.grad_norms().tolist() == norms[-6:][-window:]
    step(other, 6.0)
    kept = [*norms[-6:][-window:], 6.0][-window:]
    assert other.grad_norms().tolist() == kept
    wanted = torch.tensor(kept, dtype=torch.float64).quantile(p).item()
    assert other.clipping_stats()["threshold"] == pytest.approx(wanted, rel=1e-6)


# Nonsense.

NONSENSE = [
    ("clipping_type", "nrom"),
    ("clipping_type", 3),
    ("clipping_level", -1.0),
    ("clipping_level", 1.5),
    ("clipping_level", math.nan),
    ("clipping_level", "high"),
    ("clipping_beta", 1.0),
    ("clipping_window", 1),
    ("clipping_window", 2.5),
    ("norm_type", 0.5),
    ("nonfinite", "ignore"),
    ("clipping_seed", -1),
]


@pytest.mark.parametrize(
    ("argument", "value", "place", "name"),
    [
        (*row, place, name)
        for (row, place), name in zip(product(NONSENSE, [0, 1]), cycle(["sgd", "adamw", "rmsprop"]), strict=False)
    ],
)
def test_nonsense_in_a_checkpoint_is_refused_and_changes_nothing(problem, argument, value, place, name):
    optimizer = MAKERS[name](two_groups(problem.parameters()), clipping_type="auto", clipping_window=5)
    go_on(problem, optimizer, 0, 4)
    bad = saved_and_loaded(optimizer.state_dict())
    bad["param_groups"][place][argument] = value
    bad["param_groups"][0]["lr"] = 123.0
    params = problem.parameters()
    other = MAKERS[name](two_groups(params), clipping_type="layer_wise_zscore", clipping_window=7)
    go_on(problem, other, 10, 14)
    before = copy.deepcopy(other.state_dict()), problem.copies(params), told(other)
    with pytest.raises(ValueError, match=argument):
        other.load_state_dict(bad)
    assert_same(other.state_dict(), before[0])
    assert equal(params, before[1])
    assert told(other) == same(before[2])
    go_on(problem, other, 15, 17)


GARBAGE = {"text": "text", "number": 3, "nothing": None, "cube": torch.zeros(2, 2, 2), "empty": torch.zeros(0), "list": [1.0]}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise_auto", "zclip", "adagc"])
def test_garbage_in_the_memory_of_a_checkpoint_is_refused_or_forgotten(problem, clipping_type, garbage):
    optimizer = ClippedSGD(two_groups(problem.parameters()), clipping_type=clipping_type, clipping_window=5)
    go_on(problem, optimizer, 0, 4)
    for key in memory_keys(optimizer):
        bad = saved_and_loaded(optimizer.state_dict())
        for group in bad["param_groups"]:
            group[key] = GARBAGE[garbage]
        params = problem.parameters()
        other = ClippedSGD(two_groups(params), clipping_type=clipping_type, clipping_window=5)
        before = copy.deepcopy(other.state_dict())
        try:
            other.load_state_dict(bad)
        except ValueError:
            assert_same(other.state_dict(), before)
        go_on(problem, other, 6, 9)
        assert all(p.isfinite().all() for p in params)
        assert all(isinstance(group[key], torch.Tensor) for group in other.param_groups)


@pytest.mark.parametrize("groups", [lambda params: [{"params": params}], lambda params: three_sets(params)], ids=["1", "3"])
def test_checkpoint_of_other_groups_is_refused_by_torch_and_changes_nothing(problem, groups):
    optimizer = ClippedSGD(groups(problem.parameters()), clipping_type="auto")
    go_on(problem, optimizer, 0, 3)
    other = ClippedSGD(two_groups(problem.parameters()), clipping_type="zscore")
    go_on(problem, other, 0, 3)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        other.load_state_dict(optimizer.state_dict())
    assert_same(other.state_dict(), before)
    go_on(problem, other, 3, 5)


# torch.distributed.checkpoint.


STATEFUL = [name for name in MAKERS if name != "sgd without momentum"]
OPTIONS = [{}, {"flatten_optimizer_state_dict": True}]


@pytest.mark.parametrize(
    ("clipping_type", "name", "options"),
    [
        *zip(TYPES, cycle(["sgd without momentum"]), cycle(OPTIONS), strict=False),  # stepped at every save
        *((name, *row) for name, row in zip(TYPES, cycle(product(STATEFUL, OPTIONS)), strict=False)),
    ],
    ids=str,
)
def test_saving_a_fresh_optimizer_records_nothing(problem, clipping_type, name, options):
    params = problem.parameters()
    optimizer = MAKERS[name](two_groups(params), clipping_type=clipping_type, clipping_window=4)
    wanted = MAKERS[name](two_groups(problem.parameters()), clipping_type=clipping_type, clipping_window=4)
    before = problem.copies(params)
    model = Model(params)
    get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options))
    assert equal(params, before)
    assert told(optimizer) == same(told(wanted))
    assert optimizer.clipping_stats()["steps"] == 0
    assert len(optimizer.grad_norms()) == 0
    for step in range(3):  # the stateless are stepped at every save
        problem.step(optimizer, problem.gradients(step))
        for p in params:
            p.grad = None
        get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options))
    for step in range(3):
        problem.step(wanted, problem.gradients(step))
    if "adam" not in name:  # torch's own step count moves where its state is created
        assert equal(params, parameters_of(wanted))
    if clipping_type != "adaptive":  # whose threshold is made of the weights
        assert told(optimizer) == same(told(wanted))
    assert torch.equal(optimizer.grad_norms(), wanted.grad_norms())


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_distributed_checkpoint_loads_into_torchs_optimizer_where_keys_may_be_more(problem, name, flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    params = problem.parameters()
    optimizer = MAKERS[name](two_groups(params), clipping_level=1e9)
    for step in range(3):
        problem.step(optimizer, problem.gradients(step))
    for p in params:
        p.grad = None
    saved = saved_and_loaded(get_optimizer_state_dict(Model(params), optimizer, options=options))
    plain_params = fresh_like(params)
    plain = PLAIN[name](two_groups(plain_params))
    set_optimizer_state_dict(Model(plain_params), plain, saved, options=options)
    for step in range(3, 5):
        problem.step(optimizer, problem.gradients(step))
        problem.step(plain, problem.gradients(step))
    for p, wanted in zip(plain_params, params, strict=True):
        torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-6)


# A run that is killed.


def started(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.resumable_run", str(folder)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )


def killed_at(folder, step):
    """Start the child and kill it as soon as it has told of this step; the step it started at."""
    with started(folder) as child:
        first = int(child.stdout.readline().split()[1])
        for line in child.stdout:
            if line.split() == ["step", str(step)]:
                break
        child.kill()
        child.stdout.read()
    assert child.returncode == -9
    return first


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_run_ends_where_the_unbroken_one_does(tmp_path, seed):
    """Twice killed at a random step, by SIGKILL, and resumed; all clipping types at once."""
    chance = random.Random(seed)
    first_kill = chance.randrange(20, 60)
    second_kill = chance.randrange(first_kill + 10, resumable_run.STEPS - 5)
    assert killed_at(tmp_path, first_kill) == 0
    resumed = killed_at(tmp_path, second_kill)
    assert first_kill // resumable_run.SAVE_EVERY * resumable_run.SAVE_EVERY - resumable_run.SAVE_EVERY < resumed
    with started(tmp_path) as child:
        assert int(child.stdout.readline().split()[1]) > resumed
        runs = [resumable_run.Run(name, number) for number, name in enumerate(TYPES)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(resumable_run.STEPS):
                for run in runs:
                    run.step(number)
        assert child.stdout.read().endswith("done\n")
    assert child.returncode == 0
    for got, run in zip(torch.load(tmp_path / "result.pt", weights_only=True), runs, strict=True):
        assert_same(got, saved_and_loaded(run.result()))
        if run.optimizer.param_groups[0]["clipping_type"] != "none":
            assert (got["stats"][0]["skipped_steps"], got["stats"][0]["steps"]) == (8, resumable_run.STEPS - 8)
            assert got["stats"][0]["clipped_steps"] > 0
