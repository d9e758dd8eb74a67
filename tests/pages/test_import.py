"""Modules that `import torch_clipped` loads (torch and numpy only, and of torch what torch has loaded), and public names."""

import subprocess
import sys

import torch_clipped

REPORT = """
import sys
import torch
before = set(sys.modules)
import torch_clipped
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] != "torch_clipped"))
"""


def test_import_loads_nothing_but_the_library_itself():
    done = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_other_way_is_a_public_name():
    for name in ("Clipped", "clip_optimizer", "clip_gradients_", "GradientClipper", "register_clipping", "Clipping"):
        assert name in torch_clipped.__all__
