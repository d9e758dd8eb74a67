"""Parameter groups by the names of modules."""

import re

import pytest
import torch
from torch import nn

from torch_clipped import ClippedSGD, groups_by_module


def new_model():
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False))
    model.decoder = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
    model.scale = nn.Parameter(torch.ones(()))
    return model


def names_of(model, groups):
    """The names of the parameters of each group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in groups]


ENCODER = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias", "encoder.2.weight"]
DECODER = ["decoder.0.weight", "decoder.0.bias", "decoder.1.weight", "decoder.1.bias"]


def test_every_parameter_is_in_one_group():
    model = new_model()
    groups = groups_by_module(model, {"decoder": {"lr": 1.0}, "encoder": {"lr": 2.0}}, {"lr": 3.0})
    assert names_of(model, groups) == [DECODER, ENCODER, ["scale"]]
    assert [group["lr"] for group in groups] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("encoder.1", ["encoder.1.weight", "encoder.1.bias"]),
        ("decoder.0.bias", ["decoder.0.bias"]),
        ("*.bias", ["encoder.0.bias", "encoder.1.bias", "decoder.0.bias", "decoder.1.bias"]),
        ("*coder.1", ["encoder.1.weight", "encoder.1.bias", "decoder.1.weight", "decoder.1.bias"]),
        ("encoder.[02]", ["encoder.0.weight", "encoder.0.bias", "encoder.2.weight"]),
        ("*", [*ENCODER, *DECODER, "scale"]),
    ],
)
def test_patterns_name_modules_and_parameters(pattern, wanted):
    model = new_model()
    groups = groups_by_module(model, {pattern: {"lr": 0.5}})
    assert sorted(names_of(model, groups)[0]) == sorted(wanted)
    assert groups[0]["lr"] == 0.5
    assert len(groups) == 1 + (pattern != "*")


def test_vectors_are_apart_and_clipped_with_their_matrices():
    model = new_model()
    groups = groups_by_module(model, {"encoder": {"clipping_level": 0.5}}, vectors={"weight_decay": 0.0})
    assert names_of(model, groups)[:2] == [
        ["encoder.0.weight", "encoder.2.weight"],
        ["encoder.0.bias", "encoder.1.weight", "encoder.1.bias"],
    ]
    optimizer = ClippedSGD(groups, lr=0.1, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    encoder, others = optimizer.clipping_stats(per_set=True)
    assert encoder["grad_norm"] == pytest.approx(sum(p.numel() for p in model.encoder.parameters()) ** 0.5)
    assert (encoder["threshold"], others["threshold"]) == (0.5, 1.0)


def test_shared_parameters_have_all_their_names():
    model = new_model()
    model.decoder[0].weight = model.encoder[2].weight
    with pytest.raises(ValueError, match=re.escape("'encoder' and 'decoder' both match encoder.2.weight = decoder.0.weight")):
        groups_by_module(model, {"encoder": {}, "decoder": {}})
    groups = groups_by_module(model, {"decoder.0.weight": {}})
    assert names_of(model, groups)[0] == ["encoder.2.weight"]


@pytest.mark.parametrize(
    ("patterns", "others", "error", "message"),
    [
        ({"coder": {}}, {}, ValueError, "'coder' matches none; did you mean 'encoder' or 'decoder'"),
        ({"encoder.7": {}}, {}, ValueError, "'encoder.7' matches none; did you mean 'encoder.2' or 'encoder.1' or 'encoder.0'?"),
        ({"?": {}}, {}, ValueError, "'?' matches none; the modules are encoder, decoder"),
        ({0: {}}, {}, TypeError, "patterns must be a mapping from names to options, got 0 as a name"),
        ({"encoder": {}, "*.bias": {}}, {}, ValueError, "'encoder' and '*.bias' both match encoder.0.bias"),
        ({"encoder": {"params": []}}, {}, ValueError, "patterns['encoder'] must not name params"),
        ({"encoder": 0.1}, {}, TypeError, "patterns['encoder'] must be a mapping of options, got float"),
        (["encoder"], {}, TypeError, "patterns must be a mapping from names to options, got list"),
        ({}, {"default": 1}, TypeError, "default must be a mapping of options, got int"),
        ({}, {"vectors": {"params": []}}, ValueError, "vectors must not name params"),
    ],
)
def test_what_cannot_be_grouped_is_named(patterns, others, error, message):
    with pytest.raises(error, match=re.escape(message)):
        groups_by_module(new_model(), patterns, **others)


def test_only_modules_have_groups():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        groups_by_module([], {})


def test_lazy_modules_are_grouped_by_name_and_refused_by_shape():
    model = torch.nn.ModuleDict({"encoder": torch.nn.LazyLinear(4), "decoder": torch.nn.Linear(4, 3)})
    assert [len(group["params"]) for group in groups_by_module(model, {"encoder": {}})] == [2, 2]
    with pytest.raises(ValueError, match=re.escape("vectors must be None while encoder.weight has no shape: let the model see")):
        groups_by_module(model, {"encoder": {}}, vectors={})
