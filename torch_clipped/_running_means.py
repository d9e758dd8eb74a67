"""Running means of parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ._engine.types import Entries, StateDict
from ._engine.validation import check_fits, fits, integer

__all__ = ["RunningMeans"]


class RunningMeans:
    """Means of parameters over time, updated in place: mean_k = mean_(k-1) + (x_k - mean_(k-1)) / k."""

    def __init__(self) -> None:
        self._means: dict[Tensor, Tensor] = {}
        self._counts: dict[Tensor, int] = {}  # number of values in each mean; without an entry the mean is an unused tensor

    @torch.no_grad()
    def add(self, params: Iterable[Tensor]) -> None:
        """Add the present values; drop the means of parameters that are not given or do not require gradients."""
        alike: defaultdict[tuple[int, object, object, object], list[Tensor]] = defaultdict(list)
        averaged = [p for p in params if p.requires_grad]
        for p in self._means.keys() - set(averaged):
            del self._means[p]
            self._counts.pop(p, None)
        for p in averaged:
            mean = self._as_it_is_now(p)
            count = self._counts.get(p, 0) + 1
            if mean is None:
                count, self._means[p] = 1, p.detach().to(_mean_type(p), copy=True)
            elif count == 1:
                mean.copy_(p)
            elif p.dtype is not mean.dtype:  # one by one, so that only one tensor is in memory in both types
                mean.lerp_(p.to(mean.dtype), 1 / count)
            else:
                alike[count, type(p), p.device, p.dtype].append(p)
            self._counts[p] = count
        for (count, *_), members in alike.items():
            torch._foreach_lerp_([self._means[p] for p in members], members, 1 / count)

    def _as_it_is_now(self, p: Tensor) -> Tensor | None:
        """Return the mean of a parameter, converted to its present device and type; None without a mean of its present shape."""
        mean, dtype = self._means.get(p), _mean_type(p)
        if mean is None or (mean.dtype is dtype and mean.shape == p.shape and mean.device == p.device):
            return mean
        if not fits(mean, p):
            return None
        self._means[p] = mean.to(p.device, dtype)
        return self._means[p]

    @torch.no_grad()
    def write_back_(self) -> None:
        """Make the parameters equal to their means, and start anew; an entry whose mean is not finite does not change."""
        for p in self._counts:
            mean = self._as_it_is_now(p)
            if mean is not None:
                p.copy_(torch.where(mean.isfinite(), mean, p))
        self._counts.clear()

    def state_dict(self, params: Sequence[Tensor]) -> StateDict:
        """Return the counts and copies of the means of these parameters, by position; None for a parameter without a mean."""
        known = [p in self._counts and fits(self._means[p], p) for p in params]
        return {
            "counts": [self._counts[p] if is_known else 0 for p, is_known in zip(params, known, strict=True)],
            "means": [self._means[p].clone() if is_known else None for p, is_known in zip(params, known, strict=True)],
        }

    @classmethod
    @torch.no_grad()
    def from_state_dict(cls, state_dict: Entries, params: Sequence[Tensor], largest: int) -> RunningMeans:
        """Copy the means of these parameters, of at most ``largest`` values each; raise ValueError if they do not fit."""
        counts, means = state_dict["counts"], state_dict["means"]
        for name, values in (("counts", counts), ("means", means)):
            if not isinstance(values, (list, tuple)):
                raise ValueError(f"{name} must be a list of one value a parameter, got a {type(values).__name__}")
            if len(values) != len(params):
                raise ValueError(f"{name} must be of {len(params)} parameters, as the optimizer has, got {len(values)}")
        new = cls()
        for i, (p, count, mean) in enumerate(zip(params, counts, means, strict=True)):
            count = integer(f"counts[{i}]", count, smallest=0)
            if count > largest:
                raise ValueError(f"counts[{i}] must be at most {largest}, the steps that are averaged, got {count}")
            if count:
                check_fits(f"means[{i}]", mean, p)
                new._means[p], new._counts[p] = mean.to(p.device, _mean_type(p), copy=True), count
            elif mean is not None:
                raise ValueError(f"means[{i}] must be None where counts[{i}] is 0, got a {type(mean).__name__}")
        return new


def _mean_type(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)  # 8 bits lose a thousandth of a difference
