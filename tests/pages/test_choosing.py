"""What docs/choosing.md says is true."""

import math
import re

import pytest
import torch
from support.pages import page, python_blocks, run
from torch.nn.utils import clip_grad_norm_

from torch_clipped import ClippedSGD, ClippingWarning
from torch_clipped.clipping import CLIPPING_TYPES

PAGE = page("docs/choosing.md")


def stepped(norms, before=None, **arguments):
    """An optimizer that has taken steps with gradients of these norms."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedSGD([weight], lr=0.1, **arguments)
    for norm in norms:
        weight.grad = torch.tensor([0.6 * norm, 0.8 * norm])
        if before:
            before(weight)
        optimizer.step()
    return optimizer, weight


def numbers(text):
    return [float(number) for number in re.search(r"level ([\d.]+), clipped (\d+) of the second 500 steps", text).groups()]


def lognormal(count, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(count, generator=generator).exp()).tolist()


def test_block_prints_what_stands_below_it(capsys):
    block, *_ = python_blocks(PAGE)
    run([block], "docs/choosing.md")
    level, clipped = printed = numbers(capsys.readouterr().out)
    assert printed == pytest.approx(numbers(PAGE.partition("prints\n")[2]), rel=0.1)
    assert level > 0
    assert 25 <= clipped <= 75


def test_methods_that_are_rows_of_ones_own_clip_as_the_page_says(capsys, table):
    _, rows, _ = python_blocks(PAGE)
    run([rows], "docs/choosing.md")
    assert capsys.readouterr().out == "smooth: 0.90\nmedian: 3.00\n"
    assert "prints\n\n```\nsmooth: 0.90\nmedian: 3.00\n```" in PAGE


@pytest.mark.filterwarnings("ignore::torch_clipped.ClippingWarning")
def test_optimizer_with_update_clipping_clips_gradients_too():
    pytest.importorskip("pytorch_optimizer", reason="needs pytorch_optimizer (extra optimizers)")
    *_, block = python_blocks(PAGE)
    stats = run([block], "docs/choosing.md")["optimizer"].clipping_stats()
    assert stats["steps"] == 200
    assert stats["skipped_steps"] < 20


@pytest.mark.parametrize("name", ["norm", "adaptive", "zclip", "adagc"])
def test_default_level_is_a_published_one(name):
    levels = {float(level) for level in re.findall(rf"^\| `{name}` ([\d.]+)", PAGE, flags=re.MULTILINE)}
    assert CLIPPING_TYPES[name].threshold.default_level in levels


def test_every_type_that_is_named_exists():
    named = set(re.findall(r'`"(\w+)"`', PAGE)) | set(re.findall(r"^\| `(\w+)` [\d.]+", PAGE, flags=re.MULTILINE))
    assert len(named) >= 8
    assert named <= {*CLIPPING_TYPES, "value"}


def test_level_of_infinity_measures_and_none_does_not():
    optimizer, _ = stepped([1.0, 5.0], clipping_type="norm", clipping_level=math.inf)
    assert optimizer.grad_norms().tolist() == pytest.approx([1.0, 5.0])
    assert optimizer.clipping_stats()["clip_rate"] == 0
    assert len(stepped([1.0, 5.0], clipping_type="none")[0].grad_norms()) == 0


def test_norms_are_recorded_before_clipping():
    optimizer, _ = stepped([1.0, 5.0, 9.0], clipping_type="norm", clipping_level=0.1)
    assert optimizer.grad_norms().tolist() == pytest.approx([1.0, 5.0, 9.0])


def test_where_all_steps_are_clipped_each_is_learning_rate_times_level_long():
    _, weight = stepped([3.0, 500.0, 7.0], clipping_type="norm", clipping_level=2.0)
    assert weight.norm().item() == pytest.approx(3 * 0.1 * 2.0)


def test_auto_clips_its_share_at_any_scale():
    for scale in (1e-3, 1e3):
        optimizer, _ = stepped(lognormal(600, scale), clipping_type="auto", clipping_level=0.9)
        assert optimizer.clipping_stats()["clip_rate"] == pytest.approx(0.1, abs=0.03)


def test_auto_of_the_tenth_percentile_clips_nine_steps_of_ten():
    optimizer, _ = stepped(lognormal(600), clipping_type="auto", clipping_level=0.1)
    assert optimizer.clipping_stats()["clip_rate"] == pytest.approx(0.9, abs=0.03)


def test_level_in_another_unit_warns_after_200_steps():
    with pytest.warns(ClippingWarning, match="in the unit of the gradient"):
        optimizer, _ = stepped(lognormal(200, 1e4), clipping_type="norm", clipping_level=0.01)
    stats = optimizer.clipping_stats()
    assert (stats["clip_rate"], stats["coefficient"] < 1e-3) == (1.0, True)


def test_gradients_that_arrive_clipped_have_one_largest_norm():
    def clip(weight):
        clip_grad_norm_(weight, 1.0)

    optimizer, _ = stepped(lognormal(100), clip, clipping_type="norm", clipping_level=1.0)
    norms = optimizer.grad_norms()
    assert (norms > norms.max() * (1 - 1e-5)).sum() > 30
    assert norms.max().item() == pytest.approx(1.0, rel=1e-5)
    assert optimizer.clipping_stats()["coefficient"] == pytest.approx(1.0, rel=1e-6)


def test_two_hundred_equal_norms_warn():
    def clip(weight):
        clip_grad_norm_(weight, 1.0)

    with pytest.warns(ClippingWarning, match="does the training loop clip them already"):
        stepped([5 + norm for norm in lognormal(200)], clip, clipping_type="norm", clipping_level=1.0)


def test_threshold_is_infinite_without_a_spike():
    for clipping_type in ("zclip", "zscore"):
        assert stepped([1.0], clipping_type=clipping_type)[0].clipping_stats()["threshold"] == math.inf
    zclip = stepped([1.0 + 0.01 * (step % 7) for step in range(40)], clipping_type="zclip")[0]
    assert zclip.clipping_stats()["threshold"] == math.inf


def test_norm_of_the_whole_gradient_is_unknown_to_coord_wise():
    assert math.isnan(stepped([1.0], clipping_type="coord_wise")[0].clipping_stats()["grad_norm"])
