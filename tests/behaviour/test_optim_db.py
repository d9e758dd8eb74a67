"""torch's own table of optimizer inputs (``optim_db``), every row of it through the clipped classes."""

import copy
import re
from itertools import cycle, product

import pytest
import torch
from support.cases import TYPES
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD

CLIPPED = {"SGD": ClippedSGD, "Adam": ClippedAdam, "AdamW": ClippedAdamW}
DTYPES = [torch.float32, torch.float64]
FLAGS = {
    "default": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False, "fused": False},
    "differentiable": {"differentiable": True, "foreach": False, "fused": False},
}
INFOS = {info.name: info for info in optim_db if info.name in CLIPPED}
ROWS = [(name, row) for name, info in INFOS.items() for row in info.optim_inputs_func("cpu")]
ERROR_ROWS = [(name, row) for name, info in INFOS.items() for row in info.optim_error_inputs_func("cpu", torch.float32)]
LEVEL = 1.5
STEPS = 6


def described(value):
    parts = value if isinstance(value, tuple) else (value,)
    return "-".join(str(getattr(getattr(part, "optimizer_error_input", part), "desc", part)) for part in parts)


def each_row_once(flags, *axes):
    """Each row of the table once, with the values of the product of these axes in turn."""
    return [((*row, flag), *values) for row, (*values, flag) in zip(ROWS, cycle(product(*axes, flags)), strict=False)]


def arguments_of(row, flags):
    return copy.deepcopy(row.kwargs) | FLAGS[flags]


def groups_of(params):
    """Two groups that differ in what torch optimizes with, and not in how they are clipped."""
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]


def start(problem, dtype, *, differentiable):
    params = problem.parameters(dtype)
    return [p.detach().clone().requires_grad_().clone() for p in params] if differentiable else params


def lengths_around_the_level(problem, step, dtype):
    """Gradients of which every other one is too long."""
    return problem.gradients(step, LEVEL * (0.5 if step % 2 else 4.0), dtype=dtype)


def states(optimizer):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [torch.as_tensor(v).detach() for p in params for _, v in sorted(optimizer.state[p].items()) if v is not None]


def run(problem, optimizer_class, row, flags, dtype, clip=None, **clipping):
    """Weights and states after every step."""
    params = start(problem, dtype, differentiable=flags == "differentiable")
    optimizer = optimizer_class(groups_of(params), **arguments_of(row, flags), **clipping)
    seen = []
    for step in range(STEPS):
        grads = lengths_around_the_level(problem, step, dtype)
        if step == 4 and flags != "differentiable":  # torch warns where a tensor that is no leaf has no gradient
            grads[1] = None
        problem.step(optimizer, grads if clip is None else clip(grads))
        seen += problem.copies(params) + problem.copies(states(optimizer))
    return seen


@pytest.mark.parametrize(("case", "dtype"), each_row_once(FLAGS, DTYPES), ids=described)
def test_type_none_equals_torch_bit_for_bit(problem, case, dtype):
    name, row, flags = case
    wanted = run(problem, INFOS[name].optim_cls, row, flags, dtype)
    got = run(problem, CLIPPED[name], row, flags, dtype, clipping_type="none")
    assert len(got) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("case", "dtype"),  # every row where the library chooses the kernel, which depends on the row
    each_row_once(["default"], DTYPES) + each_row_once(["fused"], DTYPES[::-1]) + each_row_once(["foreach", "loop"], DTYPES),
    ids=described,
)
def test_norm_equals_an_exact_clip_followed_by_torch(problem, case, dtype):
    name, row, flags = case

    def clip(grads):
        norm = problem.length([g for g in grads if g is not None])
        factor = min(1.0, LEVEL / norm)
        return [None if g is None else (g.double() * factor).to(dtype) for g in grads]

    exact = FLAGS["loop"] | ({} if flags == "default" else FLAGS[flags])  # by default the kernel is for the library to choose
    wanted = run(problem, INFOS[name].optim_cls, Exactly(row, exact), "default", dtype, clip)
    got = run(problem, CLIPPED[name], row, flags, dtype, clipping_level=LEVEL)
    tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(
    ("case", "clipping_type", "dtype"),
    [
        row
        for flags in (["default"], ["foreach", "loop"])
        for row in each_row_once(flags, ["norm", "layer_wise_auto"], [torch.bfloat16, torch.float16])
    ],
    ids=described,
)
def test_low_precision_weights_of_any_size_move_as_torchs_loop_moves_them(problem, case, clipping_type, dtype):
    """torch's fused SGD of 2.13 leaves entries of bfloat16 and float16 weights alone: pytorch/pytorch#191763."""
    name, row, flags = case
    shapes = ((40,), (3,), (16, 2), (17, 1))

    def run(optimizer_class, flags, **clipping):
        params = problem.parameters(dtype, shapes)
        options = arguments_of(row, flags) | {"lr": 0.05} | ({} if name == "SGD" else {"eps": 0.1})
        optimizer = optimizer_class(params, **options, **clipping)
        for step in range(3):
            problem.step(optimizer, problem.gradients(step, 20.0, dtype=dtype, shapes=shapes))
        return params

    level = 1.0 if clipping_type == "layer_wise_auto" else 100.0
    got = run(CLIPPED[name], flags, clipping_type=clipping_type, clipping_level=level)
    for p, wanted, start in zip(got, run(INFOS[name].optim_cls, "loop"), problem.parameters(dtype, shapes), strict=True):
        moved, expected = (p - start).double(), (wanted - start).double()
        torch.testing.assert_close(moved, expected, rtol=0.1, atol=6 * torch.finfo(dtype).eps)


class Exactly:
    """A row of the table with these flags."""

    def __init__(self, row, flags):
        self.kwargs = row.kwargs | flags


@pytest.mark.parametrize(
    ("case", "clipping_type"),
    each_row_once(["default", "fused", "loop"], ["layer_wise", "auto"]),
    ids=described,
)
def test_short_gradients_of_other_types_equal_torch(problem, case, clipping_type):
    name, row, flags = case
    level = {"layer_wise": 1e9, "auto": 1.0}[clipping_type]
    kernels = "fused" if flags == "default" else flags
    wanted = run(problem, INFOS[name].optim_cls, row, kernels, torch.float32)
    got = run(problem, CLIPPED[name], row, flags, torch.float32, clipping_type=clipping_type, clipping_level=level)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("case", "clipping_type"), each_row_once(["differentiable"], TYPES), ids=described)
def test_differentiable_is_refused_by_every_clipping_type(problem, case, clipping_type):
    name, row, flags = case
    params = start(problem, torch.float32, differentiable=True)
    with pytest.raises(ValueError, match="differentiable"):
        CLIPPED[name](params, **arguments_of(row, flags), clipping_type=clipping_type)


def error_of(make):
    with pytest.raises((Exception, Warning)) as raised:
        make()
    return raised.type, str(raised.value)


@pytest.mark.parametrize(
    ("case", "clipping_type"), [*zip(ERROR_ROWS, cycle(["none", "norm", "layer_wise_auto"]), strict=False)], ids=described
)
def test_errors_of_construction_are_torchs(case, clipping_type):
    name, error = case
    row = error.optimizer_error_input
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR

    def make(optimizer_class, **clipping):
        params = [torch.nn.Parameter(torch.ones(1, 1))] if row.params is None else copy.copy(row.params)
        if isinstance(params, list) and isinstance(params[0], dict):
            params = [dict(group) for group in params]
        return optimizer_class(params, **row.kwargs, **clipping)

    error_type, message = error_of(lambda: make(INFOS[name].optim_cls))
    assert error_type is error.error_type
    assert re.search(error.error_regex, message)
    assert error_of(lambda: make(CLIPPED[name], clipping_type=clipping_type)) == (error_type, message)
