"""Steps on tensors that say they are on CUDA, without a GPU: torch's FakeTensorMode raises at every look of the host.

Run in a process of its own, with the folder for the compiled guard: prints as JSON which cases raised what. The tensors have no
numbers; each operation checks devices, types and shapes, and an operation that needs a number raises.
"""

import ctypes
import itertools
import json
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from torch_clipped import ClippedAdamW, ClippedSGD
from torch_clipped._engine import clip_sets, norms, state
from torch_clipped.clipping import CLIPPING_TYPES

CUDA_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>); }
"""
TYPES = [name for name in CLIPPING_TYPES if name != "none"]
OPTIMIZERS = {
    "SGD": (ClippedSGD, {"momentum": 0.9}),
    "AdamW": (ClippedAdamW, {}),
    "capturable AdamW": (ClippedAdamW, {"capturable": True}),
}
DTYPES = {"float32": [torch.float32], "bfloat16 and float32": [torch.bfloat16, torch.float32]}
DEVICES = {"one": ["cuda"], "two": ["cuda:0", "cuda:1"]}
SCALED = {"unscaled": False, "scaled": True}
CASES = ["/".join(case) for case in itertools.product(OPTIMIZERS, DTYPES, DEVICES, SCALED, TYPES)]


def prepare(folder):
    """Give the CPU build a device guard for CUDA and the fused kernels a version that does nothing."""
    source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
    source.write_text(CUDA_GUARD)
    root = Path(torch.__file__).parent
    paths = [f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    subprocess.run(["c++", "-std=c++17", "-shared", "-fPIC", *paths, source, "-lc10", "-o", library], check=True)
    ctypes.CDLL(str(library))
    kernels = torch.library.Library("aten", "IMPL", "Meta")
    for name in ("_fused_sgd_", "_fused_adamw_"):
        kernels.impl(name, lambda *args, **kwargs: None)
    norms.PLAIN.add(FakeTensor)
    clip_sets.is_real = state.is_real = lambda tensor: True  # else these would be dry runs
    return kernels


def take_steps(case):
    optimizer, dtypes, devices, scaled, clipping_type = case.split("/")
    cls, options = OPTIMIZERS[optimizer]
    with FakeTensorMode():
        devices, dtypes = DEVICES[devices], DTYPES[dtypes]
        places = [(devices[i % len(devices)], dtypes[i // 2 % len(dtypes)]) for i in range(4)]
        params = [torch.nn.Parameter(torch.empty(4, 5, device=device, dtype=dtype)) for device, dtype in places]
        made = cls(params, lr=0.1, clipping_type=clipping_type, clipping_window=5, **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.empty_like(p)
            if SCALED[scaled]:
                made.grad_scale, made.found_inf = torch.ones((), device="cuda"), torch.zeros((), device="cuda")
            made.step()
            assert made.param_groups[0]["clipping_memory_steps"].is_cuda


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
            (*_, place) = traceback.extract_tb(error.__traceback__)
            raised[case] = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    del kernels
    print(json.dumps({"notices": look(), "raised": raised, "cases": len(CASES)}))


if __name__ == "__main__":
    main(sys.argv[1])
