"""Steps on tensors that say they are on CUDA, without a GPU: torch's FakeTensorMode raises at every look of the host.

Run in a process of its own, with the folder for the compiled guard: prints as JSON which cases raised what. The tensors have no
numbers; each operation checks devices, types and shapes, and an operation that needs a number raises.
"""

import ctypes
import json
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from allpairspy import AllPairs
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from experiments.launches.counting import CountedOperations
from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD
from torch_clipped._engine import clip_sets, norms, state
from torch_clipped.clipping import CLIPPING_TYPES

CUDA_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>); }
"""
TYPES = [name for name in CLIPPING_TYPES if name != "none"]
COUNTED = 10  # tensors of the steps whose operations are counted
OPTIMIZERS = {
    "SGD": (ClippedSGD, {"momentum": 0.9}),
    "Adam": (ClippedAdam, {}),
    "AdamW": (ClippedAdamW, {}),
    "capturable AdamW": (ClippedAdamW, {"capturable": True}),
}
DTYPES = {"float32": [torch.float32], "bfloat16 and float32": [torch.bfloat16, torch.float32]}
DEVICES = {
    "one": (["cuda"], {}),
    "one, with spikes": (["cuda"], {"clipping_action": "skip", "clipping_cap": 2.0}),
    "two": (["cuda:0", "cuda:1"], {}),
    "CUDA and CPU": (["cuda", "cpu"], {}),
    "CUDA and CPU, propagate": (["cuda", "cpu"], {"nonfinite": "propagate"}),  # no skip that the host would have to know
}
SCALED = {"unscaled": False, "scaled": True}
ROWS = AllPairs([list(axis) for axis in (OPTIMIZERS, DTYPES, DEVICES, SCALED, TYPES)])
CASES = [  # torch takes capturable steps on accelerators alone
    "/".join(["AdamW" if "capturable" in row[0] and "CPU" in row[2] else row[0], *row[1:]]) for row in map(list, ROWS)
]


def looks_once(case):
    """Return whether the host has to know if the step is skipped: no kernel can be told so on two kinds of device."""
    _, _, devices, scaled, _ = case.split("/")
    return devices == "CUDA and CPU" or (devices == "CUDA and CPU, propagate" and SCALED[scaled])


def prepare(folder):
    """Give the CPU build a device guard for CUDA and the fused kernels a version that does nothing."""
    source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
    source.write_text(CUDA_GUARD)
    root = Path(torch.__file__).parent
    paths = [f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run(["c++", "-std=c++20", abi, "-shared", "-fPIC", *paths, source, "-lc10", "-o", library], check=True)
    ctypes.CDLL(str(library))
    kernels = torch.library.Library("aten", "IMPL", "Meta")
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):
        kernels.impl(name, lambda *args, **kwargs: None)
    clip_fake_tensors()
    return kernels


def clip_fake_tensors():
    """Let the engine clip fake tensors as if they had numbers; else a step with them would be a dry run.

    This is all that the harness knows of the inside of the engine: to be adapted where that changes.
    """
    norms.PLAIN.add(FakeTensor)
    clip_sets.is_real = state.is_real = lambda tensor: True


def take_steps(case):
    optimizer, dtypes, devices, scaled, clipping_type = case.split("/")
    (cls, options), (homes, more) = OPTIMIZERS[optimizer], DEVICES[devices]
    with FakeTensorMode():
        places = [(homes[i % len(homes)], DTYPES[dtypes][i // 2 % len(DTYPES[dtypes])]) for i in range(4)]
        params = [torch.nn.Parameter(torch.empty(4, 5, device=device, dtype=dtype)) for device, dtype in places]
        made = cls(params, lr=0.1, clipping_type=clipping_type, clipping_window=5, **options, **more)
        for _ in range(3):
            one_step(made, params, SCALED[scaled])
            assert made.param_groups[0]["clipping_memory_steps"].is_cuda


def one_step(optimizer, params, is_scaled=False):
    for p in params:
        p.grad = torch.empty_like(p)
    if is_scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
    optimizer.step()


def counted(optimizer, clipping_type, tensors):
    """Return how many operations the fourth step of float32 on one device takes: small ones, and kernels for lists."""
    cls, options = OPTIMIZERS[optimizer]
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.empty(16, 16, device="cuda")) for _ in range(tensors)]
        made = cls(params, lr=0.1, clipping_type=clipping_type, **options)
        for _ in range(3):
            one_step(made, params)
        for p in params:
            p.grad = torch.empty_like(p)
        with CountedOperations() as operations:
            made.step()
    return operations.small, operations.foreach


def look():
    """Return whether the mode notices a look of the host, and a mix of devices."""
    with FakeTensorMode():
        value = torch.ones(2, device="cuda")
        noticed = []
        for wrong in (lambda: bool(value[0] > 0), lambda: value + torch.ones(2, device="cuda:1")):
            try:
                wrong()
                noticed.append(False)
            except RuntimeError:
                noticed.append(True)
    return noticed


def main(folder):
    kernels = prepare(folder)
    raised = {}
    for case in CASES:
        try:
            take_steps(case)
        except Exception as error:
            raised[case] = f"{type(error).__name__}: {error} ({place_in_package(error)})"
    counts = {f"{optimizer}/{name}": counted(optimizer, name, COUNTED) for optimizer in ("SGD", "AdamW") for name in TYPES}
    del kernels
    print(json.dumps({"notices": look(), "raised": raised, "cases": len(CASES), "counts": counts}))


def place_in_package(error):
    """Return the innermost function of torch_clipped that the error went through."""
    places = traceback.extract_tb(error.__traceback__)
    ours = [place for place in places if "torch_clipped" in Path(place.filename).parts] or places
    return f"{Path(ours[-1].filename).name}, {ours[-1].name}"


if __name__ == "__main__":
    main(sys.argv[1])
