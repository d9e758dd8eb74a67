"""Clipping statistics in the files that W&B writes without a network, read back from there."""

import json
import struct
from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.compare import run
from torch_clipped import ClippedAdamW, ClippedSGD

wandb = pytest.importorskip("wandb", reason="needs wandb")


pytestmark = pytest.mark.usefixtures("quiet_wandb")


def history(runs=1):
    """Return what was logged in the first run, step by step. The file holds protocol buffers in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service has written everything when it ends
    paths = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == runs
    data, place, parts, steps = paths[0].read_bytes(), 7, b"", []  # seven bytes say what the file is
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the end of a block that is too short for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            items = Record.FromString(parts).history.item
            steps.append({"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
            parts = b""
    return [step for step in steps if step]


def test_clipping_stats_are_plain_numbers_that_a_run_logs():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedSGD([weight], clipping_level=1.0)
    statistics = []
    with wandb.init(mode="offline") as run:
        for length in (0.5, 1.0, 5.0):
            weight.grad = torch.tensor([0.6, 0.8]) * length
            optimizer.step()
            run.log(optimizer.clipping_stats())
            statistics.append(optimizer.clipping_stats())
    logged = history()
    assert len(logged) == 3
    for found, expected in zip(logged, statistics, strict=True):
        assert expected.items() <= found.items()


def test_trainer_reports_statistics_to_wandb(tiny_gpt, sentences):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from torch_clipped.integrations import HuggingFaceClippingCallback

    arguments = transformers.TrainingArguments(
        "out", max_steps=6, logging_steps=2, max_grad_norm=0, report_to=["wandb"], use_cpu=True, disable_tqdm=True
    )
    model = tiny_gpt()
    optimizer = ClippedAdamW(model.parameters(), clipping_level=0.5)
    trainer = transformers.Trainer(model, arguments, train_dataset=sentences, optimizers=(optimizer, None))
    HuggingFaceClippingCallback.attach(trainer)
    trainer.train()
    wandb.finish()
    in_history = [logs for logs in trainer.state.log_history if "loss" in logs]
    in_wandb = [step for step in history() if "train/loss" in step]
    assert [step["train/global_step"] for step in in_wandb] == [2, 4, 6]
    for name in optimizer.clipping_stats():
        assert [step[f"train/clipping/{name}"] for step in in_wandb] == [logs[f"clipping/{name}"] for logs in in_history]


def test_comparison_logs_its_results(monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn (extra experiments)")
    monkeypatch.setattr(run, "FEW", ("norm",))
    options = ["--task", "text", "--quick", "--steps", "2", "--seeds", "1", "--wandb", "--out", "out"]
    assert main(["compare", *options]) == 0
    summary = json.loads(Path("out/compare_text.json").read_text())
    steps = history(runs=len(summary["methods"]))
    assert [step["_step"] for step in steps] == [0, 1, 2]
    assert {"loss", "gradient norm", "clipped"} <= steps[1].keys()
    metrics = [one["validation"]["mean"] for one in summary["methods"]]
    assert steps[2]["validation accuracy of the next character"] in [pytest.approx(metric) for metric in metrics]
