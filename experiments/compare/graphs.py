"""Graphs with node features and classes: Reddit's files, and two small graphs that are always there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

TRAIN, VALIDATION = 1, 2  # among the node_types of Reddit; 3 is for tests
FILES = {
    "reddit_data.npz": {"feature": 2, "label": 1, "node_types": 1},  # arrays and their dimensions
    "reddit_graph.npz": {"row": 1, "col": 1, "shape": 1},
}
# The 78 friendships of the 34 members, each written once; and the members who stayed with Mr. Hi (number 1) when the club split,
# where the others went with the officers (number 34). W. W. Zachary, An Information Flow Model for Conflict and Fission in Small
# Groups, Journal of Anthropological Research 33(4), 1977, pages 452-473, https://www.jstor.org/stable/3629752.
KARATE_FRIENDS = {
    1: (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 18, 20, 22, 32),
    2: (3, 4, 8, 14, 18, 20, 22, 31),
    3: (4, 8, 9, 10, 14, 28, 29, 33),
    4: (8, 13, 14),
    5: (7, 11),
    6: (7, 11, 17),
    7: (17,),
    9: (31, 33, 34),
    10: (34,),
    14: (34,),
    15: (33, 34),
    16: (33, 34),
    19: (33, 34),
    20: (34,),
    21: (33, 34),
    23: (33, 34),
    24: (26, 28, 30, 33, 34),
    25: (26, 28, 32),
    26: (32,),
    27: (30, 34),
    28: (34,),
    29: (32, 34),
    30: (33, 34),
    31: (33, 34),
    32: (33, 34),
    33: (34,),
}
KARATE_MR_HI = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 17, 18, 20, 22)
KARATE_MEMBERS = 34


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph in compressed rows: the neighbours of node i are ``neighbours[starts[i]:starts[i + 1]]``.

    Attributes:
        starts: shape (nodes + 1,).
        neighbours: shape (edges,), each edge in both directions.
        features: shape (nodes, features).
        labels: the class of each node, shape (nodes,).
        training: nodes whose classes are trained on.
        validation: nodes whose classes are held out.
    """

    starts: Ints
    neighbours: Ints
    features: Floats
    labels: Ints
    training: Ints
    validation: Ints


def compressed(sources: Ints, targets: Ints, nodes: int) -> tuple[Ints, Ints]:
    """``starts`` and ``neighbours`` of the edges from ``sources`` to ``targets``."""
    order = np.argsort(sources, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=nodes))])
    return starts.astype(np.int64), targets[order].astype(np.int64)


def read_reddit(folder: Path) -> Graph:
    """Reddit (Hamilton, Ying and Leskovec, 2017, https://arxiv.org/abs/1706.02216) as it comes in reddit.zip.

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
    training, validation = (np.flatnonzero(data["node_types"] == kind) for kind in (TRAIN, VALIDATION))
    if not len(training) or not len(validation):
        raise ValueError(
            f"node_types in {folder / 'reddit_data.npz'} must have training nodes ({TRAIN}) and validation nodes "
            f"({VALIDATION}), got {sorted(set(data['node_types'].tolist()))}"
        )
    return Graph(
        starts=starts,
        neighbours=neighbours,
        features=data["feature"].astype(np.float32, copy=False),
        labels=data["label"].astype(np.int64, copy=False),
        training=training,
        validation=validation,
    )


def _arrays(path: Path, dimensions: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Those arrays of a file; ValueError if it is missing or damaged."""
    wanted = f"expected a numpy archive with the arrays {', '.join(dimensions)}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in dimensions if name not in archive]
            arrays = {} if missing else {name: archive[name] for name in dimensions}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {wanted}") from None
    except Exception as error:  # of many kinds: numpy, zipfile, zlib and tokenize have their own
        raise ValueError(f"{path} cannot be read ({error}): {wanted}") from None
    if missing:
        raise ValueError(f"{path} has no array {missing[0]}: {wanted}")
    return {name: _checked(array, dimensions[name], f"{name} in {path}") for name, array in arrays.items()}


def _checked(array: NDArray[Any], dimensions: int, name: str) -> NDArray[Any]:
    """Finite numbers where there are two dimensions, else whole numbers from 0; ValueError if it holds others or none."""
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


def karate_club() -> Graph:
    """Zachary's karate club: the sides of the two leaders are known, those of the other 32 members are held out."""
    pairs = np.array([(a - 1, b - 1) for a, friends in KARATE_FRIENDS.items() for b in friends])
    labels = np.array([0 if member in KARATE_MR_HI else 1 for member in range(1, KARATE_MEMBERS + 1)])
    leaders = (0, KARATE_MEMBERS - 1)
    held_out = np.arange(1, KARATE_MEMBERS - 1)
    return _two_sides(pairs, labels, np.array(leaders), held_out[:0], held_out)


def block_model(seed: int, nodes: int = 2000, inside: float = 7.0, across: float = 2.0, known_share: float = 0.1) -> Graph:
    """A stochastic block model (Holland, Laskey and Leinhardt, 1983, https://doi.org/10.1016/0378-8733(83)90021-7) of two sides.

    Args:
        seed: of all that is drawn.
        nodes: half of them on each side.
        inside: mean number of neighbours on a node's own side.
        across: the same on the other side.
        known_share: of the nodes whose side is told; half of the others are trained on, half held out.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(nodes) % 2)
    expected = np.where(labels[:, None] == labels, inside, across) / (nodes / 2)
    pairs = np.argwhere(np.triu(random.random((nodes, nodes)) < expected, 1))
    order = random.permutation(nodes)
    known, training, held_out = np.split(order, [int(nodes * known_share), int(nodes * (1 + known_share) / 2)])
    return _two_sides(pairs, labels, known, training, held_out)


def _two_sides(pairs: Ints, labels: Ints, known: Ints, training: Ints, held_out: Ints) -> Graph:
    """The features of a node are its side, one-hot, where that is known, and 1."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    starts, neighbours = compressed(both[:, 0], both[:, 1], len(labels))
    features = np.zeros((len(labels), 3), dtype=np.float32)
    features[known, labels[known]] = 1
    features[:, 2] = 1
    return Graph(
        starts=starts,
        neighbours=neighbours,
        features=features,
        labels=labels.astype(np.int64),
        training=training,
        validation=held_out,
    )


def sample_neighbourhood(graph: Graph, nodes: Ints, sizes: Sequence[int], random: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """The sampled neighbourhood of some nodes, as in GraphSAGE (Hamilton et al., 2017).

    Args:
        graph: where from.
        nodes: the nodes of a batch, none twice.
        sizes: how many neighbours of each node are taken at most, hop by hop; without replacement.
        random: what draws.

    Returns:
        The nodes of the neighbourhood, those of the batch first; and of each sampled edge the place of its neighbour and of
        the node to which it is one.
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
    """Up to ``size`` edges to each node, shape (2, edges): neighbour, node.

    Nodes with more are sampled as by J. Bentley and R. Floyd (1987, https://doi.org/10.1145/30401.315746), in time that does
    not grow with their neighbours, of which some posts of Reddit have 20,000.
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
