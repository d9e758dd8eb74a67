"""Clipping arguments: what is refused, and with which words; what is accepted, and what it then means."""

import inspect
import io
import math
import re
from itertools import cycle

import numpy as np
import pytest
import torch
from support.assertions import equal
from support.cases import LEVELS
from support.versions import needs_torch

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

CLASSES = {ClippedSGD: torch.optim.SGD, ClippedAdam: torch.optim.Adam, ClippedAdamW: torch.optim.AdamW}
DEFAULT_LEVELS = {"none": None} | LEVELS
LENGTHS = [name for name in DEFAULT_LEVELS if name != "none" and "auto" not in name]
QUANTILES = [name for name in DEFAULT_LEVELS if "auto" in name]
OLDER_SPELLINGS = {
    "no_clip": "none",
    "value": "coord_wise",
    "coordinate_wise": "coord_wise",
    "auto_clip": "auto",
    "linear_rand_autoclip": "linear_rand_auto",
    "quadratic_rand_autoclip": "quadratic_rand_auto",
}
NO_NUMBERS = [True, False, "1", "0.5", "big", math.nan, 1j, [0.5], (0.5,), {}, np.float64("nan"), np.bool_(True)]
NO_NUMBERS += [torch.tensor(math.nan), torch.tensor(True), torch.tensor([0.5, 0.5]), torch.tensor(1j), np.array([0.5, 0.5])]
FEW_NO_NUMBERS = [True, "1", math.nan, [0.5], np.bool_(True), torch.tensor(math.nan), np.array([0.5, 0.5])]

# (arguments, the one that is wrong); the error names it and its value
BAD = [({"clipping_type": name}, "clipping_type") for name in ["nrom", "", "Norm!", None, 2, True, ["norm"], b"norm"]]
BAD += [({"clipping_type": t, "clipping_level": -1}, "clipping_level") for t in LENGTHS]
BAD += [({"clipping_type": t, "clipping_level": 75}, "clipping_level") for t in QUANTILES]
BAD += [({"clipping_type": "norm", "clipping_level": level}, "clipping_level") for level in (0, -0.5, -math.inf)]
BAD += [({"clipping_type": "auto", "clipping_level": level}, "clipping_level") for level in (0, -0.1, 1.01)]
BAD += [
    ({"clipping_type": t, "clipping_level": x}, "clipping_level")
    for x, t in zip(NO_NUMBERS, cycle(["norm", "auto"]), strict=False)
]
BAD += [({"clipping_level": 10**400}, "clipping_level")]
BAD += [({"clipping_type": "none", "clipping_level": level}, "clipping_level") for level in (1.0, 0, 0.5, "1", False)]
BAD += [({"clipping_type": "no_clip", "clipping_level": 1.0}, "clipping_level")]
BAD += [({"clipping_beta": beta}, "clipping_beta") for beta in (0, 1, 0.0, 1.0, -0.5, 1.5, math.inf, *FEW_NO_NUMBERS, None)]
BAD += [({"clipping_window": window}, "clipping_window") for window in (1, 0, -5, 2.5, math.inf, *NO_NUMBERS, None)]
BAD += [({"norm_type": p}, "norm_type") for p in (0, 0.5, -1, -math.inf, "-inf", "two", 1j, *FEW_NO_NUMBERS, None)]
BAD += [({"nonfinite": policy}, "nonfinite") for policy in ("ignore", "Skip", "", None, True, 0, ["skip"])]
BAD += [({"clipping_seed": seed}, "clipping_seed") for seed in (-1, True, False, 1.5, math.nan, "0", None, [1], 1j)]
BAD += [({"clipping_level": 2.0, "clipping_type": "auto", "clipping_beta": 0.5}, "clipping_level")]
BAD += [({"clipping_action": action}, "clipping_action") for action in ("Skip", "", "drop", None, True, 0, ["skip"])]
BAD += [({"clipping_cap": cap}, "clipping_cap") for cap in (0, -1.0, -math.inf, 10**400, *FEW_NO_NUMBERS)]
BAD += [({"clipping_type": "none", "clipping_level": None, "clipping_cap": 1.0}, "clipping_cap")]
BAD += [
    ({"clipping_type": t, "clipping_warmup": n}, "clipping_warmup")
    for n, t in zip([-1, 2.5, *FEW_NO_NUMBERS], cycle(["auto", "zclip"]), strict=False)
]
BAD += [({"clipping_type": t, "clipping_warmup": 3}, "clipping_warmup") for t in ("norm", "adaptive", "linear_rand_norm")]
BAD += [({"clipping_set": label}, "clipping_set") for label in (0, True, b"actor", ["actor"], 1.5)]

# each argument with a value of another type, out of range, NaN or infinite, and with a type that it does not go with
FEW = [({name: value}, name) for name in ("clipping_action", "nonfinite") for value in ("drop", None)]
FEW += [({"clipping_type": name}, "clipping_type") for name in ("nrom", None, ["norm"])]
FEW += [({"clipping_level": level}, "clipping_level") for level in (-1, math.nan, "big", True, np.array([0.5, 0.5]))]
FEW += [({"clipping_type": t, "clipping_level": level}, "clipping_level") for t, level in (("auto", 75), ("none", 1.0))]
FEW += [({"clipping_beta": beta}, "clipping_beta") for beta in (1.0, math.nan, None)]
FEW += [({"clipping_window": window}, "clipping_window") for window in (1, math.inf, "1", None)]
FEW += [({"norm_type": p}, "norm_type") for p in (0.5, math.nan, "two", None)]
FEW += [({"clipping_seed": seed}, "clipping_seed") for seed in (-1, False, math.nan, None)]
FEW += [({"clipping_cap": cap}, "clipping_cap") for cap in (0, math.nan, torch.tensor([0.5, 0.5]))]
FEW += [({"clipping_type": "none", "clipping_level": None, "clipping_cap": 1.0}, "clipping_cap")]
FEW += [
    ({"clipping_type": t, "clipping_warmup": n}, "clipping_warmup") for t, n in (("auto", -1), ("zclip", math.nan), ("norm", 3))
]
FEW += [({"clipping_set": label}, "clipping_set") for label in (0, ["actor"])]


def bad_arguments(rows):
    return pytest.mark.parametrize(("arguments", "wrong"), rows, ids=lambda x: re.sub(r"\s+", " ", str(x))[:60])


REFUSED = (TypeError, ValueError)


def one(value=0.0):
    return torch.nn.Parameter(torch.tensor([value]))


def step(optimizer, *gradients):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.tensor([float(g)])
    optimizer.step()
    return [p.grad.item() for p in params]


# What is refused.


@bad_arguments(BAD)
def test_bad_argument_is_named_with_its_value(arguments, wrong):
    with pytest.raises(REFUSED, match=wrong) as error:
        ClippedSGD([one()], lr=0.1, **arguments)
    value = arguments[wrong]
    assert repr(value) in str(error.value) or str(value) in str(error.value)


@pytest.mark.parametrize("optimizer_class", [ClippedAdam, ClippedAdamW])
@pytest.mark.parametrize(
    "arguments", [{"clipping_type": "nrom"}, {"clipping_level": -1.0}, {"clipping_beta": 2.0}, {"nonfinite": "ignore"}]
)
def test_bad_argument_is_refused_by_every_optimizer(optimizer_class, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        optimizer_class([one()], **arguments)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"clipping_type": "nrom"}, "clipping_type"),
        ({"clipping_level": -1.0}, "clipping_level"),
        ({"clipping_level": math.nan}, "clipping_level"),
        ({"clipping_type": "auto", "clipping_level": 75.0}, "clipping_level"),
        ({"clipping_type": "none", "clipping_level": 1.0}, "clipping_level"),
        ({"clipping_beta": 1.0}, "clipping_beta"),
        ({"clipping_window": 1}, "clipping_window"),
        ({"norm_type": 0.5}, "norm_type"),
        ({"nonfinite": "ignore"}, "nonfinite"),
        ({"clipping_seed": -1}, "clipping_seed"),
    ],
)
def test_value_out_of_range_is_a_value_error(arguments, wrong):
    with pytest.raises(ValueError, match=wrong):
        ClippedSGD([one()], **arguments)


def test_unknown_type_lists_the_choices():
    with pytest.raises(ValueError, match="clipping_type must be one of") as error:
        ClippedSGD([one()], clipping_type="something else")
    words = re.findall(r"\w+", str(error.value))
    assert set(DEFAULT_LEVELS) <= set(words)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("nrom", "norm"),
        ("NORM", "norm"),
        ("layerwise", "layer_wise"),
        ("layer-wise", "layer_wise"),
        ("cord_wise", "coord_wise"),
        ("autoo", "auto"),
        ("linear_rand_nrom", "linear_rand_norm"),
        ("quadratic_rand_aut", "quadratic_rand_auto"),
    ],
)
def test_unknown_type_suggests_the_nearest(typo, meant):
    with pytest.raises(ValueError, match=f"got '{typo}'.*did you mean '{meant}'"):
        ClippedSGD([one()], clipping_type=typo)


def test_unknown_policy_lists_the_choices():
    with pytest.raises(ValueError, match="nonfinite") as error:
        ClippedSGD([one()], nonfinite="ignore")
    assert {"skip", "error", "zero", "propagate"} <= set(re.findall(r"\w+", str(error.value)))


@pytest.mark.parametrize("optimizer_class", CLASSES)
@pytest.mark.parametrize(("old", "new"), [("p_autoclip", "clipping_level"), ("beta", "clipping_beta")])
def test_argument_of_older_code_is_refused_and_the_new_one_named(optimizer_class, old, new):
    with pytest.raises(REFUSED, match=f"{old}.*{new}"):
        optimizer_class([one()], **{old: 0.5})


@pytest.mark.parametrize(
    ("unknown", "optimizer_class"), [*zip(["clipping_lvl", "clip", "norm", "Lr", "window"], cycle(CLASSES), strict=False)]
)
def test_unknown_keyword_is_a_type_error_that_names_the_class(optimizer_class, unknown):
    with pytest.raises(TypeError, match=f"^{optimizer_class.__name__} has no argument '{unknown}'; "):
        optimizer_class([one()], **{unknown: 1})


def test_clipping_arguments_are_keyword_only():
    with pytest.raises(TypeError):
        ClippedSGD([one()], 0.1, 0.9, 0, 0, False, "norm")


# torch's own errors stay torch's.


@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [
        (ClippedSGD, {"lr": -1.0}),
        (ClippedSGD, {"momentum": -1.0}),
        (ClippedSGD, {"weight_decay": -1.0}),
        (ClippedSGD, {"nesterov": True}),
        (ClippedSGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.5}),
        (ClippedSGD, {"fused": True, "foreach": True}),
        (ClippedSGD, {"fused": True, "differentiable": True}),
        (ClippedSGD, {"lr": torch.tensor([0.1, 0.1])}),
        (ClippedAdam, {"lr": -1.0}),
        (ClippedAdam, {"betas": (1.0, 0.9)}),
        (ClippedAdam, {"betas": (0.9, -0.1)}),
        (ClippedAdam, {"eps": -1.0}),
        (ClippedAdamW, {"weight_decay": -0.1}),
        (ClippedAdamW, {"fused": True, "foreach": True}),
    ],
    ids=str,
)
def test_errors_of_torchs_constructor_stay_torchs(optimizer_class, arguments):
    with pytest.raises((ValueError, RuntimeError)) as wanted:
        CLASSES[optimizer_class]([one()], **arguments)
    with pytest.raises(wanted.type) as error:
        optimizer_class([one()], **arguments)
    assert str(error.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("params", "optimizer_class"),
    [*zip([[], torch.zeros(2), [torch.zeros(2, requires_grad=True) * 2], ["w"], [{"lr": 0.1}], 3], cycle(CLASSES), strict=False)],
    ids=str,
)
def test_errors_of_torch_about_parameters_stay_torchs(optimizer_class, params):
    with pytest.raises((ValueError, TypeError, KeyError)) as wanted:
        CLASSES[optimizer_class](params)
    with pytest.raises(wanted.type) as error:
        optimizer_class(params)
    assert str(error.value) == str(wanted.value)


@pytest.mark.parametrize("optimizer_class", CLASSES)
def test_missing_parameters_are_a_type_error(optimizer_class):
    with pytest.raises(TypeError, match="params"):
        optimizer_class()


# Groups that are added later.


@bad_arguments(FEW)
def test_bad_group_is_refused_and_leaves_the_optimizer_as_it_was(arguments, wrong):
    first = one()
    optimizer = ClippedSGD([first], lr=1.0, clipping_level=2.0)
    step(optimizer, 10.0)
    before = repr(optimizer.state_dict()), optimizer.clipping_stats(), dict(optimizer.defaults)
    with pytest.raises(REFUSED, match=wrong):
        optimizer.add_param_group({"params": [one()], **arguments})
    assert (repr(optimizer.state_dict()), optimizer.clipping_stats(), optimizer.defaults) == before
    assert step(optimizer, 10.0) == [2.0]
    assert optimizer.clipping_stats()["steps"] == 2


@pytest.mark.parametrize(("old", "new"), [("p_autoclip", "clipping_level"), ("beta", "clipping_beta")])
def test_group_with_argument_of_older_code_is_refused_and_the_new_one_named(old, new):
    optimizer = ClippedSGD([one()])
    with pytest.raises(REFUSED, match=f"{old}.*{new}"):
        optimizer.add_param_group({"params": [one()], old: 0.5})
    with pytest.raises(REFUSED, match=f"{old}.*{new}"):
        ClippedSGD([{"params": [one()], old: 0.5}])
    assert len(optimizer.param_groups) == 1


@bad_arguments(FEW)
def test_bad_group_is_refused_by_the_constructor(arguments, wrong):
    with pytest.raises(REFUSED, match=wrong):
        ClippedSGD([{"params": [one()]}, {"params": [one()], **arguments}], lr=0.1)


@pytest.mark.parametrize("bad", ["duplicate", "not a dict", "not a tensor"])
def test_errors_of_torch_about_added_groups_stay_torchs(bad):
    def errors(optimizer_class):
        param = one()
        optimizer = optimizer_class([param], lr=1.0)
        group = {"duplicate": {"params": [param]}, "not a dict": [one()], "not a tensor": {"params": ["w"]}}[bad]
        with pytest.raises((ValueError, TypeError)) as error:
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
        step(optimizer, 10.0)
        return error.type, str(error.value), param.item()

    wanted, error = errors(torch.optim.SGD), errors(ClippedSGD)
    assert error[:2] == wanted[:2]
    assert (wanted[2], error[2]) == pytest.approx((-10.0, -1.0))


# Groups that are edited to nonsense.


@bad_arguments(FEW)
def test_group_edited_to_nonsense_is_refused_before_anything_changed(arguments, wrong):
    first, second = one(1.0), one(1.0)
    optimizer = ClippedSGD([{"params": [first]}, {"params": [second], "weight_decay": 0.1}], lr=0.1, momentum=0.9)
    step(optimizer, 3.0, 4.0)
    group = optimizer.param_groups[1]
    weights = [first.item(), second.item()]
    moments = [optimizer.state[p]["momentum_buffer"].item() for p in (first, second)]
    norms = optimizer.grad_norms().tolist()
    before = {name: group[name] for name in arguments}
    group.update(arguments)
    with pytest.raises(REFUSED, match=wrong):
        step(optimizer, 5.0, 5.0)
    assert [first.item(), second.item()] == weights
    assert [first.grad.item(), second.grad.item()] == [5.0, 5.0]
    assert [optimizer.state[p]["momentum_buffer"].item() for p in (first, second)] == moments
    group.update(before)
    step(optimizer, 3.0, 4.0)
    assert optimizer.grad_norms().tolist() == pytest.approx([*norms, 5.0])
    assert optimizer.clipping_stats()["steps"] == 2


@bad_arguments(FEW)
def test_group_edited_to_nonsense_is_named(arguments, wrong):
    optimizer = ClippedSGD([{"params": [one()]}, {"params": [one()]}, {"params": [one()]}])
    optimizer.param_groups[2].update(arguments)
    with pytest.raises(REFUSED, match=rf"group 2\b.*{wrong}"):
        step(optimizer, 5.0, 5.0, 5.0)


# What is accepted.


@pytest.mark.parametrize(
    ("clipping_type", "level", "optimizer_class"),
    [(*row, optimizer_class) for row, optimizer_class in zip(DEFAULT_LEVELS.items(), cycle(CLASSES), strict=False)],
)
def test_every_type_takes_its_default_level(optimizer_class, clipping_type, level):
    group = optimizer_class([one()], clipping_type=clipping_type).param_groups[0]
    assert (group["clipping_type"], group["clipping_level"]) == (clipping_type, level)


@pytest.mark.parametrize(("old", "name"), OLDER_SPELLINGS.items())
def test_older_spelling_is_stored_under_the_new_name(old, name):
    optimizer = ClippedSGD([{"params": [one()]}, {"params": [one()], "clipping_type": old}], clipping_type=old)
    optimizer.add_param_group({"params": [one()], "clipping_type": old})
    for group in optimizer.param_groups:
        assert (group["clipping_type"], group["clipping_level"]) == (name, DEFAULT_LEVELS[name])
    edited = ClippedSGD([one()])
    edited.param_groups[0].update(clipping_type=old, clipping_level=None)
    step(edited, 1.0)
    group = edited.param_groups[0]
    assert (group["clipping_type"], group["clipping_level"]) == (name, DEFAULT_LEVELS[name])


NUMBERS = {
    "int": 2,
    "float": 2.0,
    "numpy float32": np.float32(2.0),
    "numpy float64": np.float64(2.0),
    "numpy int": np.int64(2),
    "numpy 0-d": np.array(2.0),
    "tensor": torch.tensor(2.0),
    "float64 tensor": torch.tensor(2.0, dtype=torch.float64),
    "int tensor": torch.tensor(2),
    "parameter": torch.nn.Parameter(torch.tensor(2.0)),
}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *((kind, "constructor") for kind in NUMBERS),
        *((kind, place) for kind in ("int", "numpy 0-d", "parameter") for place in ("group", "edited")),
    ],
)
def test_any_kind_of_number_is_a_level(kind, place):
    level = NUMBERS[kind]
    if place == "constructor":
        optimizer = ClippedSGD([one()], clipping_level=level)
    elif place == "group":
        optimizer = ClippedSGD([{"params": [one()], "clipping_level": level}])
    else:
        optimizer = ClippedSGD([one()])
        step(optimizer, 10.0)
        optimizer.param_groups[0]["clipping_level"] = level
    assert step(optimizer, 10.0) == [2.0]
    stored = optimizer.param_groups[0]["clipping_level"]
    assert type(stored) in (int, float)
    assert stored == 2
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["clipping_level"] == 2


def test_numpy_float32_level_keeps_its_value():
    optimizer = ClippedSGD([one()], clipping_level=np.float32(0.3))
    assert optimizer.param_groups[0]["clipping_level"] == pytest.approx(0.3, rel=1e-6)
    assert step(optimizer, 10.0) == pytest.approx([0.3], rel=1e-6)


@pytest.mark.parametrize(
    ("clipping_type", "level"),
    [
        *(("auto", level) for level in [1, 1.0, 0.5, 1e-3, np.float32(0.5), torch.tensor(0.5)]),
        *((clipping_type, level) for clipping_type in QUANTILES if clipping_type != "auto" for level in [1, 0.5]),
    ],
    ids=str,
)
def test_quantile_may_be_anything_up_to_one(clipping_type, level):
    optimizer = ClippedSGD([one()], clipping_type=clipping_type, clipping_level=level)
    assert optimizer.param_groups[0]["clipping_level"] == pytest.approx(float(level))
    assert step(optimizer, 3.0) == [3.0]


@pytest.mark.parametrize("norm_type", [math.inf, "inf", float("inf"), np.inf, torch.tensor(math.inf)], ids=str)
def test_norm_type_may_be_infinite(norm_type):
    optimizer = ClippedSGD([one(), one()], norm_type=norm_type)
    assert step(optimizer, 4.0, -8.0) == pytest.approx([0.5, -1.0])
    assert optimizer.clipping_stats()["grad_norm"] == 8.0
    assert optimizer.param_groups[0]["norm_type"] == math.inf


@pytest.mark.parametrize(("norm_type", "norm"), [(1, 7.0), (1.0, 7.0), (2, 5.0), (3, 91 ** (1 / 3)), (np.float64(1), 7.0)])
def test_norm_type_may_be_any_p_from_one(norm_type, norm):
    optimizer = ClippedSGD([one(), one()], norm_type=norm_type)
    step(optimizer, 3.0, -4.0)
    assert optimizer.clipping_stats()["grad_norm"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("window", [2, 3, 1000])
def test_smallest_window_is_two(window):
    optimizer = ClippedSGD([one()], clipping_window=window)
    for norm in range(1, 6):
        step(optimizer, norm)
    assert optimizer.grad_norms().tolist() == list(range(1, 6))[-window:]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1])
def test_seed_may_be_any_natural_number(seed):
    optimizer = ClippedSGD([one()], clipping_type="linear_rand_norm", clipping_seed=seed)
    assert step(optimizer, 1e6) == pytest.approx([1.0])


def test_line_of_the_first_page_runs():
    from torch_clipped.optimizers import ClippedSGD as Imported

    model = torch.nn.Linear(3, 2)
    optimizer = Imported(model.parameters(), lr=5e-2, momentum=0.9, clipping_type="layer_wise", clipping_level=1)
    before = [p.detach().clone() for p in model.parameters()]
    (1e4 * model(torch.ones(4, 3))).sum().backward()
    optimizer.step()
    for p, b in zip(model.parameters(), before, strict=True):
        assert p.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
        assert (p.detach() - b).norm().item() == pytest.approx(5e-2, rel=1e-4)


# The signature.

CLIPPING_DEFAULTS = {
    "clipping_type": "norm",
    "clipping_level": None,
    "clipping_action": "clip",
    "clipping_cap": None,
    "clipping_warmup": None,
    "clipping_set": None,
    "clipping_beta": 0.85,
    "clipping_window": 1000,
    "norm_type": 2.0,
    "nonfinite": "skip",
    "clipping_seed": 0,
}


@needs_torch("2.12", "the signature of today")
@pytest.mark.parametrize(("clipped_class", "plain_class"), CLASSES.items())
def test_signature_is_torchs_followed_by_clipping_arguments(clipped_class, plain_class):
    plain = list(inspect.signature(plain_class).parameters.values())
    shown = list(inspect.signature(clipped_class).parameters.values())
    clipping = shown[len(plain) :]
    assert [(p.name, p.kind, p.default) for p in shown[: len(plain)]] == [(p.name, p.kind, p.default) for p in plain]
    assert {p.name: p.default for p in clipping} == CLIPPING_DEFAULTS
    assert [p.name for p in clipping] == list(CLIPPING_DEFAULTS)
    assert {p.kind for p in clipping} == {inspect.Parameter.KEYWORD_ONLY}


def test_defaults_are_those_of_the_signature():
    group = ClippedSGD([one()]).param_groups[0]
    assert {name: group[name] for name in CLIPPING_DEFAULTS} == CLIPPING_DEFAULTS | {"clipping_level": 1.0}


@pytest.mark.parametrize(("clipped_class", "plain_class"), CLASSES.items())
def test_torchs_arguments_keep_places_names_and_defaults(clipped_class, plain_class):
    positional = (0.25, (0.8, 0.9), 1e-6, 0.1) if clipped_class is not ClippedSGD else (0.25, 0.8, 0.1, 0.2)
    for args, kwargs in [((), {}), (positional, {}), ((), {"lr": 0.5, "weight_decay": 0.25, "maximize": True})]:
        plain, clipped = plain_class([one()], *args, **kwargs), clipped_class([one()], *args, **kwargs)
        wanted = {k: v for k, v in plain.param_groups[0].items() if k != "params"}
        assert {k: clipped.param_groups[0][k] for k in wanted} == wanted


def test_optimizers_are_torchs():
    for clipped_class, plain_class in CLASSES.items():
        assert issubclass(clipped_class, plain_class)
        assert clipped_class.__doc__


# Groups with arguments of their own.


def groups_of(*groups, **arguments):
    optimizer = ClippedSGD([{"params": [one()], **group} for group in groups], **arguments)
    return [(group["clipping_type"], group["clipping_level"]) for group in optimizer.param_groups]


def test_group_without_own_arguments_takes_the_constructors():
    assert groups_of({}, {"lr": 0.5}, clipping_type="layer_wise", clipping_level=7.0) == [("layer_wise", 7.0)] * 2


def test_group_naming_a_type_takes_its_default_level():
    groups = [{"clipping_type": name} for name in DEFAULT_LEVELS]
    assert groups_of(*groups, clipping_level=7.0) == list(DEFAULT_LEVELS.items())


def test_group_naming_type_and_level_keeps_both():
    group = {"clipping_type": "layer_wise", "clipping_level": 5}
    assert groups_of(group, clipping_type="auto", clipping_level=0.5) == [("layer_wise", 5)]


def test_group_naming_a_level_keeps_the_constructors_type():
    assert groups_of({"clipping_level": 5.0}, {}, clipping_type="layer_wise") == [("layer_wise", 5.0), ("layer_wise", 0.3)]


def test_group_may_clip_where_the_constructor_does_not():
    assert groups_of({}, {"clipping_type": "norm"}, clipping_type="none") == [("none", None), ("norm", 1.0)]


def test_group_added_later_takes_the_constructors_arguments_or_its_own():
    optimizer = ClippedSGD([one()], clipping_type="layer_wise", clipping_level=4.0, norm_type=1.0)
    optimizer.add_param_group({"params": [one()]})
    optimizer.add_param_group({"params": [one()], "clipping_type": "coord_wise"})
    optimizer.add_param_group({"params": [one()], "clipping_level": 2})
    stored = [(g["clipping_type"], g["clipping_level"], g["norm_type"]) for g in optimizer.param_groups]
    assert stored == [("layer_wise", 4.0, 1.0), ("layer_wise", 4.0, 1.0), ("coord_wise", 0.1, 1.0), ("layer_wise", 2, 1.0)]
    assert step(optimizer, 9.0, 9.0, 9.0, 9.0) == pytest.approx([4.0, 4.0, 0.1, 2.0])


def test_group_may_hold_one_parameter_or_an_iterator():
    optimizer = ClippedSGD([one()])
    optimizer.add_param_group({"params": one(), "clipping_level": 3.0})
    optimizer.add_param_group({"params": (one() for _ in range(2)), "clipping_level": 0.5})
    assert step(optimizer, 9.0, 9.0, 3.0, 4.0) == pytest.approx([1.0, 3.0, 0.3, 0.4])


# Changes between steps.


def test_level_edited_between_steps_is_used():
    optimizer = ClippedSGD([one()], lr=1.0)
    for level in (1.0, 4, 0.25, np.float32(0.5), 1.0):
        optimizer.param_groups[0]["clipping_level"] = level
        assert step(optimizer, 10.0) == pytest.approx([float(level)])
    assert optimizer.clipping_stats()["steps"] == 5


def test_type_edited_between_steps_is_used():
    optimizer = ClippedSGD([one(), one()])
    group = optimizer.param_groups[0]
    assert step(optimizer, 3.0, 4.0) == pytest.approx([0.6, 0.8])
    group["clipping_type"] = "layer_wise"
    assert step(optimizer, 3.0, 4.0) == pytest.approx([1.0, 1.0])
    group.update(clipping_type="coord_wise", clipping_level=0.5)
    assert step(optimizer, -3.0, 0.25) == pytest.approx([-0.5, 0.25])
    group.update(clipping_type="none", clipping_level=None)
    assert step(optimizer, 3.0, 4.0) == [3.0, 4.0]
    group.update(clipping_type="norm", clipping_level=10)
    assert step(optimizer, 30.0, 40.0) == pytest.approx([6.0, 8.0])
    group.update(clipping_type="auto", clipping_level=1)
    assert step(optimizer, 300.0, 400.0) == [300.0, 400.0]


def test_norm_type_edited_between_steps_is_used():
    optimizer = ClippedSGD([one(), one()], clipping_level=7)
    optimizer.param_groups[0]["norm_type"] = 1
    assert step(optimizer, 3.0, 4.0) == [3.0, 4.0]
    optimizer.param_groups[0]["norm_type"] = "inf"
    assert step(optimizer, 3.0, 14.0) == pytest.approx([1.5, 7.0])


def test_window_edited_between_steps_keeps_the_last_norms():
    optimizer = ClippedSGD([one()], clipping_type="auto", clipping_window=6, clipping_level=0.5)
    for norm in range(1, 9):
        step(optimizer, norm)
    optimizer.param_groups[0]["clipping_window"] = 3
    assert step(optimizer, 9.0) == [8.0]
    assert optimizer.grad_norms().tolist() == [7.0, 8.0, 9.0]
    optimizer.param_groups[0]["clipping_window"] = 5
    step(optimizer, 10.0)
    assert optimizer.grad_norms().tolist() == [7.0, 8.0, 9.0, 10.0]


def test_level_edited_by_closure_is_used_in_the_same_step():
    param = one()
    optimizer = ClippedSGD([param], lr=1.0)

    def closure():
        optimizer.param_groups[0]["clipping_level"] = 4.0
        param.grad = torch.tensor([10.0])

    optimizer.step(closure)
    assert param.item() == pytest.approx(-4.0)


def test_edited_group_forms_its_own_set():
    optimizer = ClippedSGD([{"params": [one()]}, {"params": [one()]}], clipping_level=1.0)
    assert step(optimizer, 3.0, 4.0) == pytest.approx([0.6, 0.8])
    optimizer.param_groups[1]["clipping_level"] = 2.0
    assert step(optimizer, 3.0, 4.0) == pytest.approx([1.0, 2.0])
    optimizer.param_groups[1]["clipping_level"] = 1.0
    assert step(optimizer, 3.0, 4.0) == pytest.approx([0.6, 0.8])


SCHEDULERS = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=10),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
}


@pytest.mark.parametrize(
    ("clipped_class", "scheduler"),
    [
        *zip(CLASSES, ["step", "cosine", "lambda"], strict=True),
        *((clipped_class, "one cycle") for clipped_class in CLASSES),  # which drives the momentum, or the betas
    ],
)
def test_lr_schedulers_drive_clipped_optimizers_as_they_do_torchs(problem, clipped_class, scheduler):
    plain_class = CLASSES[clipped_class]

    def run(optimizer_class, **arguments):
        options = {"momentum": 0.9} if plain_class is torch.optim.SGD else {}
        params = problem.parameters()
        optimizer = optimizer_class(params, lr=0.2, fused=True, **options, **arguments)
        schedule = SCHEDULERS[scheduler](optimizer)
        rates = []
        for i in range(8):
            problem.step(optimizer, problem.gradients(i))
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return params, rates

    wanted, wanted_rates = run(plain_class)
    params, rates = run(clipped_class, clipping_level=1e9)
    assert rates == wanted_rates
    assert len(set(rates)) > 2
    assert equal(params, wanted)


def test_learning_rate_of_scheduler_multiplies_the_clipped_gradient():
    param = one()
    optimizer = ClippedSGD([param], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    weights = []
    for _ in range(3):
        step(optimizer, 100.0)
        schedule.step()
        weights.append(param.item())
    assert weights == pytest.approx([-1.0, -1.5, -1.75])
