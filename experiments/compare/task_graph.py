"""The task graph of ``compare``: classes of nodes by GraphConv layers on sampled neighbourhoods.

By default: two sides in a stochastic block model, where a tenth of the nodes tell their side. The model knows nothing of a graph
but such nodes and the edges, so it is also asked for the sides in Zachary's karate club, a graph on which it was not trained and
of which it sees the sides of the two leaders.
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

from .graphs import Graph, Ints, block_model, karate_club, read_reddit, sample_neighbourhood
from .task_parts import device_of, evaluating, evenly, needed, seeded

SIZES = (25, 10)  # neighbours that are sampled, hop by hop: those of GraphSAGE
EVALUATED = 2048  # nodes of each kind at the most
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Batch:
    """A sampled neighbourhood; the labels are those of its first nodes."""

    features: Tensor
    edges: Tensor  # shape (2, edges): neighbour, node
    labels: Tensor


class GraphNet(nn.Module):
    """A GraphConv layer (Morris et al., 2019, https://arxiv.org/abs/1810.02244) for each hop, then a linear one."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        layer = needed("torch_geometric.nn", "torch_geometric", "task graph").GraphConv
        widths = [features, *[width] * len(SIZES)]
        self.layers = nn.ModuleList(layer(a, b, aggr="mean") for a, b in pairwise(widths))
        self.logits = nn.Linear(width, classes)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the nodes that have a label, shape (labels, classes)."""
        device = device_of(self)
        hidden, edges = batch.features.to(device), batch.edges.to(device)
        for layer in self.layers:
            hidden = layer(hidden, edges).relu()
        logits: Tensor = self.logits(hidden[: len(batch.labels)])
        return logits


class GraphTask:
    """Classes of nodes; see :class:`experiments.compare.task.Task`."""

    name = "graph"
    metric = "accuracy"

    def __init__(
        self, graph: Graph, source: str, width: int, batch: int, steps: int, evaluated: int, other: Graph | None = None
    ) -> None:
        self.graph, self.source, self.width, self.steps = graph, source, width, steps
        self.batch = min(batch, len(graph.training))
        self.classes = int(graph.labels.max()) + 1
        self.evaluation = {
            "train": _evaluation_batches(graph, graph.training, evaluated),
            "validation": _evaluation_batches(graph, graph.validation, evaluated),
        }
        if other is not None:
            self.evaluation["karate club"] = _evaluation_batches(other, other.validation, evaluated)

    def make_model(self, seed: int) -> nn.Module:
        """The same for the same seed."""
        return seeded(lambda: GraphNet(self.graph.features.shape[1], self.width, self.classes), seed)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Training nodes with their neighbourhoods."""
        random = np.random.default_rng(seed)
        while True:
            chosen = random.choice(self.graph.training, self.batch, replace=False)
            yield _sampled(self.graph, chosen, random)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        logits: Tensor = model(batch)
        return cross_entropy(logits, batch.labels.to(logits.device))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Also "karate club" where the sides in that are asked for: its 32 members beside the leaders."""
        with evaluating(model):
            return {name: _accuracy(model, batches) for name, batches in self.evaluation.items()}


def _sampled(graph: Graph, nodes: Ints, random: np.random.Generator) -> Batch:
    found, sources, targets = sample_neighbourhood(graph, nodes, SIZES, random)
    return Batch(
        torch.from_numpy(graph.features[found]),
        torch.from_numpy(np.stack([sources, targets])),
        torch.from_numpy(graph.labels[nodes]),
    )


def _evaluation_batches(graph: Graph, nodes: Ints, most: int) -> list[Batch]:
    """Of a fixed part of the nodes, the same in every run."""
    random = np.random.default_rng(0)
    chosen = nodes[evenly(len(nodes), most)]
    return [_sampled(graph, chosen[i : i + EVALUATION_BATCH], random) for i in range(0, len(chosen), EVALUATION_BATCH)]


def _accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    right = [model(batch).argmax(1).cpu() == batch.labels for batch in batches]
    return float(torch.cat(right).double().mean())


def load(data: Path | None, pretrained: Path | None, seed: int, quick: bool) -> GraphTask:
    """Reddit from the folder ``data``, or the block model of ``seed``; ValueError names what is missing or damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # parts of torch that it uses when it is imported
        needed("torch_geometric.nn", "torch_geometric", "task graph")
    evaluated = 200 if quick else EVALUATED
    if data is not None:
        graph = read_reddit(data)
        source = f"GraphConv on Reddit: {len(graph.labels)} nodes, {len(graph.neighbours)} edges"
        return GraphTask(graph, source, width=128, batch=32 if quick else 512, steps=10 if quick else 1000, evaluated=evaluated)
    graph = block_model(seed)
    nodes, edges = len(graph.labels), len(graph.neighbours) // 2
    source = f"GraphConv on a stochastic block model of {nodes} nodes and {edges} edges, seed {seed}; and on the karate club"
    return GraphTask(graph, source, width=32, batch=64, steps=30 if quick else 500, evaluated=evaluated, other=karate_club())
