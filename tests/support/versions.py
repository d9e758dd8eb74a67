"""Skips for what a release of torch does not have."""

import pytest
import torch

TORCH = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))


OLDER_TORCH = (  # what releases before 2.12 warn of that is not ours
    *("TypedStorage is deprecated", "torch.distributed is unavailable or uninitialized"),
    *("DTensor random operators may not have complete support", "The epoch parameter in `scheduler.step"),
)
if TORCH >= (2, 12):
    OLDER_TORCH = ()


def needs_torch(version, what):
    """Skip a test on releases of torch before ``version``, like "2.13", that do not have ``what``."""
    is_older = tuple(map(int, version.split("."))) > TORCH
    return pytest.mark.skipif(is_older, reason=f"{what} needs torch {version}")
