"""The code of docs/integrations.md runs, and does what the page says."""

import json
from pathlib import Path

import pytest
from support import pages

SECTIONS = pages.sections(pages.page("docs/integrations.md"))


def run(title):
    """Run the only block of a section; the names it made."""
    (block,) = pages.python_blocks(SECTIONS[title])
    return pages.run([block], f"docs/integrations.md, {title}")


def test_every_section_with_code_is_known():
    with_code = [title for title, text in SECTIONS.items() if pages.python_blocks(text)]
    # Lightning's is run beside its other tests
    assert with_code == ["Trainer", "Accelerate", "TensorBoard", "W&B", "Lightning", "stable-baselines3"]


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


def test_stable_baselines3():
    pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    stats = run("stable-baselines3")["agent"].policy.optimizer.clipping_stats()
    assert stats["steps"] == 80
    assert 0 < stats["clipped_steps"] < 80
