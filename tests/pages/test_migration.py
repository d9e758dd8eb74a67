"""docs/migration.md: what it calls equal trains to the same weights, and what it calls different differs as it says."""

import importlib.util
import math
import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

import numpy as np
import pytest
import torch
from support import pages, peers
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from torch_clipped import ClippedSGD, Clipping, GradientClipper, MeanStd, Quantile, ZClip, clipping, register_clipping
from torch_clipped.history import mean_and_std, push, quantile, where

SECTIONS = pages.sections(pages.page("docs/migration.md"))
STEPS = 150


@pytest.fixture(autouse=True)
def _registered_types_are_forgotten():
    before = dict(clipping.CLIPPING_TYPES)
    yield
    clipping.CLIPPING_TYPES.clear()
    clipping.CLIPPING_TYPES.update(before)


def need(package):
    """Import a package, or skip and say how to have it."""
    return pytest.importorskip(package, reason=f"needs {package}, which the extra test installs")


# One training problem: heavy-tailed targets, so that some gradients are long.


def new_model():
    torch.manual_seed(0)
    layers = nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(15, 4), nn.Tanh(), nn.Linear(4, 1)
    return nn.Sequential(*layers).double()


def new_batches():
    torch.manual_seed(1)
    noise = torch.distributions.StudentT(torch.tensor(1.5, dtype=torch.float64))
    inputs = [torch.randn(8, 6, dtype=torch.float64) for _ in range(STEPS)]
    return [(x, x[:, :1] + 0.2 * noise.sample((8, 1))) for x in inputs]


def loss_of(model, batch):
    return (model(batch[0]) - batch[1]).square().mean() / 2


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(make_step, model=None):
    """The weights after a training whose steps, clipping included, are made by ``make_step(model)``."""
    model = model or new_model()
    step = make_step(model)
    for batch in new_batches():
        model.zero_grad()
        loss_of(model, batch).backward()
        step()
    return weights_of(model)


def difference(weights, wanted, start=None):
    """The largest difference of two weights, as a share of the longest way that a weight has gone."""
    start = weights_of(new_model()) if start is None else start
    return ((weights - wanted).abs().max() / (wanted - start).abs().max()).item()


def ours(clipping_type, clipping_level=None, optimizer=ClippedSGD, **arguments):
    """Steps of an optimizer of this library, that must clip now and then."""

    def make_step(model):
        arguments.setdefault("lr", 0.05)
        made = optimizer(model.parameters(), clipping_type=clipping_type, clipping_level=clipping_level, **arguments)

        def step():
            made.step()
            steps, clipped = (made.clipping_stats()[key] for key in ("steps", "clipped_steps"))
            assert steps < STEPS or clipped > 0  # a type that never clips is equal to anything

        return step

    return make_step


def theirs(clip, **arguments):
    """Steps of torch's SGD after a call of ``clip(model)``."""

    def make_step(model):
        optimizer = torch.optim.SGD(model.parameters(), **({"lr": 0.05, "momentum": 0.9} | arguments))

        def step():
            clip(model)
            optimizer.step()

        return step

    return make_step


UNCLIPPED = ours("none", momentum=0.9)


def test_clipping_matters_in_this_training():
    clipped = train(ours("norm", 1.0, momentum=0.9))
    assert difference(clipped, train(UNCLIPPED)) > 0.1
    assert difference(clipped, train(ours("norm", 1.001, momentum=0.9))) > 1e-4


# The blocks of the page.

TOLERANCES = {  # what the page calls rounding, and the 1e-6 and eps that it names
    "torch": 1e-6,
    "torch-clip": 1e-10,
    "autoclip": 2e-6,
    "Composer": 1e-10,
    "timm": 1e-10,
    "ZClip": 2e-6,
    "ZClip, other modes": 2e-6,
    "Keras": 1e-10,
    "bitsandbytes": 1e-10,
    "Pyro and NumPyro": 1e-5,
}
PEERS = {"torch-clip": "torch_clip.optimizers", "autoclip": "autoclip.torch", "ZClip": "zclip"} | {
    "ZClip, other modes": "zclip",
    "Composer": "composer.functional",
    "timm": "timm.utils",
    "Keras": "keras",
    "bitsandbytes": "bitsandbytes",
    "Pyro and NumPyro": "pyro.optim.clipped_adam",
}


def with_variables(model):
    """As a Keras model shows its parameters."""
    model.trainable_weights = [type("Variable", (), {"value": p})() for p in model.parameters()]
    return model


def run(block, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pages.run([block], "docs/migration.md", {"torch": torch, "model": model, "batches": new_batches(), "loss_of": loss_of})
    return weights_of(model)


@pytest.mark.parametrize("section", SECTIONS)
def test_last_block_of_each_section_trains_to_the_weights_of_the_first(section, monkeypatch):
    if PEERS.get(section) in peers.STAND_INS:
        for name, stand_in in peers.STAND_INS[PEERS[section]].items():
            monkeypatch.setitem(sys.modules, name, stand_in)
    elif section in PEERS:
        need(PEERS[section].partition(".")[0])
    before, *others, after = pages.python_blocks(SECTIONS[section])
    wanted = run(before, with_variables(new_model()))
    assert difference(wanted, train(UNCLIPPED)) > 1e-3
    for block in others:
        assert run(block, new_model()).isfinite().all()
    assert difference(run(after, new_model()), wanted) < TOLERANCES[section]


def test_every_section_and_every_peer_of_the_table_is_known():
    assert set(SECTIONS) == set(TOLERANCES)
    assert all(len(pages.python_blocks(section)) in (2, 3) for section in SECTIONS.values())


# The rows of the table: torch.


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_clip_grad_norm_is_norm(norm_type):
    level = {1.0: 5.0, math.inf: 0.3}.get(norm_type, 1.0)
    wanted = train(theirs(lambda model: clip_grad_norm_(model.parameters(), level, norm_type)))
    assert difference(train(ours("norm", level, momentum=0.9, norm_type=norm_type)), wanted) < 1e-5


def test_clip_grad_norm_leaves_less_by_its_millionth_only():
    grads = [torch.full((2,), 3.0, dtype=torch.float64), torch.full((3,), -1.0, dtype=torch.float64)]
    mine, other = ([nn.Parameter(torch.zeros_like(g)) for g in grads] for _ in range(2))
    for p, g in zip([*mine, *other], grads * 2, strict=True):
        p.grad = g.clone()
    norm = clip_grad_norm_(other, 0.01).item()
    GradientClipper(mine, "norm", 0.01).step()
    for p, q in zip(mine, other, strict=True):
        torch.testing.assert_close(q.grad * (1 + 1e-6 / norm), p.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_clip_grad_value_is_value_bit_for_bit_with_the_same_flags(flags):
    wanted = train(theirs(lambda model: clip_grad_value_(model.parameters(), 0.1), **flags))
    assert torch.equal(train(ours("value", 0.1, momentum=0.9, **flags)), wanted)
    assert difference(train(ours("value", 0.1, momentum=0.9)), wanted) < 1e-10


# torch-clip.


def torch_clip(clipping_type, **arguments):
    optimizers = need("torch_clip.optimizers")

    def make_step(model):
        return optimizers.ClippedSGD(model.parameters(), clipping_type=clipping_type, lr=0.05, **arguments).step

    return make_step


@pytest.mark.parametrize(
    ("name", "our_name", "level"),
    [("norm", "norm", 1.0), ("layer_wise", "layer_wise", 0.3), ("coordinate_wise", "coord_wise", 0.1), ("no_clip", "none", None)],
)
def test_torch_clip_without_momentum_is_the_type_of_the_same_name(name, our_name, level):
    wanted = train(torch_clip(name, **({} if level is None else {"clipping_level": level})))
    assert difference(train(ours(our_name, level)), wanted) < (1e-5 if name == "coordinate_wise" else 1e-10)
    assert difference(train(ours(name, level)), wanted) < 1e-5  # its name works too


def test_torch_clip_without_clipping_keeps_torchs_momentum():
    assert difference(train(UNCLIPPED), train(torch_clip("no_clip", momentum=0.9))) < 1e-10


def test_torch_clip_keeps_a_spike_in_its_momentum():
    torch_clip("norm")
    ends = []
    for cls in (need("torch_clip.optimizers").ClippedSGD, ClippedSGD):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = cls([weight], lr=1.0, momentum=0.9, clipping_type="norm", clipping_level=1.0)
        for grad in (1e6, 1.0, 1.0):
            weight.grad = torch.tensor([grad])
            optimizer.step()
        ends.append(-weight.item())
    assert ends[0] > 1e6
    assert ends[1] == pytest.approx(1 + 1.9 + 2.71)


def test_torch_clip_takes_no_quantile_of_a_rising_stream():
    history = need("torch_clip.utils").GradHistory("auto_clip", 0.75)
    for norm in range(1, 101):
        history.add_grad_len(float(norm))
    assert history.get_grad_len() > 95  # the quantile is 75.25


def test_torch_clip_draws_for_each_tensor_from_the_global_random_numbers():
    step = torch_clip("linear_rand_norm", clipping_level=0.5, beta=0.5)
    torch.manual_seed(0)
    params = [nn.Parameter(torch.zeros(1)) for _ in range(30)]
    optimizer = step(nn.ParameterList(params))
    for p in params:
        p.grad = torch.ones(1)
    state = torch.get_rng_state()
    optimizer()
    assert not torch.equal(torch.get_rng_state(), state)
    assert len({p.item() for p in params}) == 2


# autoclip.


class QuantileOfThePast(Quantile):
    def __call__(self, blocks, level, memory):
        return quantile(memory, level)

    def remember(self, blocks, clipped_lengths, memory):
        push(memory, blocks.lengths, blocks.valid)


class DeviationsOfThePast(MeanStd):
    def __call__(self, blocks, level, memory):
        known, _, std = mean_and_std(memory)
        return where(known >= 2, level * std, math.inf)


def autoclip(name, **arguments):
    clipper_class = getattr(need("autoclip.torch"), name)

    def make_step(model):
        return clipper_class.as_optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), **arguments).step

    return make_step


@pytest.mark.parametrize(("measure", "whole"), [("global", True), ("layer", False)])
@pytest.mark.parametrize("window", [1000, 20])
def test_quantile_clip_is_a_row_that_looks_at_the_past_only(measure, whole, window):
    wanted = train(autoclip("QuantileClip", quantile=0.8, history_length=window, global_threshold=whole))
    register_clipping("past_auto", Clipping(measure, QuantileOfThePast(0.9)))
    assert difference(train(ours("past_auto", 0.8, momentum=0.9, clipping_window=window)), wanted) < 1e-5
    near = train(ours("auto" if whole else "layer_wise_auto", 0.8, momentum=0.9, clipping_window=window))
    assert 1e-5 < difference(near, wanted) < 0.5


def second_gradient(optimizer_of):
    """What is left of a gradient of norm 2 after one of norm 1."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of(weight)
    for grad in (1.0, 2.0):
        weight.grad = torch.tensor([grad])
        optimizer.step()
    return weight.grad.item()


def test_quantile_clip_leaves_the_present_norm_out_and_auto_does_not():
    clip = need("autoclip.torch").QuantileClip
    sgd = torch.optim.SGD
    assert second_gradient(lambda p: clip.as_optimizer(sgd([p], lr=0.1), quantile=0.5)) == pytest.approx(1.0, rel=1e-5)
    assert second_gradient(lambda p: ClippedSGD([p], clipping_type="auto", clipping_level=0.5)) == pytest.approx(1.5)


@pytest.mark.parametrize("whole", [True, False])
def test_standard_clip_makes_the_weights_nan_in_its_second_step(whole):
    clip = need("autoclip.torch").StandardClip
    with pytest.warns(UserWarning, match="degrees of freedom"):
        left = second_gradient(lambda p: clip.as_optimizer(torch.optim.SGD([p], lr=0.1), deviations=2.0, global_threshold=whole))
    assert math.isnan(left)


@pytest.mark.parametrize(("measure", "whole"), [("global", True), ("layer", False)])
def test_standard_clip_is_a_row_without_the_mean_once_two_norms_are_known(measure, whole):
    clip = need("autoclip.torch").StandardClip

    def make_step(model):
        optimizer, clipper = torch.optim.SGD(model.parameters(), lr=0.02), clip(model.parameters(), 2.0, 1000, whole)
        parts = [("global_history", list(model.parameters()))] if whole else [(p, [p]) for p in model.parameters()]
        norms = []

        def step():
            norms.append([torch.nn.utils.get_total_norm([p.grad for p in part]) for _, part in parts])
            if len(norms) == 2:  # what the first two steps would have recorded, had they not been clipped
                for (key, _), first, second in zip(parts, *norms, strict=True):
                    history = torch.stack([first, second])
                    clipper.state[key] = history if whole else {"history": history}
            elif len(norms) > 2:
                clipper.step()
            optimizer.step()

        return step

    register_clipping("past_deviations", Clipping(measure, DeviationsOfThePast(2.0)))
    assert difference(train(ours("past_deviations", 2.0, lr=0.02)), train(make_step)) < 1e-5
    mean_too = train(ours("zscore" if whole else "layer_wise_zscore", 2.0, lr=0.02))
    assert difference(mean_too, train(make_step)) > 1e-2


@pytest.mark.parametrize("window", [1000, 50])
def test_auto_is_a_percentile_of_the_norms_by_hand_while_they_fit_its_window(window):
    norms = []

    def clip(model):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        clip_grad_norm_(model.parameters(), np.percentile(norms, 80))

    wanted = train(theirs(clip))
    found = difference(train(ours("auto", 0.8, momentum=0.9, clipping_window=window)), wanted)
    assert found < 1e-5 if window == 1000 else found > 1e-3


# Composer and timm.


def real_composer():
    """apply_gradient_clipping of an installed mosaicml, without the rest of Composer, which wants another torch."""
    stubs = {
        "composer.core": ("Algorithm", "Event", "State"),
        "composer.loggers": ("Logger",),
        "composer.models": ("ComposerModel",),
    }
    modules = {name: peers.module(name, **dict.fromkeys(names, object)) for name, names in stubs.items()}
    path = "composer/algorithms/gradient_clipping/gradient_clipping.py"
    return loaded("mosaicml", {"gradient_clipping": path}, modules).apply_gradient_clipping


def real_timm():
    """dispatch_clip_grad of an installed timm, without the rest of timm, which wants torchvision."""
    paths = {"timm.utils.agc": "timm/utils/agc.py", "timm.utils.clip_grad": "timm/utils/clip_grad.py"}
    return loaded("timm", paths, {"timm": ModuleType("timm"), "timm.utils": ModuleType("timm.utils")}).dispatch_clip_grad


def loaded(package, paths, stubs):
    """The last of some files of an installed package."""
    try:
        files = distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"needs {package}: pip install --no-deps {package}")
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        for name, path in paths.items():
            spec = importlib.util.spec_from_file_location(name, files.locate_file(path))
            found = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, found)
            spec.loader.exec_module(found)
    return found


COMPOSER = {"written out": lambda: peers.composer_gradient_clipping, "installed": real_composer}
TIMM = {"written out": lambda: peers.timm_dispatch_clip_grad, "installed": real_timm}
LEVELS = [("norm", "norm", 1.0, 1e-5), ("value", "value", 0.1, 1e-10), ("adaptive", "adaptive", 0.05, 1e-10)]


@pytest.mark.parametrize("source", COMPOSER)
@pytest.mark.parametrize(("name", "our_name", "level", "tolerance"), LEVELS)
def test_composers_clipping_types(source, name, our_name, level, tolerance):
    clip = COMPOSER[source]()
    wanted = train(theirs(lambda model: clip(model, name, level, False)))
    assert difference(train(ours(our_name, level, momentum=0.9)), wanted) < tolerance


@pytest.mark.parametrize("source", COMPOSER)
def test_composer_never_trains_weights_that_start_at_zero(source):
    clip = COMPOSER[source]()
    model = nn.Linear(2, 3)
    nn.init.zeros_(model.weight)
    model(torch.ones(1, 2)).sum().backward()
    grads = [model.weight.grad.clone(), model.bias.grad.clone()]
    clip(model, "adaptive", 0.01, False)
    assert not model.weight.grad.any()
    model.weight.grad, model.bias.grad = grads
    GradientClipper(model.parameters(), "adaptive", 0.01).step()
    assert model.weight.grad.norm(dim=1).tolist() == pytest.approx([1e-5] * 3)


@pytest.mark.parametrize("source", TIMM)
@pytest.mark.parametrize(("name", "our_name", "level", "tolerance"), LEVELS)
def test_timms_clip_modes(source, name, our_name, level, tolerance):
    clip, mode = TIMM[source](), {"adaptive": "agc"}.get(name, name)
    wanted = train(theirs(lambda model: clip(list(model.parameters()), level, mode=mode)))
    assert difference(train(ours(our_name, level, momentum=0.9)), wanted) < tolerance


# ZClip.


def zclip(**arguments):
    clipper = need("zclip").ZClip(**arguments)
    return theirs(clipper.step)


def test_zclip_as_published_is_zclip():
    wanted = train(zclip(max_grad_norm=None))
    assert difference(train(ours("zclip", 2.5, momentum=0.9)), wanted) < 1e-5
    assert difference(wanted, train(UNCLIPPED)) > 1e-2


def test_zclip_by_default_clips_to_norm_one_too():
    wanted = train(zclip())  # where its own threshold is sometimes below 1 and sometimes above
    assert difference(train(ours("zclip", 2.5, momentum=0.9, clipping_cap=1.0)), wanted) < 1e-5
    for one_of_both in (ours("norm", 1.0, momentum=0.9), ours("zclip", 2.5, momentum=0.9)):
        assert difference(train(one_of_both), wanted) > 1e-2


def test_warmup_steps_of_zclip_are_a_warm_up():
    wanted = train(zclip(max_grad_norm=None, warmup_steps=8))
    assert difference(train(ours("zclip", 2.5, momentum=0.9, clipping_warmup=8)), wanted) < 1e-5
    assert difference(train(ours("zclip", 2.5, momentum=0.9)), wanted) > 1e-3


def test_alpha_of_zclip_is_the_averaging_of_a_type_of_ones_own():
    wanted = train(zclip(max_grad_norm=None, alpha=0.9))
    register_clipping("zclip_alpha", Clipping("global", ZClip(2.5, averaging=0.9)))
    assert difference(train(ours("zclip_alpha", momentum=0.9)), wanted) < 1e-5
    assert difference(train(ours("zclip", momentum=0.9)), wanted) > 1e-3


@pytest.mark.parametrize(
    ("theirs", "mode"),
    [
        ({"mode": "percentile"}, {"spike_threshold": "percentile"}),
        ({"clip_option": "mean"}, {"spike_threshold": "mean"}),
        ({"clip_factor": 0.5}, {"factor": 0.5}),
        ({"skip_update_on_spike": True}, {"skip_update": True}),
    ],
    ids=str,
)
def test_other_modes_of_zclip_are_rows_of_ones_own(theirs, mode, table):
    page = {"torch": torch, "model": new_model(), "batches": new_batches(), "loss_of": loss_of}
    pages.run([pages.python_blocks(SECTIONS["ZClip, other modes"])[-1]], "docs/migration.md", page)
    table["zclip_mode"] = Clipping("global", page["ZClipMode"](2.5, **mode))
    wanted = train(zclip(max_grad_norm=None, **theirs))
    assert difference(train(ours("zclip_mode", 2.5, momentum=0.9)), wanted) < 1e-5
    assert difference(train(zclip(max_grad_norm=None)), wanted) > 1e-4


# Keras.


def new_keras_model():
    os.environ.setdefault("KERAS_BACKEND", "torch")  # read once, when Keras is imported
    keras = pytest.importorskip("keras", reason="needs keras: pip install keras, with KERAS_BACKEND=torch")
    if keras.backend.backend() != "torch":
        pytest.skip("needs KERAS_BACKEND=torch")
    generator = np.random.default_rng(0)
    layers = [keras.layers.Dense(n, activation=f, dtype="float64", name=f"{n}") for n, f in ((5, "tanh"), (4, "tanh"), (1, None))]
    model = keras.Sequential([keras.Input((6,), dtype="float64"), *layers], name="model")  # parameters are sorted by name
    model.set_weights([0.5 * generator.standard_normal(values.shape) for values in model.weights])
    return keras.optimizers.SGD, model


def new_plain_model():
    return peers.KerasSGD, with_variables(new_model())


@pytest.mark.parametrize("new", [new_plain_model, new_keras_model], ids=["written out", "installed"])
@pytest.mark.parametrize(
    ("argument", "our_name", "level"),
    [("global_clipnorm", "norm", 1.0), ("clipnorm", "layer_wise", 0.3), ("clipvalue", "value", 0.1)],
)
def test_keras_clipping_arguments(new, argument, our_name, level):
    def keras_steps(model):
        made = sgd(0.05, momentum=0.9, **{argument: level})

        def step():
            with torch.no_grad():
                made.apply([variable.value.grad for variable in model.trainable_weights], model.trainable_weights)

        return step

    sgd, model = new()
    start = weights_of(model)
    wanted = train(keras_steps, model)
    assert difference(train(ours(our_name, level, momentum=0.9), new()[1]), wanted, start) < (
        1e-10 if new is new_plain_model else 1e-5  # Keras makes float32 of the learning rate and the level
    )


# bitsandbytes.


@pytest.mark.parametrize("percentile", [1, 5, 50, 90, 99])
def test_percentile_clipping_is_layer_wise_auto_from_step_100_on(percentile):
    shapes, norms = [(3, 2), (4,)], [torch.zeros(100, dtype=torch.float64) for _ in range(2)]
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    clipper = GradientClipper(params, "layer_wise_auto", percentile / 99, clipping_window=100)
    generator, differed = torch.Generator().manual_seed(0), 0
    for step in range(1, 301):
        wanted = []
        for p, history in zip(params, norms, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).exp()
            wanted.append(p.grad * peers.percentile_scale(p.grad, history, step, percentile))
        clipper.step()
        same = all(torch.allclose(p.grad, g, rtol=1e-10, atol=0) for p, g in zip(params, wanted, strict=True))
        assert same or step < 100, f"step {step}"
        differed += not same
    assert differed > 0 or percentile == 99


# Pyro.


def test_pyros_clip_norm_is_no_norm():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 0.1])
    peers.PyroClippedAdam([weight], clip_norm=1.0).step()
    assert weight.grad.tolist() == pytest.approx([1.0, 0.1])


def test_pyro_is_what_is_written_out_here():
    module = pytest.importorskip("pyro.optim.clipped_adam", reason="needs pyro-ppl: pip install pyro-ppl")
    arguments = {"lr": 0.01, "clip_norm": 0.5, "lrd": 0.999}
    mine, installed = (
        train(lambda model, cls=cls: cls(model.parameters(), **arguments).step)
        for cls in (peers.PyroClippedAdam, module.ClippedAdam)
    )
    assert difference(mine, installed) < 1e-10
