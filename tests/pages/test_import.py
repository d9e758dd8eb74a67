"""What `import torch_clipped` brings along: torch and numpy only, and none of torch that torch itself has not loaded yet."""

import subprocess
import sys

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
