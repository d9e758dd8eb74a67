"""Learning rate schedulers of torch drive a clipped optimizer as they drive a plain one."""

import copy
import inspect

import pytest
from support.assertions import assert_close, equal
from support.cases import pairwise
from support.loops import CLASSES
from torch.optim import lr_scheduler, swa_utils

from torch_clipped import ClippedSGD, clip_optimizer

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 4),
}


def test_table_of_schedulers_is_torchs():
    classes = {name for name, c in vars(lr_scheduler).items() if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)}
    assert classes - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys() - {"SWALR"}


@pairwise(name=["SGD", "AdamW"], scheduler=SCHEDULERS, attached=["class", "before clip_optimizer", "after clip_optimizer"])
def test_scheduler_drives_the_clipped_optimizer_as_the_plain_one(problem, name, scheduler, attached):
    clipped_class, plain_class, options = CLASSES[name]

    def run(params, clips):
        if clips and attached == "class":
            optimizer = clipped_class(params, **options, clipping_level=1e9)
        else:
            optimizer = plain_class(params, **options)
        if clips and attached == "after clip_optimizer":
            clip_optimizer(optimizer, "norm", 1e9)
        driver = SCHEDULERS[scheduler](optimizer)
        if clips and attached == "before clip_optimizer":
            clip_optimizer(optimizer, "norm", 1e9)
        driven = []
        for step in range(8):
            problem.step(optimizer, problem.gradients(step))
            if scheduler == "ReduceLROnPlateau":
                driver.step(1.0)
            else:
                driver.step()
            group = optimizer.param_groups[0]
            driven.append((float(group["lr"]), group.get("momentum"), group.get("betas")))
        if clips:
            assert optimizer.clipping_stats()["steps"] == 8
        return driven

    params, plain_params = problem.parameters(), problem.parameters()
    driven = run(params, True)
    assert driven == run(plain_params, False)
    assert len({lr for lr, *_ in driven}) > 1
    assert_close(params, plain_params, 1e-5)


@pytest.mark.parametrize("scheduler", ["StepLR", "CyclicLR", "OneCycleLR", "SequentialLR", "ReduceLROnPlateau", "SWALR"])
def test_scheduler_and_optimizer_are_resumed_together(problem, scheduler):
    def new():
        params = problem.parameters()
        optimizer = ClippedSGD(params, lr=0.05, momentum=0.9, clipping_type="auto", clipping_level=0.5)
        return params, optimizer, SCHEDULERS[scheduler](optimizer)

    def go(optimizer, driver, steps):
        for step in steps:
            problem.step(optimizer, problem.gradients(step))
            driver.step(*[1.0] * (scheduler == "ReduceLROnPlateau"))

    params, optimizer, driver = new()
    go(optimizer, driver, range(4))
    other_params, other, other_driver = new()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch's loading shares the tensors it is given
    other_driver.load_state_dict(driver.state_dict())
    for p, q in zip(other_params, params, strict=True):
        p.data.copy_(q.data)
    go(optimizer, driver, range(4, 8))
    go(other, other_driver, range(4, 8))
    assert equal(params, other_params)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
