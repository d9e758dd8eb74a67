"""What functions need that run in the processes of a group."""

import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch


@contextmanager
def device_arithmetic():
    """Takes the tensor arithmetic of accelerators on the CPU, by denying that the CPU is the host.

    Optimizers must be made within: the memory that they prepare depends on it.
    """
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("torch_clipped.") and hasattr(module, "on_host"):
                stack.enter_context(patch.object(module, "on_host", lambda device: False))
        yield
