"""Pictures show the numbers they are given, leave pyplot alone, and keep the legend off the data."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

from torch_clipped import ClippedSGD
from torch_clipped.heavy_tails import hill_curve, hill_index, variance_curve
from torch_clipped.plots import plot_hill, plot_histogram, plot_norms, plot_survival, plot_variance

OF_LENGTHS = [plot_histogram, plot_survival, plot_hill, plot_variance]
ALL = [*OF_LENGTHS, plot_norms]
SAMPLES = {
    "normal": np.abs(np.random.default_rng(0).standard_normal(500)),
    "heavy-tailed": np.abs(np.random.default_rng(0).standard_cauchy(500)),
    "tiny": np.arange(1.0, 13.0),
    "equal": np.full(50, 2.0),
    "with zeros": np.arange(30.0),
}


def train(steps=30, clipping_type="norm", bad_step=None, **options):
    """A weight of two entries with gradients of lengths sqrt(2), 2 sqrt(2), ...; the optimizer and what it told at each step."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer, history = ClippedSGD([weight], lr=0.1, clipping_type=clipping_type, **options), []
    for step in range(1, steps + 1):
        weight.grad = torch.full((2,), math.nan if step == bad_step else float(step))
        optimizer.step()
        history.append(optimizer.clipping_stats())
    return optimizer, history


def line(ax, label):
    """The points of the line with this label, or one that begins so."""
    return next(one for one in ax.get_lines() if one.get_label().startswith(label)).get_xydata().T


@pytest.mark.parametrize("name", ["heavy-tailed", "tiny", "equal", "with zeros"])
@pytest.mark.parametrize("plot", ALL)
def test_legend_is_below_the_axes_and_nothing_is_cut_off(plot, name):
    ax = plot(SAMPLES[name])
    figure = ax.figure
    figure.draw_without_rendering()
    legend, label = ax.get_legend().get_window_extent(), ax.xaxis.label.get_window_extent()
    assert legend.y1 <= label.y0
    for part in (legend, label, ax.yaxis.label.get_window_extent()):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= figure.bbox.x1
        assert part.y1 <= figure.bbox.y1


@pytest.mark.parametrize("plot", ALL)
def test_given_axes_are_drawn_into_and_returned(plot):
    figure = Figure(figsize=(8, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    assert plot(SAMPLES["normal"], ax=upper) is upper
    figure.draw_without_rendering()
    assert not lower.has_data()
    assert upper.get_legend().get_window_extent().y0 >= lower.get_window_extent().y1


@pytest.mark.parametrize("plot", ALL)
def test_lines_differ_by_more_than_their_colours(plot):
    ax = plot(train(clipping_level=10.0)[1] if plot is plot_norms else SAMPLES["normal"])
    lines = [one for axes in ax.figure.axes for one in axes.get_lines() if not one.get_label().startswith("_")]
    assert lines
    assert len({(one.get_linestyle(), one.get_marker()) for one in lines}) == len(lines)


@pytest.mark.parametrize("subfigures", [False, True])
@pytest.mark.parametrize("plot", ALL)
def test_legend_has_room_in_figures_without_a_layout(plot, subfigures):
    figure = Figure(figsize=(8, 8))
    upper, lower = (figure.subfigures(1, 2)[1] if subfigures else figure).subplots(2, 1)
    plot(SAMPLES["normal"], ax=upper)
    plot(SAMPLES["normal"], ax=lower)
    figure.draw_without_rendering()
    assert upper.get_legend().get_window_extent().y0 >= lower.get_window_extent().y1
    assert lower.get_legend().get_window_extent().y0 >= 0


def test_layout_that_a_figure_has_is_kept():
    figure = Figure(layout="tight")
    engine = figure.get_layout_engine()
    plot_hill(SAMPLES["normal"], ax=figure.subplots())
    assert figure.get_layout_engine() is engine


@pytest.mark.parametrize("plot", ALL)
def test_large_letters_leave_the_legend_below(plot):
    with rc_context({"font.size": 16}):
        ax = plot(SAMPLES["normal"])
        ax.figure.draw_without_rendering()
        assert ax.get_legend().get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0


@pytest.mark.parametrize("plot", ALL)
def test_narrow_axes_stay_as_wide_as_their_neighbours_allow(plot):
    figure = Figure(figsize=(12, 4), layout="constrained")
    for ax in figure.subplots(1, 3):
        plot(train(clipping_level=10.0)[1] if plot is plot_norms else SAMPLES["heavy-tailed"], ax=ax)
    figure.draw_without_rendering()
    assert all(ax.get_window_extent().width > 0.2 * figure.bbox.width for ax in figure.axes[:3])


def test_axes_are_labelled():
    labels = {plot: (ax.get_xlabel(), ax.get_ylabel()) for plot in ALL for ax in [plot(SAMPLES["normal"])]}
    assert labels == {
        plot_histogram: ("gradient norm", "gradients in a bin"),
        plot_survival: ("gradient norm x", "share of gradients of norm x or more"),
        plot_hill: ("k, gradients that count as the tail", "Hill tail index"),
        plot_variance: ("gradients", "variance of the gradient norm"),
        plot_norms: ("steps", "gradient norm"),
    }


def test_histogram_counts_all_beside_the_normal_law_of_the_same_moments():
    lengths = SAMPLES["heavy-tailed"]
    ax = plot_histogram(lengths)
    assert sum(bar.get_height() for bar in ax.patches) == len(lengths)
    width = ax.patches[0].get_width()
    x, y = line(ax, "normal law")
    assert y == pytest.approx(len(lengths) * width * stats.norm.pdf(x, lengths.mean(), lengths.std()))
    assert ax.get_yscale() == "log"


def test_histogram_of_equal_lengths_has_no_normal_law():
    assert plot_histogram(SAMPLES["equal"]).get_lines()[:] == []


@pytest.mark.parametrize("lengths", [np.full(50, 1.1e17), 1 + np.arange(50) % 2 * 2.3e-16, np.arange(50) % 3 * 1e200])
def test_histogram_of_nearly_equal_or_huge_lengths_counts_all(lengths):
    ax = plot_histogram(lengths)
    ax.figure.draw_without_rendering()
    assert sum(bar.get_height() for bar in ax.patches) == len(lengths)


def test_normal_law_is_drawn_to_its_peak():
    lengths = np.append(np.random.default_rng(0).standard_exponential(100_000), 1e4)
    ax = plot_histogram(lengths)
    x, y = line(ax, "normal law")
    width = ax.patches[0].get_width()
    assert max(y) == pytest.approx(len(lengths) * width * stats.norm.pdf(0, 0, lengths.std()), rel=0.01)
    assert max(y) < ax.get_ylim()[1]
    assert ((x > lengths.mean()) & (x < lengths.mean() + lengths.std())).sum() > 10


def test_survival_shows_every_length_and_the_hill_fit():
    lengths = SAMPLES["heavy-tailed"]
    ax = plot_survival(lengths, share=0.1)
    x, y = line(ax, "500 gradients")
    assert x.tolist() == sorted(lengths, reverse=True)
    assert y == pytest.approx([(lengths >= one).mean() for one in x])
    ends, shares = line(ax, "Hill fit to the longest 50")
    assert ends.tolist() == [x[50], x[0]]
    assert shares[0] == y[50]
    slope = -np.diff(np.log(shares)) / np.diff(np.log(ends))
    assert slope == pytest.approx(hill_index(lengths, 0.1).value)


def test_survival_leaves_out_zeros_but_counts_them():
    x, y = line(plot_survival(SAMPLES["with zeros"]), "30 gradients")
    assert x[-1] == 1
    assert y[-1] == pytest.approx(29 / 30)


@pytest.mark.parametrize(
    ("plot", "curve", "label"),
    [(plot_hill, hill_curve, "Hill index"), (plot_variance, variance_curve, "variance of the first")],
)
def test_curves_are_drawn_in_their_bands(plot, curve, label):
    lengths = SAMPLES["heavy-tailed"]
    ax, expected = plot(lengths), curve(lengths)
    x, y = line(ax, label)
    assert x.tolist() == expected.samples.tolist()
    assert y.tolist() == expected.values.tolist()
    edge = ax.collections[0].get_paths()[0].vertices
    assert {*expected.low, *expected.high} <= {*edge[:, 1]}


def test_hill_plot_marks_the_share():
    ax = plot_hill(SAMPLES["normal"], share=0.2)
    assert line(ax, "k = 100, 20 % of the gradients")[0].tolist() == [100, 100]


def test_norms_over_time_with_threshold_coefficient_and_clipped_steps():
    _, history = train(steps=30, clipping_level=10.0)  # lengths up to 7 sqrt(2) are not clipped
    ax = plot_norms(history)
    steps, norms = line(ax, "gradient norm")
    assert steps.tolist() == list(range(1, 31))
    assert norms == pytest.approx(math.sqrt(2) * steps)
    assert set(line(ax, "threshold")[1]) == {10.0}
    assert line(ax, "clipped, 23 of 30 steps")[0].tolist() == list(range(8, 31))
    assert line(ax, "clipped")[1] == pytest.approx(norms[7:])
    right = ax.figure.axes[1]
    assert line(right, "coefficient")[1] == pytest.approx(np.minimum(1, 10 / norms))


def test_coefficient_does_not_cross_the_norms():
    for history in (train(clipping_level=10.0)[1], [row | {"grad_norm": 0.0, "threshold": 0.0} for row in train()[1]]):
        ax = plot_norms(history)
        ax.figure.draw_without_rendering()
        highest = max(one.get_window_extent().y1 for one in ax.get_lines())
        assert highest < ax.figure.axes[1].transData.transform((0, 0))[1]


def test_first_recorded_step_is_clipped_if_its_coefficient_says_so():
    _, history = train(steps=30, clipping_level=10.0)
    assert line(plot_norms(history[5:]), "clipped")[0].tolist() == list(range(8, 31))
    assert line(plot_norms(history[9:]), "clipped")[0].tolist() == list(range(10, 31))


@pytest.mark.filterwarnings("ignore::torch_clipped.ClippingWarning")
def test_skipped_step_is_neither_counted_nor_clipped():
    _, history = train(steps=12, clipping_level=10.0, bad_step=9)
    assert line(plot_norms(history), "clipped, 4 of 11 steps")[0].tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("clipping_type", ["zscore", "zclip", "layer_wise_auto"])
def test_steps_without_a_threshold_leave_gaps(clipping_type):
    _, history = train(clipping_type=clipping_type)
    ax = plot_norms(history)
    ax.figure.draw_without_rendering()
    expected = [row["threshold"] for row in history]
    assert line(ax, "threshold")[1] == pytest.approx(expected, nan_ok=True)


def test_optimizer_gives_the_norms_it_remembers():
    optimizer, history = train(steps=30, clipping_window=10)
    steps, norms = line(plot_norms(optimizer), "gradient norm")
    assert steps.tolist() == list(range(21, 31))
    assert norms.tolist() == [row["grad_norm"] for row in history[20:]]


@pytest.mark.parametrize("lengths", [[1.0, 2.0], torch.tensor([1.0, 2.0])])
def test_lengths_alone_are_numbered_from_one(lengths):
    assert line(plot_norms(lengths), "gradient norm").tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history must be at least 1 samples, got 0"),
        ([1.0, math.nan], "history must be finite and at least 0, got nan in place 1"),
        (5, r"history must have one dimension, got shape \(\)"),
        ("123", "history must be numbers, got '123'"),
        ([{"grad_norm": 1.0}], "history must hold what clipping_stats.. returns, but 'steps' is not in all of it"),
        (train(clipping_type="none")[1], "history must hold gradient norms, but this clipping type measures none"),
        (train(clipping_type="none")[0], "history must be at least 1 samples, got 0"),
    ],
)
def test_history_without_norms_is_refused(history, message):
    with pytest.raises(ValueError, match=message):
        plot_norms(history)


@pytest.mark.parametrize("lengths", [[], [1.0], [1.0, math.inf] * 20, [-1.0] * 20])
def test_wrong_lengths_are_named(lengths):
    for plot in OF_LENGTHS:
        with pytest.raises(ValueError, match="lengths must be"):
            pytest.fail(f"{plot.__name__} has drawn {plot(lengths)}")


@pytest.mark.parametrize("plot", ALL)
def test_masked_norms_are_refused(plot):
    norms = np.ma.masked_greater(np.arange(1.0, 41.0), 38.0)
    with pytest.raises(ValueError, match=r"must not be masked, got 2 masked of 40 samples: pass (lengths|history).compressed"):
        plot(norms)
    plot(np.ma.masked_greater(norms.data, 99.0))


@pytest.mark.parametrize("plot", ALL)
def test_missing_matplotlib_names_the_extra(monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install torch-clipped\[heavy-tails\]"):
        plot(SAMPLES["normal"])


def test_pyplot_is_not_loaded_and_libraries_are_loaded_when_called(tmp_path):
    code = f"""
import sys
import torch_clipped.heavy_tails, torch_clipped.plots
assert not {{"scipy", "matplotlib"}} & set(sys.modules)
torch_clipped.plots.plot_survival(range(1, 41)).figure.savefig({str(tmp_path / "picture.png")!r})
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
