"""Graphs with node features and classes: Reddit's files, and a small generated graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

CLASSES = 5  # of the block model

TRAIN, VALIDATION, TEST = 1, 2, 3  # among the node_types of Reddit
FILES = {
    "reddit_data.npz": {"feature": 2, "label": 1, "node_types": 1},  # arrays and their dimensions
    "reddit_graph.npz": {"row": 1, "col": 1, "shape": 1},
}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Graph in compressed rows: the neighbours of node i are ``neighbours[starts[i]:starts[i + 1]]``.

    Attributes:
        starts: shape (nodes + 1,).
        neighbours: shape (edges,), each edge in both directions.
        features: shape (nodes, features).
        labels: the class of each node, shape (nodes,).
        training: nodes for training.
        validation: nodes for validation.
        test: nodes for tests.
    """

    starts: Ints
    neighbours: Ints
    features: Floats
    labels: Ints
    training: Ints
    validation: Ints
    test: Ints


def compressed(sources: Ints, targets: Ints, nodes: int) -> tuple[Ints, Ints]:
    """Return ``starts`` and ``neighbours`` of the edges from ``sources`` to ``targets``."""
    order = np.argsort(sources, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=nodes))])
    return starts.astype(np.int64), targets[order].astype(np.int64)


def read_reddit(folder: Path) -> Graph:
    """Read Reddit (Hamilton, Ying and Leskovec, 2017, https://arxiv.org/abs/1706.02216) from the files of reddit.zip.

    ``reddit_data.npz`` holds feature (nodes, features), label (nodes,) and node_types (nodes,): 1 training, 2 validation, 3 test;
    ``reddit_graph.npz`` is a scipy.sparse matrix of the format coo: row, col and shape.
    """
    data, graph = (_arrays(folder / name, dimensions) for name, dimensions in FILES.items())
    nodes = len(data["label"])
    if not len(data["feature"]) == len(data["node_types"]) == nodes:
        lengths = {name: len(array) for name, array in data.items()}
        raise ValueError(f"{folder / 'reddit_data.npz'} must hold as many features, labels and node_types, got {lengths}")
    shape, places = graph["shape"].tolist(), [graph[name] for name in ("row", "col")]
    inside = all(place.max() < nodes for place in places)
    if shape != [nodes, nodes] or len(places[0]) != len(places[1]) or not inside:
        raise ValueError(
            f"{folder / 'reddit_graph.npz'} must hold a square matrix of the {nodes} nodes of reddit_data.npz, with a row and a "
            f"col of each entry, got shape {shape} with {len(places[0])} row and {len(places[1])} col entries"
            f"{'' if inside else ', some outside'}"
        )
    starts, neighbours = compressed(places[0], places[1], nodes)
    training, validation, test = (np.flatnonzero(data["node_types"] == kind) for kind in (TRAIN, VALIDATION, TEST))
    if not len(training) or not len(validation) or not len(test):
        raise ValueError(
            f"node_types in {folder / 'reddit_data.npz'} must have training nodes ({TRAIN}), validation nodes ({VALIDATION}) and "
            f"test nodes ({TEST}), got {sorted(set(data['node_types'].tolist()))}"
        )
    return Graph(
        starts=starts,
        neighbours=neighbours,
        features=data["feature"].astype(np.float32, copy=False),
        labels=data["label"].astype(np.int64, copy=False),
        training=training,
        validation=validation,
        test=test,
    )


def _arrays(path: Path, dimensions: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Return the named arrays of a file; raise ValueError if it is missing or damaged."""
    wanted = f"expected a numpy archive with the arrays {', '.join(dimensions)}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in dimensions if name not in archive]
            arrays = {} if missing else {name: archive[name] for name in dimensions}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {wanted}") from None
    except Exception as error:  # numpy, zipfile, zlib and tokenize raise their own errors
        raise ValueError(f"{path} cannot be read ({error}): {wanted}") from None
    if missing:
        raise ValueError(f"{path} has no array {missing[0]}: {wanted}")
    return {name: _checked(array, dimensions[name], f"{name} in {path}") for name, array in arrays.items()}


def _checked(array: NDArray[Any], dimensions: int, name: str) -> NDArray[Any]:
    """Return an array of finite numbers in two dimensions, or of whole numbers from 0; raise ValueError for others."""
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimensions, got shape {array.shape}")
    if not array.size:
        raise ValueError(f"{name} must hold at least one number, got shape {array.shape}")
    right = np.full(array.shape, array.dtype.kind in "iuf")
    if right.all():
        right = np.isfinite(array) if dimensions == 2 else np.isfinite(array) & (array >= 0) & (array == np.floor(array))
    if not right.all():
        wanted = "finite numbers" if dimensions == 2 else "whole numbers from 0"
        raise ValueError(f"{name} must hold {wanted}, got {array[~right][0].item()!r}")
    return array if dimensions == 2 or np.can_cast(array.dtype, np.int64) else array.astype(np.int64)


def block_model(seed: int, nodes: int = 3000, beside: float = 8.0, elsewhere: float = 4.0, known_share: float = 0.3) -> Graph:
    """Return a stochastic block model of five classes in a circle; nodes mostly link to the two classes beside their own.

    The commonest class of the neighbours is not the class of a node, as it would be if nodes linked within their class. The model
    has to find the class between two others. (P. W. Holland, K. B. Laskey, S. Leinhardt, Stochastic blockmodels: First steps,
    1983, https://doi.org/10.1016/0378-8733(83)90021-7.)

    Args:
        seed: seed of all draws.
        nodes: number of nodes; each class has a fifth of them.
        beside: mean number of neighbours in the two classes beside a node's own.
        elsewhere: the same in its own class and the other two.
        known_share: share of nodes whose class is a feature; half of the other nodes are for training, a quarter each for
            validation and tests.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(nodes) % CLASSES)
    apart = np.abs(labels[:, None] - labels) % CLASSES
    expected = np.where((apart == 1) | (apart == CLASSES - 1), beside / 2, elsewhere / 3) / (nodes / CLASSES)
    pairs = np.argwhere(np.triu(random.random((nodes, nodes)) < expected, 1))
    known, training, validation, test = np.split(
        random.permutation(nodes), [int(nodes * (known_share + share * (1 - known_share))) for share in (0, 0.5, 0.75)]
    )
    both = np.concatenate([pairs, pairs[:, ::-1]])
    starts, neighbours = compressed(both[:, 0], both[:, 1], nodes)
    features = np.zeros((nodes, CLASSES + 1), dtype=np.float32)  # the class, one-hot, where it is known, and 1
    features[known, labels[known]] = 1
    features[:, CLASSES] = 1
    return Graph(
        starts=starts,
        neighbours=neighbours,
        features=features,
        labels=labels.astype(np.int64),
        training=training,
        validation=validation,
        test=test,
    )


def table_of_neighbours(graph: Graph) -> float:
    """Return the test accuracy of a table from the commonest class of the known neighbours to the commonest class."""
    known = graph.features[:, :-1]
    votes = np.array([known[graph.neighbours[a:b]].sum(0) for a, b in pairwise(graph.starts)])
    commonest = np.where(votes.any(1), votes.argmax(1), votes.shape[1])
    counts = np.zeros((votes.shape[1] + 1, int(graph.labels.max()) + 1))
    np.add.at(counts, (commonest[graph.training], graph.labels[graph.training]), 1)
    return float((counts.argmax(1)[commonest[graph.test]] == graph.labels[graph.test]).mean())


def sample_neighbourhood(graph: Graph, nodes: Ints, sizes: Sequence[int], random: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Sample the neighbourhood of some nodes, as in GraphSAGE (Hamilton et al., 2017).

    Args:
        graph: graph to sample from.
        nodes: different nodes, those of a batch.
        sizes: largest number of neighbours of each node, hop by hop; drawn without replacement.
        random: generator of the draws.

    Returns:
        The nodes of the neighbourhood, those of the batch first; and for each sampled edge the places of the neighbour and of
        the node.
    """
    edges = [np.empty((2, 0), dtype=np.int64)]
    found = frontier = np.asarray(nodes, dtype=np.int64)
    for size in sizes:
        edges.append(_sample_edges(graph, frontier, size, random))
        frontier = np.setdiff1d(edges[-1][0], found)
        found = np.concatenate([found, frontier])
    places = np.argsort(found)
    sources, targets = places[np.searchsorted(found, np.concatenate(edges, axis=1), sorter=places)]
    return found, sources, targets


def _sample_edges(graph: Graph, nodes: Ints, size: int, random: np.random.Generator) -> Ints:
    """Draw up to ``size`` edges to each node, shape (2, edges): neighbour, node.

    Nodes with more edges are sampled as by J. Bentley and R. Floyd (1987, https://doi.org/10.1145/30401.315746), in a time that
    does not grow with the number of edges; some posts of Reddit have 20,000.
    """
    degrees = graph.starts[nodes + 1] - graph.starts[nodes]
    few, many = np.flatnonzero(degrees <= size), np.flatnonzero(degrees > size)
    owners = np.repeat(few, degrees[few])
    ranks = np.arange(len(owners)) - np.repeat(np.cumsum(degrees[few]) - degrees[few], degrees[few])
    drawn = np.empty((len(many), size), dtype=np.int64)
    for place in range(size):
        last = degrees[many] - size + place
        rank = random.integers(0, last + 1)
        drawn[:, place] = np.where((drawn[:, :place] == rank[:, None]).any(1), last, rank)
    owners, ranks = np.concatenate([owners, np.repeat(many, size)]), np.concatenate([ranks, drawn.ravel()])
    return np.stack([graph.neighbours[graph.starts[nodes[owners]] + ranks], nodes[owners]])
