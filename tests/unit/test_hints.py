"""Unknown arguments: the class or function that was called is named, and the argument that was meant."""

import inspect
import re
import typing

import pytest
import torch
from support.versions import needs_torch

import torch_clipped
from torch_clipped import (
    Clipped,
    ClippedAdam,
    ClippedAdamW,
    ClippedSGD,
    ClippedSSTM,
    GradientClipper,
    ModelProperties,
    OptimizerProperties,
    clip_gradients_,
    clip_optimizer,
)

CLASSES = {ClippedSGD: torch.optim.SGD, ClippedAdam: torch.optim.Adam, ClippedAdamW: torch.optim.AdamW}
CLIPPING = (
    *("clipping_type", "clipping_level", "clipping_action", "clipping_cap", "clipping_warmup", "clipping_set"),
    *("clipping_beta", "clipping_window", "norm_type", "nonfinite", "clipping_seed"),
)

# the level under the names that other libraries give it, by the type that does what they do
TYPE_OF = {
    "norm": ("max_norm", "max_grad_norm", "global_clipnorm", "gradient_clip_val", "grad_clip", "clip_norm", "gradient_clipping"),
    "layer_wise": ("clipnorm",),
    "coord_wise": ("clip_value", "clipvalue"),
    "adaptive": ("clip_factor",),
    "auto": ("percentile", "quantile", "p_autoclip"),
    None: ("clipping_threshold", "clip_threshold", "clip_level", "clipping_levels", "clipping_levle"),
}
LEVELS = [(name, clipping_type) for clipping_type, names in TYPE_OF.items() for name in names]


class ClippedRMSprop(Clipped, torch.optim.RMSprop):
    "RMSprop with gradient clipping."


class Swallowing(torch.optim.SGD):
    "An optimizer that takes anything."

    def __init__(self, params, lr=1e-3, **kwargs):
        super().__init__(params, lr)


class HandingOn(torch.optim.SGD):
    "An optimizer whose arguments stand in the constructor that it calls."

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)


class ClippedSwallowing(Clipped, Swallowing):
    "With gradient clipping."


class ClippedHandingOn(Clipped, HandingOn):
    "With gradient clipping."


def one():
    return torch.nn.Parameter(torch.zeros(1))


def plain():
    return torch.optim.RMSprop([one()])


WAYS = {
    "ClippedSGD": lambda **arguments: ClippedSGD([one()], **arguments),
    "ClippedAdam": lambda **arguments: ClippedAdam([one()], **arguments),
    "ClippedAdamW": lambda **arguments: ClippedAdamW([one()], **arguments),
    "ClippedSSTM": lambda **arguments: ClippedSSTM([one()], lr=0.1, L=1.0, **arguments),
    "ClippedRMSprop": lambda **arguments: ClippedRMSprop([one()], **arguments),
    "ClippedSwallowing": lambda **arguments: ClippedSwallowing([one()], **arguments),
    "ClippedHandingOn": lambda **arguments: ClippedHandingOn([one()], **arguments),
    "clip_optimizer": lambda **arguments: clip_optimizer(plain(), **arguments),
    "GradientClipper": lambda **arguments: GradientClipper([one()], **arguments),
    "clip_gradients_": lambda **arguments: clip_gradients_([one()], **arguments),
    "parameter group 0": lambda **arguments: ClippedSGD([{"params": [one()], **arguments}]),
    "parameter group 1": lambda **arguments: ClippedSGD([one()]).add_param_group({"params": [one()], **arguments}),
}


@pytest.mark.parametrize(
    ("way", "name", "clipping_type"),
    [
        *(("ClippedSGD", *level) for level in LEVELS),
        *((way, *level) for way in WAYS if way != "ClippedSGD" for level in [("max_norm", "norm"), ("clipping_levle", None)]),
    ],
)
def test_level_under_a_foreign_name_is_refused_and_the_argument_named(way, name, clipping_type):
    with pytest.raises(TypeError, match=rf"^{way} has no argument '{name}'; did you mean 'clipping_level'\?") as error:
        WAYS[way](**{name: 0.5})
    assert re.findall("clipping_type='(.*?)'", str(error.value)) == ([clipping_type] if clipping_type else [])


@pytest.mark.parametrize("name", [names[0] for names in TYPE_OF.values()])
def test_optimizer_properties_give_the_same_hint(name):
    with pytest.raises(TypeError) as wanted:
        ClippedAdam([one()], **{name: 0.5})
    with pytest.raises(TypeError, match=f"^{re.escape(str(wanted.value))}$"):
        OptimizerProperties(ClippedAdam, **{name: 0.5})


@pytest.mark.parametrize("name", TYPE_OF["auto"])
def test_hint_says_that_a_quantile_is_between_zero_and_one(name):
    with pytest.raises(TypeError, match="between 0 and 1"):
        ClippedSGD([one()], **{name: 10})


@pytest.mark.parametrize(
    ("way", "name", "meant"),
    [
        *((way, "beta", "clipping_beta") for way in WAYS if way != "clip_gradients_"),
        ("ClippedSGD", "clipping_typ", "clipping_type"),
        ("ClippedSGD", "clipping_windows", "clipping_window"),
        ("ClippedSGD", "clip_seed", "clipping_seed"),
        ("ClippedSGD", "gradient_clip_algorithm", "clipping_type"),
        ("ClippedSGD", "history_length", "clipping_window"),
    ],
)
def test_other_clipping_arguments_are_hinted_at_too(way, name, meant):
    with pytest.raises(TypeError, match=rf"^{way} has no argument '{name}'; did you mean '{meant}'\?"):
        WAYS[way](**{name: 1})


@pytest.mark.parametrize(
    ("make", "name", "meant"),
    [
        (WAYS["ClippedSGD"], "momentun", "momentum"),
        (WAYS["ClippedSGD"], "Lr", "lr"),
        (WAYS["ClippedSGD"], "norm_typ", "norm_type"),
        (WAYS["ClippedSGD"], "window", "clipping_window"),
        (WAYS["ClippedAdam"], "weight_decy", "weight_decay"),
        (WAYS["ClippedAdamW"], "betass", "betas"),
        (WAYS["ClippedRMSprop"], "alhpa", "alpha"),
        (WAYS["ClippedSSTM"], "a_k_ratio", "a_k_ratio_upper_bound"),
        (WAYS["ClippedHandingOn"], "momentun", "momentum"),
        (WAYS["clip_gradients_"], "error_if_nonfinite", "nonfinite"),
        (lambda **arguments: OptimizerProperties(ClippedSGD, **arguments), "momentun", "momentum"),
        (lambda **arguments: OptimizerProperties(torch.optim.SGD, **arguments), "momentun", "momentum"),
        (lambda **arguments: ModelProperties(torch.nn.Linear, 3, 1, **arguments), "bais", "bias"),
    ],
)
def test_typo_of_any_argument_names_the_nearest(make, name, meant):
    with pytest.raises(TypeError, match=rf"has no argument '{name}'; did you mean '{meant}'\?$"):
        make(**{name: 0.5})


def test_argument_without_a_near_one_lists_the_choices():
    with pytest.raises(TypeError) as error:
        clip_gradients_([one()], eps=1)
    names = "parameters, clipping_type, clipping_level, clipping_action, norm_type, nonfinite"
    assert str(error.value) == f"clip_gradients_ has no argument 'eps'; choose from {names}"
    with pytest.raises(TypeError, match=r"choose from params, lr, momentum, .*, clipping_seed$"):
        ClippedSGD([one()], zzz=1)


def test_argument_of_ours_is_not_hinted_at_where_it_is_none():
    with pytest.raises(TypeError, match=r"^SGD has no argument 'max_norm'; choose from params, lr"):
        OptimizerProperties(torch.optim.SGD, max_norm=1.0)
    for name in ("clipping_beta", "clipping_window", "clipping_seed"):
        with pytest.raises(TypeError, match=f"^clip_gradients_ has no argument '{name}'; choose from"):
            clip_gradients_([one()], **{name: 1})


def test_error_shows_no_error_that_led_to_it():
    for make in WAYS.values():
        with pytest.raises(TypeError) as error:
            make(max_norm=1.0)
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__ or error.value.__context__ is None


# What is the optimizer's own passes.


class Factored(torch.optim.Optimizer):
    "Takes arguments of its own that look like those of clipping, and keeps two of them outside its groups."

    def __init__(self, params, lr=1e-3, beta=0.9, max_grad_norm=2.0, clip_threshold=1.0, percentile=5):
        self.clip_threshold, self.percentile = clip_threshold, percentile
        super().__init__(params, {"lr": lr, "beta": beta, "max_grad_norm": max_grad_norm})

    def step(self, closure=None):
        return None


class FactoredAbove(Factored):
    "Hands on what it does not know."

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)


class Hidden(torch.optim.Optimizer):
    "Takes an argument that no signature shows."

    def __init__(self, params, **kwargs):
        super().__init__(params, {"lr": kwargs.pop("lr", 0.1), "max_norm": kwargs.pop("max_norm", 1.0)})

    def step(self, closure=None):
        return None


@pytest.mark.parametrize("parent", [Factored, FactoredAbove])
def test_arguments_that_the_optimizer_itself_takes_are_its_own(parent):
    class Mixed(Clipped, parent):
        "With gradient clipping."

    optimizer = Mixed([one()], beta=0.5, max_grad_norm=7.0, clip_threshold=3.0, percentile=9, clipping_level=4.0)
    group = optimizer.param_groups[0]
    assert (group["beta"], group["max_grad_norm"], optimizer.clip_threshold, optimizer.percentile) == (0.5, 7.0, 3.0, 9)
    assert group["clipping_level"] == 4.0
    with pytest.raises(TypeError, match="Mixed has no argument 'max_norm'; did you mean 'clipping_level'"):
        Mixed([one()], max_norm=1.0)
    with pytest.raises(TypeError, match="Mixed has no argument 'clip_treshold'; did you mean 'clip_threshold'"):
        Mixed([one()], clip_treshold=1.0)


def test_argument_that_shows_in_the_defaults_only_is_the_optimizers_own():
    class Mixed(Clipped, Hidden):
        "With gradient clipping."

    assert Mixed([one()], max_norm=3.0).param_groups[0]["max_norm"] == 3.0
    with pytest.raises(TypeError, match="Mixed has no argument 'clipvalue'; did you mean 'clipping_level'"):
        Mixed([one()], clipvalue=3.0)


def test_arguments_of_a_derived_class_are_its_own():
    class Derived(ClippedSGD):
        def __init__(self, params, max_norm=1.0, **others):
            super().__init__(params, clipping_level=max_norm, **others)

    assert Derived([one()], max_norm=3.0).param_groups[0]["clipping_level"] == 3.0
    assert list(inspect.signature(Derived).parameters) == ["params", "max_norm", "others"]
    with pytest.raises(TypeError, match="Derived has no argument 'max_grad_norm'; did you mean 'clipping_level'"):
        Derived([one()], max_grad_norm=3.0)


def test_errors_about_other_things_stay_as_they_are():
    def failing(params, **kwargs):
        raise TypeError("no such thing as 'max_norm'")

    class Failing(torch.optim.SGD):
        "Takes any argument and fails for another reason."

        def __init__(self, params, **kwargs):
            failing(params)

    class Mixed(Clipped, Failing):
        "With gradient clipping."

    with pytest.raises(TypeError, match=r"^no such thing as 'max_norm'$"):
        Mixed([one()], max_norm=1.0)
    with pytest.raises(TypeError, match="should be an iterable of Tensors"):
        ClippedSGD(torch.zeros(2), lr=0.1)
    with pytest.raises(TypeError, match=r"ClippedSGD.__init__\(\) takes from 2 to 7 positional arguments but 8 were given"):
        ClippedSGD([one()], 0.1, 0.9, 0, 0, False, 1.0)
    with pytest.raises(TypeError, match=r"ClippedSGD.__init__\(\) missing 1 required positional argument: 'params'"):
        ClippedSGD()


# What help() and editors show.


@needs_torch("2.12", "the signature of today")
@pytest.mark.parametrize(("clipped_class", "plain_class"), CLASSES.items())
def test_constructor_is_torchs_followed_by_the_mixins(clipped_class, plain_class):
    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    clipping = [p for p in parameters(Clipped.__init__) if p[0] in CLIPPING]
    assert parameters(clipped_class.__init__) == parameters(plain_class.__init__) + clipping
    assert parameters(clipped_class) == parameters(clipped_class.__init__)[1:]
    types, wanted = typing.get_type_hints(clipped_class.__init__), typing.get_type_hints(plain_class.__init__)
    assert types == wanted | {name: typing.get_type_hints(Clipped.__init__)[name] for name in CLIPPING}


@needs_torch("2.12", "the signature of today")
@pytest.mark.parametrize(("clipped_class", "plain_class"), CLASSES.items())
def test_constructor_hands_on_every_argument(clipped_class, plain_class):
    other = {
        "params": [one()],
        "lr": 0.5,
        "momentum": 0.25,
        "dampening": 0.125,
        "betas": (0.5, 0.25),
        "eps": 1e-4,
        "weight_decay": 0.375,
        "clipping_type": "auto",
        "clipping_level": 0.5,
        "clipping_action": "skip",
        "clipping_cap": 2.5,
        "clipping_warmup": 4,
        "clipping_set": "actor",
        "clipping_beta": 0.5,
        "clipping_window": 7,
        "norm_type": 1.0,
        "nonfinite": "zero",
        "clipping_seed": 3,
    }
    for name, parameter in inspect.signature(clipped_class).parameters.items():
        if name in ("params", "dampening"):
            continue
        value = other.get(name, True)
        together = {"nesterov": {"momentum": 0.9}, "momentum": {}}.get(name, {})
        together |= {"clipping_type": "none"} if name == "differentiable" else {}
        together |= {"clipping_type": "auto"} if name in ("clipping_level", "clipping_warmup") else {}
        group = clipped_class([one()], **{name: value, **together}).param_groups[0]
        assert value != parameter.default
        assert group[name] == value, name
    if clipped_class is ClippedSGD:
        assert clipped_class([one()], dampening=0.125).param_groups[0]["dampening"] == 0.125


@pytest.mark.parametrize("clipped_class", CLASSES)
def test_help_describes_every_clipping_argument(clipped_class):
    text = inspect.getdoc(clipped_class)
    assert text.startswith(f":class:`torch.optim.{CLASSES[clipped_class].__name__}` with gradient clipping")
    for name in CLIPPING:
        described = re.search(rf"^    {name}: .*?Default: (.*?)\.$", text, flags=re.DOTALL | re.MULTILINE)[1]
        default = inspect.signature(clipped_class).parameters[name].default
        assert described.strip('`"').partition(",")[0] == str(default).removesuffix(".0")


def test_the_three_classes_say_the_same_of_clipping():
    said = {inspect.getdoc(cls).partition("    clipping_type: ")[2].partition("Example:")[0] for cls in CLASSES}
    assert len(said) == 1
    assert len(said.pop()) > 400


@pytest.mark.parametrize("name", ["GradientClipper", "clip_gradients_", "clip_optimizer"])
def test_signatures_show_explicit_arguments_only(name):
    function = getattr(torch_clipped, name)
    assert function.__name__ == name
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
