"""The tasks graph and segmentation of ``compare``: their data, in the true layouts too, and their numbers."""

import itertools
import re
import sys

import numpy as np
import pytest
import torch

from experiments.compare.graphs import (
    CLASSES,
    Graph,
    block_model,
    compressed,
    read_reddit,
    sample_neighbourhood,
    table_of_neighbours,
)
from experiments.compare.segmentation_data import BORDER, SHAPES, draw_shapes, read_voc
from experiments.compare.task import PARTS, load
from experiments.compare.task_parts import seeded
from experiments.compare.task_segmentation import count_pairs, mean_iou
from experiments.compare.unet import UNet


def degrees(graph):
    return np.diff(graph.starts)


def test_block_model_links_each_class_with_the_two_beside_it():
    graph = block_model(3)
    owners, others = np.repeat(graph.labels, degrees(graph)), graph.labels[graph.neighbours]
    apart = np.abs(owners - others) % CLASSES
    beside = (apart == 1) | (apart == CLASSES - 1)
    assert beside.sum() / 3000 == pytest.approx(8, rel=0.05)
    assert (~beside).sum() / 3000 == pytest.approx(4, rel=0.05)
    assert np.bincount(graph.labels).tolist() == [600] * CLASSES


def test_three_nodes_in_ten_tell_their_class_and_no_part_has_one_of_another():
    graph = block_model(3)
    told = graph.features[:, :CLASSES].any(1)
    assert told.sum() == 900
    assert (graph.features[told, :CLASSES].argmax(1) == graph.labels[told]).all()
    parts = [set(part.tolist()) for part in (np.flatnonzero(told), graph.training, graph.validation, graph.test)]
    assert list(map(len, parts)) == [900, 1049, 526, 525]
    assert len(set.union(*parts)) == 3000
    again, other = block_model(3), block_model(4)
    assert np.array_equal(again.neighbours, graph.neighbours)
    assert not np.array_equal(other.labels, graph.labels)


def test_table_of_neighbours_is_that_of_a_count_by_hand():
    graph = block_model(3)
    counts, commonest = {}, {}
    for node in range(3000):
        known = [
            int(graph.labels[other])
            for other in graph.neighbours[graph.starts[node] : graph.starts[node + 1]]
            if graph.features[other, :CLASSES].any()
        ]
        commonest[node] = min(range(CLASSES), key=lambda label: (-known.count(label), label)) if known else None
    for node in graph.training.tolist():
        counts.setdefault(commonest[node], [0] * CLASSES)[graph.labels[node]] += 1
    named = {vote: row.index(max(row)) for vote, row in counts.items()}
    right = [named[commonest[node]] == graph.labels[node] for node in graph.test.tolist()]
    assert table_of_neighbours(graph) == pytest.approx(np.mean(right))
    assert 0.25 < np.mean(right) < 0.5


def star(points):
    """Node 0 with that many neighbours, which have no others."""
    pairs = np.array([(0, point) for point in range(1, points + 1)])
    both = np.concatenate([pairs, pairs[:, ::-1]])
    starts, neighbours = compressed(both[:, 0], both[:, 1], points + 2)  # and one node without neighbours
    nothing = np.zeros(points + 2, dtype=np.int64)
    parts = dict.fromkeys(("labels", "training", "validation", "test"), nothing)
    return Graph(starts=starts, neighbours=neighbours, features=nothing[:, None], **parts)


def test_neighbours_are_sampled_without_replacement_and_evenly():
    graph, random, counts = star(10), np.random.default_rng(0), np.zeros(12)
    for _ in range(2000):
        found, sources, targets = sample_neighbourhood(graph, np.array([0]), (4,), random)
        assert found[0] == 0
        assert len(set(found.tolist())) == len(found) == 5
        assert (targets == 0).all()
        assert sorted(sources.tolist()) == [1, 2, 3, 4]
        counts[found] += 1
    assert counts[0] == 2000
    assert counts[11] == 0
    assert counts[1:11].min() > 700  # 800 are expected, and their standard deviation is 22
    assert counts[1:11].max() < 900


def test_sampled_edges_are_edges_of_the_graph_and_the_first_nodes_are_those_of_the_batch():
    graph = block_model(0, nodes=300)
    edges = set(zip(graph.neighbours.tolist(), np.repeat(np.arange(300), degrees(graph)).tolist(), strict=True))
    nodes = np.array([17, 3, 250])
    found, sources, targets = sample_neighbourhood(graph, nodes, (5, 3), np.random.default_rng(0))
    assert found[:3].tolist() == [17, 3, 250]
    assert len(set(found.tolist())) == len(found)
    sampled = list(zip(found[sources].tolist(), found[targets].tolist(), strict=True))
    assert len(set(sampled)) == len(sampled)
    assert set(sampled) <= edges
    for node in nodes:
        assert sum(target == node for _, target in sampled) <= 5
    first_hop = {source for source, target in sampled if target in nodes} - set(nodes.tolist())
    assert all(1 <= sum(target == node for _, target in sampled) <= 3 for node in first_hop)


def test_whole_neighbourhood_is_taken_where_it_is_small_and_nothing_where_there_is_none():
    graph = star(4)
    found, sources, _ = sample_neighbourhood(graph, np.array([0, 5]), (25, 10), np.random.default_rng(0))
    assert found[:2].tolist() == [0, 5]
    assert sorted(found.tolist()) == [0, 1, 2, 3, 4, 5]
    assert len(sources) == 4 + 4  # to the node, and back from its neighbours
    found, sources, targets = sample_neighbourhood(graph, np.array([5]), (25, 10), np.random.default_rng(0))
    assert (found.tolist(), sources.tolist(), targets.tolist()) == ([5], [], [])


def write_reddit(folder, **changes):
    """A ring of eight posts in the layout of Reddit's files; a change of None leaves an array out."""
    nodes = np.arange(8)
    row, col = np.concatenate([nodes, nodes]), np.concatenate([(nodes + 1) % 8, (nodes - 1) % 8])
    arrays = {
        "feature": np.random.default_rng(0).normal(size=(8, 6)),
        "label": nodes % 3,
        "node_types": np.array([1, 1, 1, 1, 2, 2, 3, 3]),
        "node_ids": nodes,
        "row": row.astype(np.int32),
        "col": col.astype(np.int32),
        "data": np.ones(16),
        "shape": np.array([8, 8]),
        "format": np.array(b"coo"),
    }
    kept = {name: array for name, array in (arrays | changes).items() if array is not None}
    files = {
        "reddit_data.npz": ("feature", "label", "node_types", "node_ids"),
        "reddit_graph.npz": ("row", "col", "data", "shape", "format"),
    }
    for file, names in files.items():
        np.savez(folder / file, **{name: kept[name] for name in names if name in kept})
    return folder


def test_reddit_is_read_from_its_files(tmp_path):
    graph = read_reddit(write_reddit(tmp_path))
    assert graph.features.dtype == np.float32
    assert graph.features.shape == (8, 6)
    assert graph.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert graph.training.tolist() == [0, 1, 2, 3]
    assert graph.validation.tolist() == [4, 5]  # and not the test nodes
    for node in range(8):
        mine = graph.neighbours[graph.starts[node] : graph.starts[node + 1]]
        assert sorted(mine.tolist()) == sorted([(node + 1) % 8, (node - 1) % 8])


@pytest.mark.parametrize(
    ("changes", "file", "message"),
    [
        ({"node_types": None}, "reddit_data.npz", "has no array node_types: expected"),
        ({"row": None}, "reddit_graph.npz", "has no array row: expected"),
        ({"feature": np.zeros(8)}, "reddit_data.npz", "must have 2 dimensions, got shape (8,)"),
        ({"label": np.zeros(7)}, "reddit_data.npz", "must hold as many features, labels and node_types"),
        ({"shape": np.array([9, 9])}, "reddit_graph.npz", "must hold a square matrix of the 8 nodes"),
        ({"col": np.full(16, 8)}, "reddit_graph.npz", "some outside"),
        (
            {"node_types": np.ones(8)},
            "reddit_data.npz",
            "must have training nodes (1), validation nodes (2) and test nodes (3), got [1]",
        ),
        ({"label": np.array([None] * 8)}, "reddit_data.npz", "cannot be read"),
        ({"label": np.array(list("abcabcab"))}, "reddit_data.npz", "label in"),
        ({"label": np.full(8, -1)}, "reddit_data.npz", "must hold whole numbers from 0, got -1"),
        ({"label": np.arange(8) / 2}, "reddit_data.npz", "must hold whole numbers from 0, got 0.5"),
        ({"label": np.full(8, np.nan)}, "reddit_data.npz", "must hold whole numbers from 0, got nan"),
        ({"row": np.linspace(0, 7, 16)}, "reddit_graph.npz", "must hold whole numbers from 0, got 0.4"),
        ({"feature": np.full((8, 3), "a")}, "reddit_data.npz", "must hold finite numbers, got 'a'"),
        ({"feature": np.full((8, 3), np.nan)}, "reddit_data.npz", "must hold finite numbers, got nan"),
        ({"feature": np.zeros((8, 0))}, "reddit_data.npz", "must hold at least one number"),
    ],
)
def test_damaged_reddit_files_are_named(changes, file, message, tmp_path):
    with pytest.raises(ValueError, match=r"reddit_") as error:
        read_reddit(write_reddit(tmp_path, **changes))
    assert str(tmp_path / file) in str(error.value)
    assert message in str(error.value)


def test_whole_numbers_stored_as_floats_are_read(tmp_path):
    changes = {"label": np.arange(8.0) % 3, "row": np.arange(16.0) % 8, "col": np.arange(1.0, 17) % 8}
    graph = read_reddit(write_reddit(tmp_path, **changes))
    assert graph.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert graph.neighbours.dtype == np.int64


def test_damage_inside_a_compressed_file_is_named(tmp_path):
    write_reddit(tmp_path)
    path = tmp_path / "reddit_graph.npz"
    arrays = dict(np.load(path))
    np.savez_compressed(path, **arrays)  # as scipy.sparse.save_npz does
    assert read_reddit(tmp_path).starts[-1] == 16
    whole = path.read_bytes()
    for place in range(60, 130):  # inside the first array, row
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_reddit(tmp_path)


@pytest.mark.parametrize("file", ["reddit_data.npz", "reddit_graph.npz"])
def test_missing_and_cut_off_reddit_files_are_named(file, tmp_path):
    path = write_reddit(tmp_path) / file
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{file} cannot be read .*expected a numpy archive with the arrays"):
        read_reddit(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{file} is missing: expected a numpy archive with the arrays"):
        read_reddit(tmp_path)


def train(task, lr=0.01, steps=None):
    """The metrics before and after some steps of Adam, and the losses."""
    model = task.make_model(0)
    before, losses = {part: task.evaluate(model, part) for part in PARTS}, []
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for batch in itertools.islice(task.batches(0), steps or task.steps):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model.training
    return before, {part: task.evaluate(model, part) for part in PARTS}, losses


@pytest.fixture
def geometric():
    """torch_geometric, or a reason why not."""
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra tasks)", exc_type=ImportError)


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # importing torch_geometric


@pytest.mark.usefixtures("geometric")
def test_graph_task_learns_more_than_a_table_of_neighbours():
    task = load("graph", None, None, 0, False)
    _, after, losses = train(task, steps=150)
    words, trivial = task.trivial
    assert words == "table of the commonest known neighbour"
    assert min(after.values()) > trivial + 0.1
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("geometric")
def test_graph_task_trains_on_reddit(tmp_path):
    task = load("graph", write_reddit(tmp_path), None, 0, True)
    assert (task.classes, task.batch) == (3, 4)
    _, after, losses = train(task, steps=60)
    assert losses[-1] < 0.5 * losses[0]
    assert after["train"] == 1
    assert task.trivial[0] == "commonest class"


def test_graph_task_without_torch_geometric_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(ValueError, match=r"task graph needs torch_geometric: pip install 'torch-clipped\[tasks\]'"):
        load("graph", None, None, 0, True)


def same(first, second):
    """Whether two batches hold the same tensors."""
    tensors = [list(batch) if isinstance(batch, tuple) else list(vars(batch).values()) for batch in (first, second)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


@pytest.mark.usefixtures("geometric")
@pytest.mark.parametrize("name", ["graph", "segmentation"])
def test_same_seed_gives_the_same_data_model_and_batches(name):
    task, again, other = (load(name, None, None, seed, True) for seed in (0, 0, 1))
    state = torch.get_rng_state()
    weights = [torch.cat([p.flatten() for p in task.make_model(seed).parameters()]) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    first, second, third, fourth = (next(one.batches(seed)) for one, seed in ((task, 5), (again, 5), (task, 6), (other, 5)))
    assert same(first, second)
    assert not same(first, third)
    assert not same(first, fourth)


def test_shapes_are_labelled_where_they_stand_out():
    images, labels = draw_shapes(50, 0)
    assert images.shape == (50, 3, 32, 32)
    assert labels.shape == (50, 32, 32)
    assert set(labels.unique().tolist()) == set(range(len(SHAPES)))
    light = images.float().mean(1)
    assert light[labels > 0].mean() > light[labels == 0].mean() + 80
    assert torch.equal(draw_shapes(50, 0)[0], images)
    assert not torch.equal(draw_shapes(50, 1)[0], images)


def test_segmentation_task_learns_shapes():
    task = load("segmentation", None, None, 0, True)
    before, after, losses = train(task, steps=60)
    assert losses[-1] < 0.6 * losses[0]
    assert all(after[part] > before[part] + 0.1 for part in PARTS)
    assert task.trivial == ("one class everywhere", pytest.approx(0.2, abs=0.03))


def test_mean_iou_is_that_of_the_definition_and_leaves_out_borders():
    labels = torch.tensor([[0, 0, 1], [1, 2, BORDER]], dtype=torch.uint8)
    predictions = torch.tensor([[0, 1, 1], [1, 1, 2]])
    pairs = count_pairs(predictions, labels, 4)
    assert pairs.sum() == 5
    assert mean_iou(pairs) == pytest.approx((1 / 2 + 2 / 4 + 0) / 3)  # class 3 is nowhere


def test_borders_have_no_part_in_the_loss():
    task = load("segmentation", None, None, 0, True)
    model = task.make_model(0).eval()
    images, labels = (tensor.clone() for tensor in next(task.batches(0)))
    left = labels.clone()
    left[:, :, 16:] = BORDER
    logits = model(images.float() / 127.5 - 1)
    expected = torch.nn.functional.cross_entropy(logits[..., :16], labels[..., :16].long())
    assert task.loss(model, (images, left)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_unet_keeps_the_size_and_sees_further_than_its_first_layers():
    model = seeded(lambda: UNet(classes=5, width=4, depth=3), 0).eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(images)
    assert logits.shape == (2, 5, 32, 48)
    logits[0, :, 16, 24].sum().backward()
    reached = images.grad[0].abs().sum(0) > 0
    assert not images.grad[1].any()
    assert reached.any(0).sum() > 12  # two 3 x 3 convolutions alone would reach 5


def write_voc(folder):
    """Six images in the layout of PascalVOC 2012: a light square on a dark ground, its outline of the border's label."""
    from PIL import Image

    root = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    palette = [component for number in range(256) for component in (number, 255 - number, 7 * number % 256)]
    names = [f"2007_{number:06}" for number in range(6)]
    for number, name in enumerate(names):
        image, label = np.full((40, 60, 3), 30, dtype=np.uint8), np.zeros((40, 60), dtype=np.uint8)
        label[9:31, 19:51], label[10:30, 20:50] = BORDER, 15 if number % 2 else 3
        image[10:30, 20:50] = 200
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
        classes = Image.frombytes("P", (60, 40), label.tobytes())
        classes.putpalette(palette)
        classes.save(root / "SegmentationClass" / f"{name}.png")
    for split, some in (("train", names[:4]), ("val", names[4:])):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(some) + "\n")
    return root


@pytest.fixture
def voc(tmp_path):
    pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra tasks)")
    return write_voc(tmp_path)


def test_voc_is_read_from_its_folders(voc, tmp_path):
    images, labels = read_voc(tmp_path, "train", 20, 100)
    assert images.shape == (4, 3, 20, 20)
    assert labels.shape == (4, 20, 20)
    assert [set(label.unique().tolist()) - {BORDER} for label in labels] == [{0, 3}, {0, 15}, {0, 3}, {0, 15}]
    assert images[labels.unsqueeze(1).expand_as(images) == 3].float().mean() > 180
    assert len(read_voc(tmp_path, "val", 20, 100)[0]) == 2
    some = read_voc(tmp_path, "train", 20, 3)[1]  # from the whole list, which is in the order of the years
    assert torch.equal(some, labels[[0, 1, 3]])


def test_segmentation_task_trains_on_voc(voc, tmp_path):
    task = load("segmentation", tmp_path, None, 0, True)
    assert (task.batch, task.classes, task.width, task.depth) == (4, 21, 8, 2)
    assert task.training[0].shape[-1] == 32  # quick: as large as the shapes
    assert "4 training images; one half of 2 validation images for validation, one for tests" in task.source
    _, after, losses = train(task, lr=0.02, steps=6)
    assert losses[-1] < losses[0]
    assert 0 <= after["validation"] <= 1


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("ImageSets/Segmentation/train.txt", None, "expected a list of the images of PascalVOC 2012"),
        ("ImageSets/Segmentation/train.txt", b"\n", "is empty: expected the name of an image in each line"),
        ("JPEGImages/2007_000002.jpg", None, "is missing: expected a colour image"),
        ("JPEGImages/2007_000002.jpg", b"\xff\xd8\xff\xe0 no image", "cannot be read .*: expected a colour image"),
        ("SegmentationClass/2007_000001.png", None, "is missing: expected an image with a class number for each pixel"),
        ("SegmentationClass/2007_000001.png", b"\x89PNG\r\n", "cannot be read .*: expected an image with a class number"),
    ],
)
def test_missing_and_damaged_voc_files_are_named(voc, tmp_path, path, content, message):
    (voc / path).unlink() if content is None else (voc / path).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}.*{message}"):
        read_voc(tmp_path, "train", 20, 100)


def test_image_of_an_impossible_size_is_named(voc, tmp_path):
    path = voc / "JPEGImages" / "2007_000003.jpg"
    image = path.read_bytes()
    place = image.index(b"\xff\xc0") + 5  # of height and width, in the header
    path.write_bytes(image[:place] + bytes([250, 0, 250, 0]) + image[place + 4 :])
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read .*: expected a colour image"):
        read_voc(tmp_path, "train", 20, 100)


def test_cut_off_image_is_named(voc, tmp_path):
    for path in (voc / "JPEGImages" / "2007_000003.jpg", voc / "SegmentationClass" / "2007_000000.png"):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
            read_voc(tmp_path, "train", 20, 100)


def test_labels_of_another_kind_size_or_class_are_named(voc, tmp_path):
    from PIL import Image

    path = voc / "SegmentationClass" / "2007_000000.png"
    for size, mode, colour, message in (
        ((60, 40), "RGB", (1, 2, 3), r"must hold class numbers \(mode P or L\), got mode RGB"),
        ((60, 41), "L", 1, r"must be of the size of .*2007_000000.jpg, \(60, 40\), got \(60, 41\)"),
        ((60, 40), "L", 77, r"must hold classes 0 to 20 and 255 at borders, got \[77\]"),
    ):
        Image.new(mode, size, colour).save(path)
        with pytest.raises(ValueError, match=rf"2007_000000.png {message}"):
            read_voc(tmp_path, "train", 20, 100)
