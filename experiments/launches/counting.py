"""Count the torch operations of a step, and its calls of functions of this package."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = {  # operations that change a tensor's view, and launch nothing
    *("alias", "as_strided", "chunk", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty"),
    *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze"),
    *("view", "view_as_real", "_unsafe_view"),
}
LISTS = ("_foreach", "_fused", "_amp_foreach")


class CountedOperations(TorchDispatchMode):
    """Count the operations that are dispatched while this mode is active.

    An operation on lists without a CUDA kernel counts as one small operation for each tensor: see :func:`takes_one_kernel`. One
    operation may launch more than one kernel, for example a sort or an operation on hundreds of tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.small = self.foreach = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1].rstrip("_")
        if name.startswith(LISTS):
            is_fast = takes_one_kernel(name, args)
            self.foreach += is_fast
            self.small += 0 if is_fast else len(args[0])
        elif func.namespace == "aten" and name not in NO_KERNEL:  # "prim" and "profiler" launch nothing
            self.small += 1
        return func(*args, **(kwargs or {}))


def takes_one_kernel(name: str, args: Sequence[Any]) -> bool:
    """Return whether CUDA has one kernel for all tensors of the lists; otherwise torch takes them one by one.

    The conditions are those of ``check_fast_path_restrictions`` in torch's ForeachUtils.h, and further ones of some operations.
    They are repeated here because torch has no such kernels on the CPU.
    """
    if name.startswith("_fused"):
        return True
    lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
    device, dtype, everything = lists[0][0].device, lists[0][0].dtype, [t for each in lists for t in each]
    dtypes = [{t.dtype for t in each} for each in lists]
    if max(map(len, dtypes)) > 1 or (name != "_foreach_copy" and len(set().union(*dtypes)) > 1):
        return False
    if not all(t.device == device and t.layout is torch.strided and _is_dense(t) for t in everything):
        return False
    if not all(_lies_like(one, t) for each in lists[1:] for one, t in zip(lists[0], each, strict=True)):
        return False
    if name.startswith("_amp"):
        return True
    if name == "_foreach_norm":
        return dtype.is_floating_point and args[1] in (1, 2, math.inf)
    if any(isinstance(a, Tensor) and a.device == device and a.dtype is not dtype for a in args):
        return False
    numbers = [n for a in args[1:] for n in (a if isinstance(a, (list, tuple)) else [a])]
    makes_floats = name == "_foreach_div" or any(isinstance(n, float) for n in numbers)
    return dtype.is_floating_point or dtype.is_complex or not makes_floats


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _lies_like(one: Tensor, other: Tensor) -> bool:
    strides = zip(one.shape, one.stride(), other.stride(), strict=False)
    return one.shape == other.shape and all(a == b for size, a, b in strides if size != 1)


def called_modules(step: Callable[[], Any]) -> list[str]:
    """Return the module of each function of this package that a step calls, in order."""
    modules: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith("torch_clipped.") and not frame.f_code.co_name.startswith("<"):
            modules.append(name)

    former = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(former)
    return modules
