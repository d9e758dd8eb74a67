"""Bad input by the thousand: what no arguments, edits, shapes, types and gradients may bring about."""

import copy
import io
import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.cases import FLAGS, TYPES, parameters_of

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, ClippingWarning

OPTIMIZERS = {
    "sgd": lambda params, **options: ClippedSGD(params, lr=1e-3, momentum=0.9, **options),
    "plain sgd": lambda params, **options: ClippedSGD(params, lr=1e-3, **options),
    "adam": lambda params, **options: ClippedAdam(params, lr=1e-3, eps=1e-3, **options),
    "adamw": lambda params, **options: ClippedAdamW(params, lr=1e-3, eps=1e-3, **options),
}
ARGUMENTS = ("clipping_type", "clipping_level", "clipping_beta", "clipping_window", "norm_type", "nonfinite", "clipping_seed")
# Gradients stay below what torch's own arithmetic holds when nothing clips: g**2 of Adam, sums of momentum.
LARGEST = {torch.float16: 1e2, torch.bfloat16: 1e12, torch.float32: 1e12, torch.float64: 1e100}
SHAPES = [(), (0,), (1,), (3,), (2, 3), (3, 1, 2), (1, 0, 2), (17,), (4, 5), (2, 2, 2, 2)]


def fuzzed(examples):
    return settings(derandomize=True, deadline=None, max_examples=examples, database=None, suppress_health_check=[*HealthCheck])


levels = st.floats(1e-4, 1.0)
good_arguments = st.fixed_dictionaries(
    {},
    optional={
        "clipping_type": st.sampled_from(TYPES),
        "clipping_level": st.one_of(st.none(), levels),
        "clipping_beta": st.floats(0.01, 0.99),
        "clipping_window": st.integers(2, 9),
        "norm_type": st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf]),
        "nonfinite": st.sampled_from(["skip", "error", "zero"]),
        "clipping_seed": st.integers(0, 2**40),
    },
)
nonsense = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.complex_numbers(),
    st.just([1.0]),
    st.just({}),
    st.just(object()),
    st.builds(torch.tensor, st.floats(-2, 2)),
    st.just(torch.ones(2)),
    st.just(b"norm"),
    st.sampled_from([*TYPES, "none", "skip", "zero", "inf"]),
)
any_arguments = st.fixed_dictionaries({}, optional=dict.fromkeys(ARGUMENTS, nonsense))


class Entries:
    """Gradients of one step: of what size, where there are none, zeros, a spike, and something that is not finite."""

    def __init__(self, seed, exponent, kinds, bad):
        self.seed, self.exponent, self.kinds, self.bad = seed, exponent, kinds, bad

    def __repr__(self):
        return f"Entries({self.seed}, {self.exponent}, {self.kinds}, {self.bad})"

    def put(self, params, factor=1.0):
        generator = torch.Generator().manual_seed(self.seed)
        for i, p in enumerate(params):
            kind = self.kinds[i % len(self.kinds)]
            if kind == "none":
                p.grad = None
                continue
            size = min(10.0**self.exponent, factor * LARGEST[p.dtype] / 100)
            size = {"zeros": 0.0, "spike": factor * LARGEST[p.dtype] / 10}.get(kind, size)
            grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * size).to(p.dtype)
            if self.bad is not None and i == self.bad[0] % len(params) and grad.numel():
                grad.view(-1)[self.bad[1] % grad.numel()] = self.bad[2]
            if kind == "transposed" and grad.dim() > 1:
                grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
            p.grad = grad


kinds = st.lists(st.sampled_from(["usual", "usual", "transposed", "none", "zeros", "spike"]), min_size=1, max_size=4)
bad_entries = st.one_of(
    st.none(), st.tuples(st.integers(0, 9), st.integers(0, 99), st.sampled_from([math.nan, math.inf, -math.inf]))
)
entries = st.builds(Entries, st.integers(0, 2**32 - 1), st.integers(-30, 10), kinds, bad_entries)
shapes = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4)
dtypes = st.lists(st.sampled_from(list(LARGEST)), min_size=1, max_size=3)
actions = st.lists(
    st.one_of(
        entries,
        entries,
        st.tuples(st.just("edit"), st.integers(0, 3), good_arguments),
        st.tuples(st.just("add"), st.sampled_from(SHAPES), good_arguments),
        st.tuples(st.just("reload"), st.booleans()),
    ),
    min_size=3,
    max_size=10,
)


def parameters(shapes, dtypes):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter(v.to(dtypes[i % len(dtypes)])) for i, v in enumerate(values)]


def reloaded(optimizer, by_file):
    if not by_file:
        return copy.deepcopy(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = copy.deepcopy([group["params"] for group in optimizer.param_groups])
    fresh = type(optimizer)([{"params": members} for members in params])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the checkpoint has brought", ClippingWarning)
        fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def check(optimizer):
    """What holds after every step."""
    for stats in [optimizer.clipping_stats(), *optimizer.clipping_stats(per_set=True)]:
        assert 0 <= stats["clipped_steps"] <= stats["steps"]
        assert stats["skipped_steps"] >= 0
        assert math.isnan(stats["clip_rate"]) if stats["steps"] == 0 else 0 <= stats["clip_rate"] <= 1
        assert all(stats[key] == int(stats[key]) for key in ("steps", "clipped_steps", "skipped_steps"))
        if not math.isnan(stats["grad_norm"]) and not math.isnan(stats["clipped_norm"]):
            assert 0 <= stats["clipped_norm"] <= stats["grad_norm"] * (1 + 1e-9)
    norms = optimizer.grad_norms()
    assert norms.ndim == 1
    assert len(norms) <= optimizer.param_groups[0]["clipping_window"]
    assert (norms > 0).all()
    assert norms.isfinite().all()


@fuzzed(500)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    flags=st.sampled_from(list(FLAGS)),
    shapes=shapes,
    dtypes=dtypes,
    arguments=good_arguments,
    actions=actions,
)
def test_weights_stay_finite_whatever_happens_between_and_in_steps(name, flags, shapes, dtypes, arguments, actions):
    optimizer = OPTIMIZERS[name](parameters(shapes, dtypes), **FLAGS[flags], **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClippingWarning)
        for action in actions:
            if isinstance(action, Entries):
                params = parameters_of(optimizer)
                action.put(params)
                expected = any(p.grad is not None and not p.grad.isfinite().all() for p in params)
                before = optimizer.clipping_stats()
                try:
                    optimizer.step()
                except RuntimeError as error:
                    if "parameter group" not in str(error) or not expected:
                        raise
                after = optimizer.clipping_stats()
                done = [after[key] - before[key] for key in ("steps", "skipped_steps")]
                assert done in ([1, 0], [0, 1], [0, 0])
                assert expected or done[1] == 0
            elif action[0] == "edit":
                level = {"clipping_level": None} if "clipping_type" in action[2] else {}  # another type needs another level
                optimizer.param_groups[action[1] % len(optimizer.param_groups)].update(level | action[2])
            elif action[0] == "add":
                optimizer.add_param_group({"params": parameters([action[1]], dtypes), **action[2]})
            else:
                optimizer = reloaded(optimizer, action[1])
            check(optimizer)
            assert all(p.isfinite().all() for p in parameters_of(optimizer))


@fuzzed(600)
@given(name=st.sampled_from(list(OPTIMIZERS)), arguments=any_arguments)
def test_constructor_takes_an_argument_or_names_it(name, arguments):
    params = parameters([(2, 3), (3,)], [torch.float32])
    optimizer, refusal = None, ""
    try:
        optimizer = OPTIMIZERS[name](params, **arguments)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if optimizer is None:
        assert any(argument in refusal for argument in arguments)
        return
    Entries(0, 1, ["usual"], None).put(params)
    optimizer.step()
    check(optimizer)
    assert all(p.isfinite().all() for p in params)


@fuzzed(400)
@given(arguments=any_arguments, group=st.integers(0, 1))
def test_edited_group_is_taken_or_the_argument_is_named_before_anything_changed(arguments, group):
    params = parameters([(2, 3), (3,)], [torch.float32])
    optimizer = ClippedSGD([{"params": params[:1]}, {"params": params[1:]}], lr=1e-3, momentum=0.9, clipping_window=4)
    Entries(0, 1, ["usual"], None).put(params)
    optimizer.step()
    optimizer.param_groups[group].update(arguments)
    Entries(1, 1, ["usual"], None).put(params)
    before = [p.detach().clone() for p in params], [p.grad.clone() for p in params]
    refusal = ""
    try:
        optimizer.step()
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if refusal:
        assert any(argument in refusal for argument in arguments)
        assert all(torch.equal(p, b) for p, b in zip(params, before[0], strict=True))
        assert all(torch.equal(p.grad, b) for p, b in zip(params, before[1], strict=True))
        return
    check(optimizer)
    assert all(p.isfinite().all() for p in params)


@fuzzed(300)
@given(arguments=any_arguments)
def test_added_group_is_taken_or_refused_whole(arguments):
    optimizer = ClippedSGD(parameters([(2, 3)], [torch.float32]), lr=1e-3)
    added = parameters([(3,)], [torch.float32])
    refusal = ""
    try:
        optimizer.add_param_group({"params": added, **arguments})
    except (ValueError, TypeError) as error:
        refusal = str(error)
    assert len(optimizer.param_groups) == (1 if refusal else 2)
    assert not refusal or any(argument in refusal for argument in arguments)
    Entries(0, 1, ["usual"], None).put(parameters_of(optimizer))
    optimizer.step()
    check(optimizer)


@fuzzed(300)
@given(
    shapes=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    clipping_type=st.sampled_from(["norm", "layer_wise", "coord_wise", "adaptive"]),
    level=st.floats(1e-2, 1e2),
    flags=st.sampled_from(["chosen", "foreach", "loop"]),
    steps=st.lists(entries, min_size=1, max_size=4),
)
def test_clipped_gradient_is_no_longer_than_its_threshold(shapes, dtype, clipping_type, level, flags, steps):
    params = parameters(shapes, [dtype])
    options = {"clipping_type": clipping_type, "clipping_level": level, "nonfinite": "zero"} | FLAGS[flags]
    optimizer = ClippedSGD(params, lr=1e-3, **options)
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
    tiny = 32 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # a few of the smallest numbers there are

    def norms(p, of):
        blocks = of.detach().double()
        return blocks.flatten(1).norm(dim=1) if p.dim() > 1 and p.numel() else blocks.flatten()[None].norm(dim=1)

    for step in steps:
        step.put(params, factor=100.0)
        bounds = [level * norms(p, p).clamp(min=1e-3) for p in params]
        optimizer.step()
        grads = [p.grad.double().flatten() for p in params if p.grad is not None] or [torch.zeros(1)]
        assert all(g.isfinite().all() for g in grads)
        slack = level * tolerance + tiny
        if clipping_type == "norm":
            assert torch.cat(grads).norm() <= level + slack
        elif clipping_type == "layer_wise":
            assert all(g.norm() <= level + slack for g in grads)
        elif clipping_type == "coord_wise":
            assert all((g.abs() <= level + slack).all() for g in grads)
        else:
            for p, bound in zip(params, bounds, strict=True):
                if p.grad is not None and p.numel():
                    assert (norms(p, p.grad) <= bound * (1 + tolerance) + tiny).all()


@fuzzed(200)
@given(
    clipping_type=st.sampled_from(TYPES),
    arguments=good_arguments,
    steps=st.lists(entries, min_size=4, max_size=14),
    at=st.integers(1, 12),
    by_file=st.booleans(),
)
def test_interrupted_run_is_the_unbroken_one(clipping_type, arguments, steps, at, by_file):
    def run(*, interrupted):
        params = parameters([(2, 3), (3,), ()], [torch.float32, torch.float64])
        optimizer = ClippedSGD(
            params, lr=1e-3, momentum=0.9, **(arguments | {"clipping_type": clipping_type, "nonfinite": "zero"})
        )
        for number, step in enumerate(steps):
            if interrupted and number == at:
                optimizer = reloaded(optimizer, by_file)
            step.put(parameters_of(optimizer))
            optimizer.step()
        return optimizer

    assume(at < len(steps))
    wanted, got = run(interrupted=False), run(interrupted=True)
    for a, b in zip(parameters_of(got), parameters_of(wanted), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(got.grad_norms(), wanted.grad_norms())
    assert got.clipping_stats() == pytest.approx(wanted.clipping_stats(), rel=0, abs=0, nan_ok=True)
