"""Checkpoints of sharded models: the run goes on from them, on as many ranks or on others."""

import copy
import math
import re
import warnings

import programs
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.versions import needs_torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_clipped import ClippedAdamW, ClippedSGD
from torch_clipped._engine.arguments import ARGUMENT_NAMES
from torch_clipped.clipping import CLIPPING_TYPES

pytestmark = needs_torch("2.9", "FSDP2 on the CPU")

TYPES = [*CLIPPING_TYPES]
SAVED = {("adamw", "adagc"): (60, 103), ("sgd without momentum", "zclip"): (20, 40)}  # within the warm-up, until after it
OPTIMIZERS = {
    "sgd": lambda groups, **clipping: ClippedSGD(groups, lr=0.05, momentum=0.9, **clipping),
    "sgd without momentum": lambda groups, **clipping: ClippedSGD(groups, lr=0.05, **clipping),
    "adamw": lambda groups, **clipping: ClippedAdamW(groups, lr=0.05, **clipping),
}
ALL = [(name, clipping_type) for name in OPTIMIZERS for clipping_type in TYPES]
EACH_ONCE = [([*OPTIMIZERS][i % 3], clipping_type) for i, clipping_type in enumerate(TYPES)]
PLAIN = {
    "plain adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05),
    "plain sgd": lambda groups: torch.optim.SGD(groups, lr=0.05),
}


class Run:
    """A tiny model, sharded where there are ranks, whose gradients are half its weights and heavy-tailed noise."""

    def __init__(self, name, clipping_type, seed=1):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))  # on four ranks some shards are empty
        if dist.is_initialized():
            fully_shard(self.model, mesh=programs.mesh(dist.get_world_size()))
        params = list(self.model.parameters())
        groups = [{"params": params[:1]}, {"params": params[1:3], "lr": 0.02}, {"params": params[3:]}]
        if name == "adamw":  # three clip sets, one of another type
            groups[1] |= {"clipping_window": 5}
            groups[2] |= {"clipping_type": "norm", "clipping_level": 2.0, "nonfinite": "zero"}
        self.at, self.end = SAVED.get((name, clipping_type), (8, 14))  # the steps after which it is saved, and ends
        if name in PLAIN:
            self.optimizer = PLAIN[name](groups)
        else:
            self.optimizer = OPTIMIZERS[name](groups, clipping_type=clipping_type, clipping_window=6, clipping_beta=0.7)

    @torch.no_grad()
    def steps(self, first, last):
        """Take these steps, every seventh of which has a gradient that is not finite; what each of them did."""
        did = []
        for number in range(first, last):
            generator = torch.Generator().manual_seed(number)
            factor = math.exp(1.5 * torch.randn((), generator=generator).item())
            for i, p in enumerate(self.model.parameters()):
                noise = factor * torch.randn(p.shape, generator=generator)
                if i == 0 and number % 7 == 5 and self.optimizer.param_groups[0].get("clipping_type", "none") != "none":
                    noise[4, 2] = math.nan
                p.grad = spread(noise, p)
                local(p.grad).add_(local(p), alpha=0.5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.optimizer.step()
            did.append(self.optimizer.clipping_stats(per_set=True) if hasattr(self.optimizer, "clipping_stats") else None)
            self.optimizer.zero_grad()
        return did

    def history(self):
        """All that clipping remembers, by name."""
        stats = self.optimizer.clipping_stats()  # writes the values of the last step to where they stand
        remembered = {
            f"{i} {key}": value.clone()
            for i, group in enumerate(self.optimizer.param_groups)
            for key, value in group.items()
            if key.startswith("clipping_memory_")
        }
        return remembered | {"norms": self.optimizer.grad_norms(), "stats": stats}

    def weights(self):
        return [whole(p.detach()).clone() for p in self.model.parameters()]

    def state_dict(self, **options):
        chosen = StateDictOptions(**options)
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=chosen)
        return {"model": get_model_state_dict(self.model, options=chosen), "optimizer": optimizer}

    def load_state_dict(self, state, **options):
        chosen = StateDictOptions(**options)
        set_model_state_dict(self.model, state["model"], options=chosen)
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=chosen)


def spread(tensor, like):
    """The tensor, of which each rank has all, sharded by rows as another one."""
    if not isinstance(like, DTensor):
        return tensor
    parts = tensor.chunk(dist.get_world_size())
    own = parts[dist.get_rank()] if dist.get_rank() < len(parts) else tensor[:0]
    return DTensor.from_local(own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save(runs, folder, **options):
    quietly(dcp.save, {key: run.state_dict(**options) for key, run in runs.items()}, checkpoint_id=folder)


def load(runs, folder, planner=None, **options):
    state = {key: run.state_dict(**options) for key, run in runs.items()}
    quietly(dcp.load, state, checkpoint_id=folder, planner=planner)
    for key, run in runs.items():
        run.load_state_dict(state[key], **options)


def quietly(function, *arguments, **keywords):
    """Torch tells a single process that it has no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        return function(*arguments, **keywords)


def made(combinations, seed=1):
    return {" ".join(combination): Run(*combination, seed=seed) for combination in combinations}


def gone_on(runs):
    """What each did until its end, and how it stands there."""
    return {key: (run.steps(run.at, run.end), run.history(), run.weights()) for key, run in runs.items()}


def histories(runs):
    return {key: run.history() for key, run in runs.items()}


def saved_runs(combinations, folder):
    """Run each to its end, and save all together on the way; the histories when saved, and how each went on."""
    runs = made(combinations)
    for run in runs.values():
        run.steps(0, run.at)
    before = histories(runs)
    save(runs, folder)
    return before, gone_on(runs)


def resumed_runs(combinations, folder):
    """Load what was saved into fresh models and optimizers; the histories then, and how each went on."""
    runs = made(combinations, seed=2)
    load(runs, folder)
    return histories(runs), gone_on(runs)


def assert_same(got, wanted, rtol=0.0, atol=0.0):
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, equal_nan=True)


# As many ranks, more, fewer.


@pytest.fixture(scope="module")
def on_two(two, tmp_path_factory):
    """The folder that two ranks saved, the histories then, and how the unbroken runs went on."""
    folder = tmp_path_factory.mktemp("two")
    first, second = two.run(saved_runs, ALL, folder)
    assert_same(first, second)
    return folder, *first


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same of a single process."""
    folder = tmp_path_factory.mktemp("one")
    return folder, *saved_runs(EACH_ONCE, folder)


def test_run_on_as_many_ranks_goes_on_bit_for_bit(two, on_two):
    folder, saved, unbroken = on_two
    for loaded, resumed in two.run(resumed_runs, ALL, folder):
        assert_same(loaded, saved)
        assert_same(resumed, unbroken)
    assert saved["sgd linear_rand_auto"]["stats"]["steps"] == 7
    assert len(saved["sgd without momentum auto"]["norms"]) == 6
    clipped = {key.split()[-1] for key, (did, _, _) in unbroken.items() if did[-1] and did[-1][0]["clipped_steps"] > 0}
    assert set(TYPES) - clipped <= {"none"}


def assert_goes_on_as_alone(loaded, resumed, saved, unbroken):
    """The history is that of the file exactly, and the run that of a single process in all but the last digits."""
    for name, clipping_type in EACH_ONCE:
        key = f"{name} {clipping_type}"
        assert_same(loaded[key], saved[key])
        assert_same(resumed[key], unbroken[key], rtol=1e-4, atol=1e-5)


def test_two_ranks_to_four(four, on_two, alone):
    for loaded, resumed in four.run(resumed_runs, EACH_ONCE, on_two[0]):
        assert_goes_on_as_alone(loaded, resumed, on_two[1], alone[2])


def test_two_ranks_to_a_single_process(on_two, alone):
    loaded, resumed = resumed_runs(EACH_ONCE, on_two[0])
    assert_goes_on_as_alone(loaded, resumed, on_two[1], alone[2])


def test_a_single_process_to_two_ranks(two, alone):
    for loaded, resumed in two.run(resumed_runs, EACH_ONCE, alone[0]):
        assert_goes_on_as_alone(loaded, resumed, alone[1], alone[2])


# The forms that torch offers.

FEW = [("sgd", "layer_wise_auto"), ("adamw", "zclip"), ("adamw", "linear_rand_auto"), ("sgd", "coord_wise")]
FULL = {"full_state_dict": True}
CPU = FULL | {"cpu_offload": True}
BROADCAST = FULL | {"broadcast_from_rank0": True}
FLAT = {"flatten_optimizer_state_dict": True}


def resumed_in_forms(forms):
    """Hand each run on in each form; how they stand then, and how the unbroken ones do, by form."""
    results = []
    for at, (saving, loading) in enumerate(forms, 2):
        runs, fresh = made(FEW), made(FEW, seed=2)
        for key, run in runs.items():
            run.at, run.end = at, at + 4
            run.steps(0, at)
            state = copy.deepcopy(run.state_dict(**saving))
            if loading == BROADCAST and dist.get_rank() > 0:
                state = {"model": {}, "optimizer": {}}
            fresh[key].load_state_dict(state, **loading)
            fresh[key].at, fresh[key].end = at, at + 4
        results.append(((histories(fresh), gone_on(fresh)), (histories(runs), gone_on(runs))))
    return results


def test_full_broadcast_and_flattened_states_in_memory(two):
    forms = [({}, {}), (FULL, FULL), (FULL, BROADCAST), (CPU, BROADCAST), (FLAT, FLAT)]
    for results in two.run(resumed_in_forms, forms):
        for got, wanted in results:
            assert_same(got, wanted)


def resumed_from_files_in_forms(forms, folder):
    results = []
    for number, options in enumerate(forms):
        runs, fresh = made(FEW), made(FEW, seed=2)
        for run in runs.values():
            run.steps(0, 9)
        save(runs, folder / str(number), **options)
        load(fresh, folder / str(number), **options)
        results.append(((histories(fresh), gone_on(fresh)), (histories(runs), gone_on(runs))))
    return results


def test_full_and_flattened_states_in_files(two, tmp_path):
    for results in two.run(resumed_from_files_in_forms, [FULL, FLAT], tmp_path):
        for got, wanted in results:
            assert_same(got, wanted)


# Fresh optimizers, plain ones, other ways.


def started_and_saved(folder):
    """Save before the first step; what is remembered then, how the runs go on, and how those that loaded it do."""
    runs, fresh = made(EACH_ONCE), made(EACH_ONCE, seed=2)
    save(runs, folder)
    before = histories(runs)
    load(fresh, folder)
    for run in [*runs.values(), *fresh.values()]:
        run.at, run.end = 0, 3
    return before, gone_on(runs), gone_on(fresh)


def test_state_that_torch_makes_by_a_zero_step_leaves_no_trace_in_the_history(two, tmp_path):
    for before, wanted, got in two.run(started_and_saved, tmp_path):
        for name, clipping_type in EACH_ONCE:
            history = before[f"{name} {clipping_type}"]
            assert {history["stats"][key] for key in ("steps", "clipped_steps", "skipped_steps")} == {0}
            assert len(history["norms"]) == 0
            assert all(not value.nan_to_num().any() for key, value in history.items() if "clipping_memory" in key)
        assert_same(got, wanted)


def exchanged_with_plain(folder):
    """A checkpoint of torch's AdamW loaded into ours and back: weights, arguments and history on the way."""
    plain, ours, back = Run("plain adamw", "none"), Run("adamw", "layer_wise_auto", seed=2), Run("plain adamw", "none", seed=3)
    plain.steps(0, 3)
    arguments = [{key: group[key] for key in ARGUMENT_NAMES} for group in ours.optimizer.param_groups]
    save({"run": plain}, folder / "plain")
    load({"run": ours}, folder / "plain", DefaultLoadPlanner(allow_partial_load=True))
    kept = [{key: group[key] for key in ARGUMENT_NAMES} for group in ours.optimizer.param_groups] == arguments
    weights = [plain.weights(), ours.weights()]
    ours.steps(3, 5)
    save({"run": ours}, folder / "ours")
    load({"run": back}, folder / "ours")
    states = [
        [whole(value).clone() for p in run.model.parameters() for value in run.optimizer.state[p].values()]
        for run in (ours, back)
    ]
    return kept, weights, ours.optimizer.clipping_stats()["steps"], [ours.weights(), back.weights()], states


def test_checkpoints_in_files_go_from_torch_to_us_and_back(two, tmp_path):
    """From torch, where keys are missing, only with ``allow_partial_load=True``."""
    for kept, weights, steps, later_weights, states in two.run(exchanged_with_plain, tmp_path):
        assert kept
        assert steps == 2
        for got, wanted in (weights, later_weights, states):
            assert_same(got, wanted)


def resumed_from_a_file_of_each_rank(folder):
    runs, fresh = made(FEW), made(FEW, seed=2)
    for key, run in runs.items():
        run.steps(0, run.at)
        file = folder / f"{key} {dist.get_rank()}.pt"
        torch.save([run.model.state_dict(), run.optimizer.state_dict()], file)
        model, optimizer = torch.load(file, weights_only=True)
        fresh[key].model.load_state_dict(model)
        fresh[key].optimizer.load_state_dict(optimizer)
    return (histories(fresh), gone_on(fresh)), (histories(runs), gone_on(runs))


def test_a_file_of_each_rank(two, tmp_path):
    for got, wanted in two.run(resumed_from_a_file_of_each_rank, tmp_path):
        assert_same(got, wanted)


def resumed_from_a_file_written_while_steps_go_on(folder):
    runs, fresh = made(FEW), made(FEW, seed=2)
    for run in runs.values():
        run.steps(0, run.at)
    before = histories(runs)
    own_group = dist.new_group(backend="gloo")  # the order of collectives of two threads in one group is left open
    state = {key: run.state_dict() for key, run in runs.items()}
    writing = dcp.async_save(state, checkpoint_id=folder, process_group=own_group)
    went_on = gone_on(runs)
    writing.result()
    dist.destroy_process_group(own_group)
    load(fresh, folder)
    return (histories(fresh), gone_on(fresh)), (before, went_on)


def test_steps_while_a_file_is_written_do_not_change_what_it_says(two, tmp_path):
    for got, wanted in two.run(resumed_from_a_file_written_while_steps_go_on, tmp_path):
        assert_same(got, wanted)


# Targets made with other clipping arguments than the checkpoint's, which win as lr does.

OTHER_TYPES = [("norm", "layer_wise_auto"), ("layer_wise_auto", "norm"), ("zclip", "auto"), ("adagc", "zscore")]


def taken_over(forms):
    """Hand runs on to targets of another type, in each form; how they go on, and how the unbroken ones do, by form."""
    results = []
    for saving, loading in forms:
        runs = {" ".join(types): Run("sgd", types[0]) for types in OTHER_TYPES}
        fresh = {" ".join(types): Run("sgd", types[1], seed=2) for types in OTHER_TYPES}
        for key, run in runs.items():
            run.steps(0, run.at)
            state = copy.deepcopy(run.state_dict(**saving))
            if loading == BROADCAST and dist.get_rank() > 0:
                state = {"model": {}, "optimizer": {}}
            fresh[key].load_state_dict(state, **loading)
        results.append((gone_on(fresh), gone_on(runs)))
    return results


def test_history_goes_to_a_target_of_another_type_on_every_rank(two):
    for results in two.run(taken_over, [({}, {}), (FULL, FULL), (CPU, BROADCAST), (FLAT, FLAT)]):
        for got, wanted in results:
            assert_same(got, wanted)


# What torch 2.13 cannot do with its own optimizers either: a failure here means that it can now.


def failures(names, folder):
    """The errors of some forms, each for torch's optimizer and for ours."""
    found = []
    for name, form, noted in names:
        run, fresh = Run(name, "auto"), Run(name, "auto", seed=2)
        run.steps(0, 2)
        for group in (run if noted == "saved" else fresh).optimizer.param_groups if noted else []:
            group["note"] = 1.0
        try:
            if form == "file":
                save({"run": run}, folder / name)
                load({"run": fresh}, folder / name)
            else:
                fresh.load_state_dict(copy.deepcopy(run.state_dict(**form)), **form)
            found.append("")
        except (Exception, CheckpointException) as error:
            found.append(str(error))
    return found


@needs_torch("2.13", "the test of what this release cannot do")
@pytest.mark.parametrize(
    ("stateless", "form", "noted", "message"),
    [
        (True, FULL, None, "Expected device|'state'"),  # the full form of no state is lost
        (False, FULL | FLAT, None, "param_groups.0.params.0"),
        (False, FULL, "saved", "param_groups.0.note"),  # keys that the target lacks
        (False, FLAT, "target", "param_groups.0.weight.note"),  # keys that the saved lacks
        (False, "file", "target", "Missing key in checkpoint state_dict: run.optimizer.param_groups.0.note"),
    ],
    ids=["stateless, full", "flattened, full", "more saved, full", "fewer saved, flattened", "fewer saved, file"],
)
def test_what_torch_cannot_do(two, tmp_path, stateless, form, noted, message):
    names = ["plain sgd", "sgd without momentum"] if stateless else ["plain adamw", "adamw"]
    for found in two.run(failures, [(name, form, noted) for name in names], tmp_path):
        assert all(re.search(message, error) for error in found), found
