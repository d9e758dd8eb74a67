"""Task graph of ``compare``: classify nodes with GraphConv layers on sampled neighbourhoods.

By default: five classes in a stochastic block model. The model sees the edges, and the classes of three nodes in ten.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..common.packages import needed
from .graphs import Graph, Ints, block_model, read_reddit, sample_neighbourhood, table_of_neighbours
from .task import Grids
from .task_parts import commonest_share, device_of, evaluating, evenly, seeded

SIZES = (25, 10)  # sampled neighbours, hop by hop, as in GraphSAGE
EVALUATED = 2048  # largest number of nodes of each kind
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Batch:
    """Sampled neighbourhood; the labels are those of its first nodes."""

    features: Tensor
    edges: Tensor  # shape (2, edges): neighbour, node
    labels: Tensor


class GraphNet(nn.Module):
    """GraphConv layer (Morris et al., 2019, https://arxiv.org/abs/1810.02244) for each hop, then a linear one."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        layer = needed("torch_geometric.nn", "torch_geometric", "task graph").GraphConv
        widths = [features, *[width] * len(SIZES)]
        self.layers = nn.ModuleList(layer(a, b, aggr="mean") for a, b in pairwise(widths))
        self.logits = nn.Linear(width, classes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of the nodes that have a label, shape (labels, classes)."""
        device = device_of(self)
        hidden, edges = batch.features.to(device), batch.edges.to(device)
        for layer in self.layers:
            hidden = layer(hidden, edges).relu()
        logits: Tensor = self.logits(hidden[: len(batch.labels)])
        return logits


class GraphTask:
    """Task to classify nodes; see :class:`experiments.compare.task.Task`."""

    name = "graph"
    metric = "accuracy"
    decays = False

    def __init__(
        self, graph: Graph, source: str, width: int, batch: int, steps: int, evaluated: int, trivial: tuple[str, float]
    ) -> None:
        self.graph, self.source, self.width, self.steps = graph, source, width, steps
        self.batch = min(batch, len(graph.training))
        self.classes = int(graph.labels.max()) + 1
        self.trivial = trivial
        self.learning_rates: Grids = {"SGD": (0.05, 0.1, 0.2, 0.4), "Adam": (0.002, 0.004, 0.008, 0.016)}
        parts = {"train": graph.training, "validation": graph.validation, "test": graph.test}
        self._parts = {name: _evaluation_batches(graph, nodes, evaluated) for name, nodes in parts.items()}

    def make_model(self, seed: int) -> nn.Module:
        """Return a model, the same for the same seed."""
        return seeded(lambda: GraphNet(self.graph.features.shape[1], self.width, self.classes), seed)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield training nodes with their neighbourhoods."""
        random = np.random.default_rng(seed)
        while True:
            chosen = random.choice(self.graph.training, self.batch, replace=False)
            yield _sampled(self.graph, chosen, random)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy, in nats."""
        logits: Tensor = model(batch)
        return cross_entropy(logits, batch.labels.to(logits.device))

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the accuracy on nodes of a part."""
        with evaluating(model):
            return _accuracy(model, self._parts[part])


def _sampled(graph: Graph, nodes: Ints, random: np.random.Generator) -> Batch:
    found, sources, targets = sample_neighbourhood(graph, nodes, SIZES, random)
    return Batch(
        torch.from_numpy(graph.features[found]),
        torch.from_numpy(np.stack([sources, targets])),
        torch.from_numpy(graph.labels[nodes]),
    )


def _evaluation_batches(graph: Graph, nodes: Ints, most: int) -> list[Batch]:
    """Return batches of a fixed part of the nodes, the same in every run."""
    random = np.random.default_rng(0)
    chosen = nodes[evenly(len(nodes), most)]
    return [_sampled(graph, chosen[i : i + EVALUATION_BATCH], random) for i in range(0, len(chosen), EVALUATION_BATCH)]


def _accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    right = [model(batch).argmax(1).cpu() == batch.labels for batch in batches]
    return float(torch.cat(right).double().mean())


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> GraphTask:
    """Return Reddit from the folder ``data``, or the block model of ``seed``; raise ValueError for missing or damaged files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from torch, when torch_geometric is imported
        needed("torch_geometric.nn", "torch_geometric", "task graph")
    evaluated = 200 if quick else EVALUATED
    if data is not None:
        graph = read_reddit(data)
        source = f"GraphConv on Reddit: {len(graph.labels)} nodes, {len(graph.neighbours)} edges"
        training, test = (torch.from_numpy(graph.labels[nodes]) for nodes in (graph.training, graph.test))
        trivial = ("commonest class", commonest_share(training, test))
        return GraphTask(graph, source, 128, 32 if quick else 512, 10 if quick else 1000, evaluated, trivial)
    graph = block_model(seed)
    nodes, edges = len(graph.labels), len(graph.neighbours) // 2
    source = f"GraphConv on a stochastic block model of {nodes} nodes and {edges} edges, seed {seed}"
    trivial = ("table of the commonest known neighbour", table_of_neighbours(graph))
    return GraphTask(graph, source, 32, 64, 30 if quick else 400, evaluated, trivial)
