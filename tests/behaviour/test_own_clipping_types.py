"""Clipping types of one's own, registered by register_clipping."""

import itertools

import pytest
import torch
from support.assertions import equal
from support.cases import gradients_of, saved_and_loaded
from support.ways import mixed, step_by_hand, with_gradients

import torch_clipped
from torch_clipped import (
    Always,
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


def test_error_about_a_name_of_ones_own_says_how_to_replace_it(table):
    register_clipping("mine", Clipping("global", Constant(1.0)))
    with pytest.raises(ValueError, match=r"'mine' already; to replace it, first run (\S+)$") as error:
        register_clipping("mine", Clipping("global", Constant(2.0)))
    exec(str(error.value).rpartition("first run ")[2], {"torch_clipped": torch_clipped})
    register_clipping("mine", Clipping("global", Constant(2.0)))
    assert table["mine"].threshold == Constant(2.0)


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
