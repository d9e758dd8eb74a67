"""Parameter groups that are added, taken out, merged, split or edited between steps: what is remembered, and what is told."""

import copy
import math
import pickle
from collections import defaultdict

import pytest
import torch
from support.cases import pairwise
from torch import nn

from torch_clipped import ClippedAdamW, ClippedSGD, ClippingWarning, LevelScheduler, linear_warmup


def parameter(norm, size=4):
    """A parameter with a gradient of this norm."""
    p = nn.Parameter(torch.zeros(size))
    p.grad = torch.full((size,), norm / size**0.5)
    return p


def step(optimizer, times=1):
    """Steps that all start from the gradients that stand there now."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad.clone() for p in params]
    for _ in range(times):
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()


def test_added_group_starts_the_history_of_its_clip_set_anew():
    optimizer = ClippedSGD([parameter(1.0)], lr=0.1, clipping_type="zclip")
    step(optimizer, 150)
    optimizer.add_param_group({"params": [parameter(100.0)]})
    optimizer.param_groups[0]["params"][0].grad = parameter(1.0).grad
    step(optimizer, 150)
    stats = optimizer.clipping_stats()
    assert stats["coefficient"] == 1
    assert stats["clipped_steps"] == 0
    assert stats["steps"] == 300


@pytest.mark.parametrize("clipping_type", ["auto", "zscore", "zclip", "linear_rand_auto"])
def test_merged_clip_sets_start_anew(clipping_type):
    groups = [{"params": [parameter(1.0)]}, {"params": [parameter(50.0)], "clipping_window": 900}]
    optimizer = ClippedSGD(groups, lr=0.1, clipping_type=clipping_type)
    step(optimizer, 40)
    optimizer.param_groups[1]["clipping_window"] = 1000
    merged = ClippedSGD([parameter(1.0), parameter(50.0)], lr=0.1, clipping_type=clipping_type)
    for p, norm in zip([p for g in optimizer.param_groups for p in g["params"]], (1.0, 50.0), strict=True):
        p.grad = parameter(norm).grad
    for one in (optimizer, merged):
        step(one)
    assert optimizer.clipping_stats()["threshold"] == merged.clipping_stats()["threshold"]
    assert optimizer.clipping_stats()["steps"] == 41


@pytest.mark.parametrize("clipping_type", ["auto", "zscore", "zclip"])
def test_split_clip_sets_start_anew(clipping_type):
    optimizer = ClippedSGD([{"params": [parameter(30.0)]}, {"params": [parameter(40.0)]}], lr=0.1, clipping_type=clipping_type)
    step(optimizer, 40)
    optimizer.param_groups[1]["clipping_window"] = 900
    for group, norm in zip(optimizer.param_groups, (3.0, 4.0), strict=True):
        group["params"][0].grad = parameter(norm).grad
    step(optimizer)
    first, second = optimizer.clipping_stats(per_set=True)
    expected = {"auto": (3.0, 4.0)}.get(clipping_type, (math.inf, math.inf))
    assert (first["threshold"], second["threshold"]) == pytest.approx(expected)


def test_layer_wise_history_survives_what_happens_to_other_groups():
    optimizer = ClippedSGD([{"params": [parameter(1.0)]}, {"params": [parameter(2.0)]}], lr=0.1, clipping_type="layer_wise_auto")
    step(optimizer, 10)
    optimizer.add_param_group({"params": [parameter(3.0)]})
    del optimizer.param_groups[0]
    assert optimizer.param_groups[0]["clipping_memory_count"].tolist() == [10]
    step(optimizer)
    assert [group["clipping_memory_count"].tolist() for group in optimizer.param_groups] == [[11], [1]]


@pytest.mark.parametrize("clipping_type", ["norm", "auto", "layer_wise_auto"])
def test_counts_and_norms_stay_when_the_first_group_is_taken_out(clipping_type):
    optimizer = ClippedSGD([{"params": [parameter(3.0)]}, {"params": [parameter(4.0)]}], lr=0.1, clipping_type=clipping_type)
    step(optimizer, 10)
    before = optimizer.clipping_stats(), optimizer.grad_norms()
    optimizer.param_groups.pop(0)
    assert optimizer.clipping_stats() == before[0]
    assert torch.equal(optimizer.grad_norms(), before[1])
    step(optimizer)
    assert optimizer.clipping_stats()["steps"] == 11
    assert optimizer.grad_norms()[-2].item() == pytest.approx(5.0)


def test_random_draws_go_on_when_the_first_group_is_taken_out():
    def run(pop):
        groups = [{"params": [parameter(0.0)]}, {"params": [parameter(2.0)]}]
        optimizer = ClippedSGD(groups, lr=0.1, clipping_type="linear_rand_norm")
        seen = []
        for i in range(60):
            if pop and i == 30:
                optimizer.param_groups.pop(0)
            optimizer.param_groups[-1]["params"][0].grad = parameter(2.0).grad
            optimizer.step()
            seen.append(optimizer.clipping_stats()["coefficient"])
        return seen

    assert run(pop=True) == run(pop=False)


def test_groups_in_another_order_keep_their_history():
    optimizer = ClippedSGD([{"params": [parameter(3.0)]}, {"params": [parameter(4.0)]}], lr=0.1, clipping_type="auto")
    step(optimizer, 10)
    optimizer.param_groups.reverse()
    assert optimizer.clipping_stats()["steps"] == 10
    step(optimizer)
    assert optimizer.param_groups[0]["clipping_memory_count"].tolist() == [11]
    assert optimizer.clipping_stats()["steps"] == len(optimizer.grad_norms()) == 11


def test_norms_of_another_kind_are_another_history():
    optimizer = ClippedSGD([parameter(4.0)], lr=0.1, clipping_type="auto")
    step(optimizer, 10)
    optimizer.param_groups[0]["norm_type"] = math.inf
    optimizer.param_groups[0]["params"][0].grad = parameter(4.0).grad
    step(optimizer)
    assert optimizer.clipping_stats()["threshold"] == pytest.approx(2.0)


def test_zclip_and_adagc_do_not_take_over_averages_of_each_other():
    for former, now in (("adagc", "zclip"), ("zclip", "adagc")):
        optimizer = ClippedSGD([parameter(1.0)], lr=0.1, clipping_type=former)
        step(optimizer, 110)
        optimizer.param_groups[0].update(clipping_type=now, clipping_level=None)
        optimizer.param_groups[0]["params"][0].grad = parameter(5.0).grad
        step(optimizer)
        assert optimizer.clipping_stats()["coefficient"] == 1


EDITS = {
    "norm of another kind": lambda groups: [group.update(norm_type=math.inf) for group in groups],
    "split": lambda groups: groups[1].update(clipping_window=900),
    "group taken out": lambda groups: groups.pop(0),
    "groups in another order": lambda groups: groups.reverse(),
    "window made shorter": lambda groups: [group.update(clipping_window=3) for group in groups],
}
SAVES = {
    "state_dict": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()) or optimizer,
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@pairwise(clipping_type=["auto", "layer_wise_auto", "zclip"], edit=EDITS, save=SAVES)
def test_groups_that_are_edited_and_saved_before_a_step_go_on_as_without_saving(clipping_type, edit, save):
    def run(save):
        params = [parameter(norm, size) for norm, size in ((3.0, 2), (4.0, 5), (5.0, 3))]
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        optimizer = ClippedSGD(groups, lr=0.1, clipping_type=clipping_type)
        step(optimizer, 10)
        EDITS[edit](optimizer.param_groups)
        optimizer = save(optimizer)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = parameter(len(p), len(p)).grad
        step(optimizer, 3)
        return optimizer.clipping_stats(), optimizer.clipping_stats(per_set=True), optimizer.grad_norms().tolist()

    wanted = run(lambda optimizer: optimizer)
    assert run(SAVES[save]) == wanted
    assert wanted[0]["steps"] == 13


def test_state_of_groups_with_a_wrong_argument_can_still_be_saved():
    optimizer = ClippedSGD([parameter(3.0)], lr=0.1, clipping_type="auto")
    step(optimizer, 4)
    optimizer.param_groups[0]["clipping_level"] = -1
    with pytest.raises(ValueError, match="clipping_level"):
        optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["clipping_memory_steps"].tolist() == [4, 0, 0]


def test_clip_sets_keep_their_counts_when_groups_change_places():
    groups = [{"params": [parameter(3.0)]}, {"params": [parameter(4.0)], "clipping_level": 9.0}, {"params": [parameter(5.0)]}]
    optimizer = ClippedSGD(groups, lr=0.1)
    step(optimizer, 10)
    optimizer.param_groups.reverse()
    for group in optimizer.param_groups:
        group["params"][0].grad = parameter(5.0).grad
    step(optimizer)
    first, second = optimizer.clipping_stats(per_set=True)
    assert (first["steps"], second["steps"]) == (11, 11)
    assert (first["clipped_steps"], second["clipped_steps"]) == (11, 0)


def test_added_group_brings_no_state_of_another_optimizer():
    one = ClippedSGD([parameter(3.0)], lr=0.1, clipping_type="layer_wise_auto")
    step(one, 5)
    other = ClippedSGD([parameter(4.0)], lr=0.1, clipping_type="layer_wise_auto")
    other.add_param_group(dict(one.param_groups[0]))
    for p in one.param_groups[0]["params"]:
        p.grad = parameter(3.0).grad
    step(other)
    assert other.param_groups[1]["clipping_memory_count"].tolist() == [1]
    assert one.clipping_stats()["steps"] == 5


def test_step_without_groups_does_nothing():
    for make in (ClippedSGD, ClippedAdamW):
        optimizer = make([parameter(3.0)], lr=0.1)
        step(optimizer, 3)
        optimizer.param_groups.clear()
        assert optimizer.step() is None
        assert optimizer.step(lambda: 5.0) == 5.0
        assert optimizer.clipping_stats()["steps"] == 3
        optimizer.add_param_group({"params": [parameter(4.0)]})
        step(optimizer)
        assert optimizer.clipping_stats()["steps"] == 4


def test_state_without_groups_resets_the_state_as_torch_does():
    optimizer = ClippedSGD([parameter(3.0)], lr=0.1, momentum=0.9, clipping_type="auto")
    step(optimizer, 3)
    optimizer.__setstate__({"state": defaultdict(dict)})
    assert not optimizer.state
    optimizer.param_groups[0]["params"][0].grad = parameter(3.0).grad
    step(optimizer)
    assert optimizer.clipping_stats()["steps"] == 4


@pytest.mark.parametrize(
    ("former", "now", "level"), [("norm", "auto", 1.0), ("auto", "norm", 0.9), ("zscore", "layer_wise", 1.0)]
)
def test_level_that_was_kept_for_another_type_is_told_once(former, now, level):
    optimizer = ClippedSGD([parameter(3.0)], lr=0.1, clipping_type=former, clipping_level=level)
    optimizer.param_groups[0]["clipping_type"] = now
    with pytest.warns(ClippingWarning, match=f"from {former!r} to {now!r}, and its clipping_level {level} was kept"):
        step(optimizer)
    step(optimizer)
    optimizer.param_groups[0].update(clipping_type="zscore", clipping_level=3.0)
    step(optimizer)


def test_type_whose_level_means_the_same_is_changed_without_a_word():
    optimizer = ClippedSGD([parameter(3.0)], lr=0.1, clipping_type="norm")
    for name in ("linear_rand_norm", "layer_wise", "none", "norm"):
        if name == "none":
            optimizer.param_groups[0]["clipping_level"] = None
        optimizer.param_groups[0]["clipping_type"] = name
        step(optimizer)


def test_checkpoint_that_brings_another_type_or_level_is_told():
    theirs = ClippedAdamW([parameter(3.0)], clipping_type="norm", clipping_level=1.0)
    ours = ClippedAdamW([parameter(3.0)], clipping_type="auto", clipping_level=0.9)
    with pytest.warns(ClippingWarning, match=r"clipping_type of parameter group 0 was 'auto' and is 'norm'.*0\.9 and is 1\.0"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["clipping_type"] == "norm"
    assert ours.param_groups[0]["clipping_level"] == 1.0
    ours.load_state_dict(theirs.state_dict())
    ours.load_state_dict(torch.optim.AdamW([parameter(3.0)]).state_dict())


def test_checkpoint_of_a_scheduled_level_is_loaded_without_a_word():
    def make():
        optimizer = ClippedSGD([parameter(3.0)], lr=0.1)
        return optimizer, LevelScheduler(optimizer, linear_warmup(1.0, 2.0, steps=4))

    optimizer, scheduler = make()
    step(optimizer)
    scheduler.step()
    resumed, _ = make()
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["clipping_level"] == 1.25


def test_a_row_that_becomes_several_is_clipped_row_by_row():
    weight = torch.nn.Parameter(torch.ones(1, 3))
    optimizer = ClippedSGD([weight], clipping_type="adaptive")
    weight.grad = torch.ones(1, 3)
    optimizer.step()
    weight.data, weight.grad = torch.ones(2, 3), None
    weight.grad = torch.tensor([[1e-3] * 3, [30.0] * 3])
    optimizer.step()
    torch.testing.assert_close(weight.grad, torch.tensor([[1e-3] * 3, [1e-2] * 3]))


def test_warning_of_a_kept_level_names_the_former_type_of_that_group():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": params[:1], "clipping_type": "auto"}, {"params": params[1:], "clipping_type": "norm"}]
    optimizer = ClippedSGD(groups)
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[1]["clipping_type"] = "zscore"
    with pytest.warns(ClippingWarning, match="clipping_type of parameter group 1 was changed from 'norm' to 'zscore'"):
        optimizer.step()
