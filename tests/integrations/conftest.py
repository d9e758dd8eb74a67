"""Tiny models, made of random numbers, and data for them; the libraries are left as they were found."""

import os
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path, monkeypatch):
    """Each test has a folder of its own, and what a library keeps for its process ends with the test."""
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    os.environ.clear()
    os.environ.update(environment)
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
        sys.modules["accelerate.state"].GradientState._reset_state()


@pytest.fixture
def quiet_wandb(nothing_left_behind, monkeypatch):
    """W&B without a network and without words; the process that it starts ends with the test."""
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    yield
    wandb.teardown()


@pytest.fixture
def tiny_gpt():
    """Makes a GPT-2 of two layers of width 8, with the same weights on every call."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")

    def make(dropout=0.0):
        torch.manual_seed(3)
        sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
        dropouts = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], dropout)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropouts, bos_token_id=0, eos_token_id=0))

    return make


@pytest.fixture
def sentences():
    """48 rows of eight random tokens each. Nothing predicts the first, and releases of transformers differ in counting it."""
    rows = torch.randint(16, (48, 8), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])} for row in rows]


@pytest.fixture
def clip_types():
    """Clipping arguments of types without a memory, with one, with random draws, and of each tensor by itself."""
    return {
        "norm": {"clipping_type": "norm", "clipping_level": 0.3},
        "auto": {"clipping_type": "auto", "clipping_level": 0.2, "clipping_window": 5},
        "linear_rand_norm": {"clipping_type": "linear_rand_norm", "clipping_level": 0.3},
        "layer_wise_auto": {"clipping_type": "layer_wise_auto", "clipping_level": 0.3},
    }
