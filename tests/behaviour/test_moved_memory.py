"""Tensors that come to lie elsewhere, or get another shape, between two steps: training goes on as if nothing had happened."""

import copy
import io
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, product

import pytest
import torch
from support.assertions import assert_same
from torch import nn

from torch_clipped import ClippedAdamW, ClippedSGD, GradientClipper, clip_optimizer

MEMORIES = ["auto", "layer_wise_auto", "zclip", "adagc"]  # a history and an average, of the whole gradient and of blocks
OTHERS = ["norm", "linear_rand_auto", "zscore", "adaptive", "coord_wise"]


def gradients(step, shapes=((4,), (3, 2))):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) * (1 + step % 7) for shape in shapes]


def train(disturb=None, steps=40, at=9, make=None, clipping_type="auto"):
    """Weights, statistics and state after some steps, ``disturb`` being called with the optimizer between two of them."""
    params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3, 2))]
    optimizer = (make or (lambda p: ClippedSGD(p, lr=0.1, momentum=0.9, clipping_type=clipping_type, clipping_window=20)))(params)
    for step in range(steps):
        for p, grad in zip(optimizer.param_groups[0]["params"], gradients(step), strict=True):
            p.grad = grad
        optimizer.step()
        if step >= at and disturb is not None:
            disturb(optimizer)
            disturb = None
    weights = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    return weights, optimizer.clipping_stats(), optimizer.grad_norms(), clipping_state(optimizer.state_dict())


def clipping_state(state_dict):
    return [{k: v for k, v in group.items() if isinstance(v, torch.Tensor)} for group in state_dict["param_groups"]]


def through_a_queue(value):
    queue = torch.multiprocessing.Queue()
    queue.put(value)
    return queue.get(timeout=60)


def share_all(optimizer):
    for group in optimizer.param_groups:
        for value in [*group.values(), *group["params"]]:
            if isinstance(value, torch.Tensor):
                value.share_memory_()


def replace_storages(optimizer):
    for group in optimizer.param_groups:
        for value in [*group.values(), *group["params"]]:
            if isinstance(value, torch.Tensor):
                value.data = value.detach().clone()


def replace_objects(optimizer):
    for group in optimizer.param_groups:
        group.update({k: v.clone() for k, v in group.items() if isinstance(v, torch.Tensor)})


DISTURBANCES = {
    "state sent by a queue": lambda o: through_a_queue(o.state_dict()),
    "optimizer sent by a queue": lambda o: through_a_queue(o),
    "groups sent by a queue": lambda o: through_a_queue([{**group} for group in o.param_groups]),
    "gradients sent by a queue": lambda o: through_a_queue([p.grad for p in o.param_groups[0]["params"]]),
    "everything shared": share_all,
    "storages replaced": replace_storages,
    "state replaced by copies": replace_objects,
    "loaded": lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "loaded, not copied": lambda o: o.load_state_dict(o.state_dict()),
    "pickled": pickle.dumps,
}


@pytest.mark.parametrize(
    ("clipping_type", "disturbance"),
    [*product(MEMORIES, DISTURBANCES), *zip(cycle(OTHERS), DISTURBANCES)],
    ids=lambda value: value.replace(" ", "_"),
)
def test_training_does_not_notice_that_memory_was_moved(clipping_type, disturbance):
    assert_same(train(DISTURBANCES[disturbance], clipping_type=clipping_type), train(clipping_type=clipping_type))


@pytest.mark.parametrize("at", [0, 9, 38])
def test_statistics_right_after_the_move_are_those_of_all_steps(at):
    params = [nn.Parameter(torch.ones(4))]
    optimizer = ClippedSGD(params, clipping_type="auto")
    for step in range(at + 1):
        params[0].grad = gradients(step)[0]
        optimizer.step()
    before = optimizer.clipping_stats(), optimizer.grad_norms()
    share_all(optimizer)
    assert_same((optimizer.clipping_stats(), optimizer.grad_norms()), before)
    assert optimizer.clipping_stats()["steps"] == at + 1


def test_state_dict_is_a_snapshot_that_later_steps_do_not_change():
    seen = []
    train(lambda o: seen.append((o.state_dict(), copy.deepcopy(o.state_dict()))))
    handed_out, as_it_was = map(clipping_state, seen[0])
    assert_same(handed_out, as_it_was)
    assert handed_out[0]["clipping_memory_steps"][0] == 10


@pytest.mark.slow
def test_background_checkpoints_hold_the_counts_of_their_time(tmp_path):
    with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        saved = []

        def save(optimizer):
            saved.append(pool.submit(torch.save, optimizer.state_dict(), tmp_path / f"{len(saved)}.pt"))

        params = [nn.Parameter(torch.ones(4))]
        optimizer = ClippedSGD(params, clipping_type="auto")
        for step in range(30):
            params[0].grad = gradients(step)[0]
            optimizer.step()
            if step % 10 == 9:
                save(optimizer)
        for future in saved:
            future.result()
    counts = [torch.load(tmp_path / f"{i}.pt")["param_groups"][0]["clipping_memory_steps"][0].item() for i in range(3)]
    assert counts == [10, 20, 30]


def count_steps(optimizer, answers):
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    answers.put(optimizer.clipping_stats()["steps"])


@pytest.mark.slow
def test_optimizer_as_argument_of_a_process_goes_on_in_both():
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()

    def start(optimizer):
        process = context.Process(target=count_steps, args=(optimizer, answers))
        process.start()
        assert answers.get(timeout=120) == 11
        process.join()

    undisturbed = train()
    _, stats, norms, state = train(start)
    assert_same((stats, norms, state), undisturbed[1:])


class Samples(torch.utils.data.Dataset):
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.tensor(float(i))


@pytest.mark.slow
def test_data_loader_with_spawned_workers_may_hold_the_optimizer():
    def load(optimizer):
        loader = torch.utils.data.DataLoader(Samples(optimizer), num_workers=1, multiprocessing_context="spawn")
        assert [batch.item() for batch in loader] == [0, 1, 2, 3]

    assert_same(train(load), train())


def test_gradient_clipper_does_not_notice_that_its_state_was_sent():
    def run(disturb):
        params = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3, 2))]
        clipper = GradientClipper(params, "auto", clipping_window=20)
        for step in range(40):
            for p, grad in zip(params, gradients(step), strict=True):
                p.grad = grad
            clipper.step()
            if step == 9:
                disturb(clipper)
        return (
            [p.grad for p in params],
            clipper.clipping_stats(),
            clipper.grad_norms(),
            clipping_state({"param_groups": [clipper.state_dict()]}),
        )

    undisturbed = run(lambda clipper: None)
    for disturb in (
        lambda clipper: through_a_queue(clipper.state_dict()),
        through_a_queue,
        lambda clipper: [t.share_memory_() for t in clipper.state_dict().values() if isinstance(t, torch.Tensor)],
        lambda clipper: clipper.load_state_dict(clipper.state_dict()),
    ):
        assert_same(run(disturb), undisturbed)


@pytest.mark.parametrize("clipping_type", ["norm", "layer_wise_auto", "adaptive", "coord_wise", "adagc"])
def test_parameter_that_grew_is_clipped_by_its_new_shape(clipping_type):
    embedding = nn.Embedding(3, 2)
    optimizer = ClippedSGD(embedding.parameters(), lr=0.1, clipping_type=clipping_type, clipping_level=0.01)
    embedding.weight.grad = torch.ones(3, 2)
    optimizer.step()
    embedding.weight.data = torch.ones(5, 2)
    embedding.weight.grad = torch.full((5, 2), 30.0)
    optimizer.step()
    assert optimizer.clipping_stats()["steps"] == 2
    if clipping_type == "adaptive":
        torch.testing.assert_close(embedding.weight.grad.norm(dim=1), torch.full((5,), 0.01 * 2**0.5))


def test_parameters_that_are_swapped_in_place_keep_their_history():
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = nn.Linear(2, 3)
        optimizer = ClippedSGD(model.parameters(), clipping_type="auto")
        for step in range(10):
            model.weight.grad, model.bias.grad = torch.ones(3, 2), torch.ones(3)
            optimizer.step()
            if step == 4:
                model.double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert optimizer.clipping_stats()["steps"] == len(optimizer.grad_norms()) == 10


@pytest.mark.parametrize("make", [ClippedAdamW, lambda p: clip_optimizer(torch.optim.RMSprop(p), "auto")])
def test_other_optimizers_do_not_notice_either(make):
    assert_same(train(DISTURBANCES["optimizer sent by a queue"], make=make), train(make=make))


def test_file_written_after_the_move_goes_on_bit_for_bit():
    buffer = io.BytesIO()
    undisturbed = train()

    def save_and_load(optimizer):
        share_all(optimizer)
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        optimizer.load_state_dict(torch.load(buffer, weights_only=True))

    assert_same(train(save_and_load), undisturbed)
