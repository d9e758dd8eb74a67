"""The code of docs/integrations.md runs, and does what the page says."""

import json
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()


def run(title):
    """Run the only block of a section; the names it made."""
    (section,) = (part for part in PAGE.split("\n## ") if part.startswith(f"{title}\n"))
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    names = {}
    exec(compile(block, f"integrations.md, {title}", "exec"), names)
    return names


def test_trainer():
    pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    history = run("Trainer")["trainer"].state.log_history
    assert [logs["clipping/steps"] for logs in history if "loss" in logs] == [5, 10, 15, 20]
    json.dumps(history, allow_nan=False)


def test_accelerate(capsys):
    pytest.importorskip("accelerate", reason="needs accelerate")
    run("Accelerate")
    assert "'steps': 10.0" in capsys.readouterr().out


def test_tensorboard():
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    run("TensorBoard")
    assert list(Path("runs/clipped").glob("events*"))


@pytest.mark.usefixtures("quiet_wandb")
def test_wandb():
    run("W&B")
    assert list(Path("wandb").glob("offline-run-*/*.wandb"))
