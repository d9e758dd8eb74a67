"""`torch_clipped.integrations` offers names whose libraries are imported when they are used, and named when they are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

import torch_clipped.integrations
from torch_clipped.integrations import log_clipping_stats

LOADED = """
import sys
import torch_clipped.integrations
from torch_clipped.integrations import log_clipping_stats
libraries = {"transformers", "accelerate", "lightning", "tensorboard", "wandb"}
print(*sorted({name.partition(".")[0] for name in sys.modules} & libraries))
"""


def test_no_library_is_imported_before_it_is_needed():
    root = Path(torch_clipped.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_name_whose_library_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch_clipped.integrations.trainer", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"HuggingFaceClippingCallback needs transformers.*pip install .*transformers"):
        torch_clipped.integrations.HuggingFaceClippingCallback  # noqa: B018 (looking it up is what is tested)


def test_names_are_listed_and_others_are_no_attributes():
    assert set(torch_clipped.integrations.__all__) <= set(dir(torch_clipped.integrations))
    assert set(torch_clipped.integrations._PLACES) == set(torch_clipped.integrations.__all__)
    assert torch_clipped.integrations.log_clipping_stats is log_clipping_stats
    with pytest.raises(AttributeError, match="ClipingCallback"):
        torch_clipped.integrations.ClipingCallback  # noqa: B018
