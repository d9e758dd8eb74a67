"""Running means of parameters, each of as many values as were added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["RunningMeans"]


class RunningMeans:
    """The means of parameters over time, updated in place: mean_k = mean_(k-1) + (x_k - mean_(k-1)) / k."""

    def __init__(self) -> None:
        self._means: dict[Tensor, Tensor] = {}
        self._counts: dict[Tensor, int] = {}  # how many values are in them; none: the mean is an unused tensor

    @torch.no_grad()
    def add(self, params: Iterable[Tensor]) -> None:
        """Take in the present values; parameters that are not given or do not require gradients lose their mean."""
        alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
        averaged = [p for p in params if p.requires_grad]
        for p in self._means.keys() - set(averaged):
            del self._means[p]
            self._counts.pop(p, None)
        for p in averaged:
            count = self._counts[p] = self._counts.get(p, 0) + 1
            if p not in self._means:
                self._means[p] = p.detach().to(_mean_type(p), copy=True)
            elif count == 1:
                self._means[p].copy_(p)
            elif p.dtype is not self._means[p].dtype:  # one by one, so that only one tensor is held in both types
                self._means[p].lerp_(p.to(self._means[p].dtype), 1 / count)
            else:
                alike[count, type(p), p.device, p.dtype].append(p)
        for (count, *_), members in alike.items():
            torch._foreach_lerp_([self._means[p] for p in members], members, 1 / count)

    @torch.no_grad()
    def write_back_(self) -> None:
        """Make the parameters their means, and begin anew."""
        for p in self._counts:
            p.copy_(self._means[p])
        self._counts.clear()

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """The counts and the means of these parameters, by position; None where there is no mean."""
        return {
            "counts": [self._counts.get(p, 0) for p in params],
            "means": [self._means[p] if p in self._counts else None for p in params],
        }

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], params: Sequence[Tensor]) -> RunningMeans:
        """Copies of the means for these parameters; ValueError if they are of others."""
        counts, means = state_dict["counts"], state_dict["means"]
        if not len(counts) == len(means) == len(params):
            raise ValueError(f"state_dict must be of {len(params)} parameters, as the optimizer has, got {len(means)}")
        new = cls()
        for i, (p, count, mean) in enumerate(zip(params, counts, means, strict=True)):
            if mean is None:
                continue
            if mean.shape != p.shape:
                shapes = f"{tuple(p.shape)}, got {tuple(mean.shape)}"
                raise ValueError(f"state_dict must be of the optimizer's parameters, but mean {i} must have shape {shapes}")
            new._means[p], new._counts[p] = mean.to(p.device, _mean_type(p), copy=True), count
        return new


def _mean_type(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)  # a thousandth of a difference is lost in 8 bits
