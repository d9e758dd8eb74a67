"""Versions and machine that the numbers were computed with."""

from __future__ import annotations

import math
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torch_clipped


def versions() -> dict[str, str]:
    """Return the versions of Python, torch, numpy and this package."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_clipped": torch_clipped.__version__,
        "numpy": np.__version__,
    }


def machine(device: str) -> dict[str, Any]:
    """Return the processor, the number of threads and the accelerator."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "device": name}


def cpu_model() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def check_device(device: str) -> None:
    """Raise ValueError if torch cannot compute on `device`."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def resident(name: str) -> float:
    """Return resident memory in bytes: now (VmRSS) or at its peak (VmHWM); NaN if the system does not report it."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024.0 * int(found.group(1)) if found else math.nan
