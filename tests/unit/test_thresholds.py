"""Thresholds after given norms, step by step: of one block and of many on the host, and as on an accelerator."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import reference

from torch_clipped._engine.arrays import HOST, AcceleratorArrays
from torch_clipped.clipping import CLIPPING_TYPES
from torch_clipped.thresholds import AdaGC, Blocks, Constant, MeanStd, Quantile, RatioToWeights, Threshold, ZClip, history_shapes

INF, NAN = math.inf, math.nan


class Run:
    """Steps of one threshold, of which the last thresholds and the state are at hand.

    ``form``: "one block" (numpy, without a dimension), "blocks" (numpy), "accelerator" (tensors).
    """

    def __init__(self, threshold, form, level=None, blocks=1, window=8):
        self.threshold, self.form, self.window = threshold, form, window
        self.level = threshold.default_level if level is None else level
        shapes = threshold.memory(blocks, window)
        state = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        if form != "accelerator":
            state = {name: tensor.numpy() for name, tensor in state.items()}
        if form == "one block":
            state = {name: array[..., 0] for name, array in state.items()}
        self.memory = SimpleNamespace(**state)
        self.arrays = AcceleratorArrays() if form == "accelerator" else HOST
        self.steps = 0

    def number(self, values):
        array = np.array(values)
        return torch.from_numpy(array) if self.form == "accelerator" else array[()]

    def step(self, lengths, norm=1.0, weights=None):
        """Return the thresholds of a step; blocks are clipped to them before the state is updated."""
        finite = [math.isfinite(length) and length > 0 for length in lengths]
        if self.form == "one block":
            (lengths,), (finite,) = lengths, finite
        lengths, valid = self.number(lengths), self.number(finite)
        step, whole = self.number(self.steps), self.number(norm)
        blocks = Blocks(lengths, valid, whole, step, lambda: self.number(weights), self.arrays)
        with np.errstate(all="ignore"):
            thresholds = self.threshold(blocks, self.level, self.memory)
            alpha = thresholds / lengths
            coefficients = self.arrays.coefficients(alpha, valid & (alpha < 1))
            self.threshold.remember(blocks, lengths * coefficients, self.memory)
        self.steps += 1
        return np.atleast_1d(np.asarray(thresholds)).tolist()

    def of(self, norms, **others):
        """Return the thresholds of a block that takes these norms, one a step."""
        return [self.step([norm], **others)[0] for norm in norms]

    def state(self, name):
        return np.asarray(getattr(self.memory, name)).reshape(-1).tolist()


@pytest.fixture(params=["one block", "blocks", "accelerator"])
def form(request):
    return request.param


@pytest.fixture(params=["blocks", "accelerator"])
def several(request):
    return request.param


def approx(values):
    return pytest.approx(values, rel=1e-12)


POSITIVE = "clipping_level must be > 0, got {}"
SHARE = "clipping_level is a quantile and must be in (0, 1], got {}"
DEVIATIONS = "clipping_level is a number of standard deviations and must be >= 0 and finite, got {}"
WRONG = [
    *((kind, level, POSITIVE) for kind in (Constant, RatioToWeights, ZClip, AdaGC) for level in (0.0, -1.0, NAN)),
    *((Quantile, level, SHARE) for level in (0.0, -0.5, 1.0000001, NAN)),
    *((MeanStd, level, DEVIATIONS) for level in (-1e-9, INF, NAN)),
]


@pytest.mark.parametrize(("kind", "level", "message"), WRONG)
def test_invalid_level_is_named_with_what_is_right(kind, level, message):
    for check in (kind, kind(1.0).check):
        with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
            check(level)
        assert str(error.value) == message.format(level)


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        *((kind, level) for kind in (Constant, RatioToWeights, ZClip, AdaGC) for level in (5e-324, INF)),
        *((Quantile, level) for level in (5e-324, 1.0)),
        *((MeanStd, level) for level in (0.0, 1.7e308)),
    ],
)
def test_level_at_the_edge_of_what_is_valid(kind, level):
    assert kind(level).default_level == level
    assert kind(1.0).check(level) is None


def test_default_levels_and_averaging_are_those_of_the_contract():
    levels = {name: rule.threshold.default_level for name, rule in CLIPPING_TYPES.items() if rule is not None}
    assert {name: levels[name] for name, row in reference.CLIPPING_TYPES.items() if name != "none"} == {
        name: row.level for name, row in reference.CLIPPING_TYPES.items() if name != "none"
    }
    assert ZClip(1.0) == ZClip(1.0, averaging=0.97, warm_up=25)
    assert AdaGC(1.0) == AdaGC(1.0, averaging=0.99, warm_up=100, warm_up_norm=1.0)
    assert (Quantile(1.0).warm_up, MeanStd(1.0).warm_up) == (0, 0)


@pytest.mark.parametrize("kind", [Constant, Quantile, MeanStd, RatioToWeights, ZClip, AdaGC])
def test_only_adagc_needs_the_norm_of_the_whole_gradient(kind):
    assert kind.needs_norm is (kind is AdaGC)


def test_state_is_as_large_as_window_and_blocks():
    floats, counts = ((3,), torch.float64), ((3,), torch.int64)
    history = {"lengths": ((7, 3), torch.float64), "count": counts}
    assert history_shapes(7, 3) == history
    assert Quantile(1.0).memory(3, 7) == MeanStd(1.0).memory(3, 7) == history
    assert ZClip(1.0).memory(3, 7) == {"average": floats, "variance": floats, "seen": counts}
    assert AdaGC(1.0).memory(3, 7) == {"average": floats, "seen": counts}
    assert Constant(1.0).memory(3, 7) == RatioToWeights(1.0).memory(3, 7) == {}


def test_threshold_of_ones_own_has_to_say_what_it_is(form):
    run = Run(Threshold(1.0), form)
    assert run.threshold.memory(3, 7) == {}
    with pytest.raises(NotImplementedError):
        run.step([1.0])


def test_part_of_the_blocks_has_the_norm_of_all():
    values = np.arange(4.0)
    blocks = Blocks(values, values > 1, np.float64(9), np.int64(5), lambda: 10 * values)
    part = blocks.part(slice(1, 3))
    assert (part.lengths.tolist(), part.valid.tolist(), part.weight_lengths().tolist()) == ([1, 2], [False, True], [10, 20])
    assert (part.norm, part.step, part.arrays) == (9, 5, HOST)


def test_constant_is_its_level_for_every_block(form):
    run = Run(Constant(0.75), form)
    assert run.of([0.1, 0.75, 1e30]) == [0.75] * 3
    assert Run(Constant(1.0), form, level=INF).of([3.0]) == [INF]


def test_constant_has_one_threshold_a_block(several):
    assert Run(Constant(1.0), several, level=0.25, blocks=3).step([1.0, 0.0, INF]) == [0.25] * 3


def test_quantile_counts_the_present_norm(form):
    assert Run(Quantile(0.5), form).of([4.0, 8.0, 1.0, 2.0]) == [4.0, 6.0, 4.0, 3.0]


def test_quantile_is_linear_between_order_statistics(form):
    assert Run(Quantile(0.75), form).of([1.0, 2.0, 4.0, 8.0, 16.0]) == [1.0, 1.75, 3.0, 5.0, 8.0]
    assert Run(Quantile(0.1), form).of([10.0, 20.0, 30.0]) == approx([10.0, 11.0, 12.0])


def test_quantile_one_never_clips(form):
    norms = [3.0, 1.0, 5.0, 5.0, 2.0]
    assert Run(Quantile(1.0), form).of(norms) == [3.0, 3.0, 5.0, 5.0, 5.0]


def test_quantile_is_of_the_last_window_and_no_older_norm(form):
    run = Run(Quantile(0.5), form, window=3)
    assert run.of([1.0, 2.0, 3.0, 10.0, 20.0, 30.0, 1.0, 1.0]) == [1.0, 1.5, 2.0, 3.0, 10.0, 20.0, 20.0, 1.0]
    assert run.state("lengths") == [1.0, 1.0, 30.0]  # a ring
    assert run.state("count") == [8]


def test_quantile_remembers_norms_before_clipping(form):
    run = Run(Quantile(0.5), form)
    run.of([2.0, 100.0])
    assert run.state("lengths")[:3] == [2.0, 100.0, 0.0]


def test_quantile_passes_over_norms_that_are_zero_or_not_finite(form):
    run = Run(Quantile(0.5), form)
    assert run.of([4.0, INF, NAN, 0.0, 8.0]) == [4.0, 4.0, 4.0, 4.0, 6.0]
    assert run.state("count") == [2]


def test_quantile_does_not_clip_before_the_first_norm(form):
    assert Run(Quantile(0.5), form).of([INF, 0.0]) == [INF, INF]


@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_quantile_counts_after_its_warm_up(form, warm_up):
    run = Run(Quantile(0.5, warm_up=warm_up), form)
    wanted = [2.0, 2.0, 2.0, 3.0, 4.0]
    assert run.of([2.0, 2.0, 8.0, 4.0, 5.0]) == [INF] * warm_up + wanted[warm_up:]


def test_blocks_have_histories_of_their_own(several):
    run = Run(Quantile(0.5), several, blocks=3, window=2)
    assert run.step([1.0, 10.0, 0.0]) == [1.0, 10.0, INF]
    assert run.step([3.0, INF, 5.0]) == [2.0, 10.0, 5.0]
    assert run.step([5.0, 20.0, 7.0]) == [4.0, 15.0, 6.0]
    assert run.state("count") == [3, 2, 2]
    assert run.state("lengths") == [5.0, 10.0, 5.0, 3.0, 20.0, 7.0]


def test_zscore_does_not_count_the_present_norm(form):
    run = Run(MeanStd(2.0), form)
    assert run.of([1.0, 3.0, 5.0, 100.0]) == approx([INF, INF, 2 + 2 * math.sqrt(2), 3 + 2 * 2])


def test_zscore_of_level_zero_is_the_mean(form):
    assert Run(MeanStd(1.0), form, level=0.0).of([1.0, 3.0, 8.0, 9.0]) == approx([INF, INF, 2.0, 4.0])


def test_zscore_of_equal_norms_is_that_norm(form):
    assert Run(MeanStd(2.0), form).of([3.0, 3.0, 3.0]) == [INF, INF, 3.0]


def test_zscore_is_of_the_last_window_before_clipping(form):
    run = Run(MeanStd(1.0), form, window=2)
    assert run.of([9.0, 1.0, 3.0, 100.0, 7.0]) == approx([INF, INF, 5 + 4 * math.sqrt(2), 2 + math.sqrt(2), 51.5 + 48.5 * 2**0.5])
    assert run.state("lengths") == [7.0, 100.0]


@pytest.mark.parametrize(("warm_up", "first"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_zscore_counts_after_its_warm_up_and_two_norms(form, warm_up, first):
    found = Run(MeanStd(1.0, warm_up=warm_up), form).of([4.0, 4.0, 4.0, 4.0, 4.0])
    assert found == [INF] * first + [4.0] * (5 - first)


def test_zscore_passes_over_norms_that_are_zero_or_not_finite(form):
    run = Run(MeanStd(1.0), form)
    assert run.of([1.0, NAN, INF, 0.0, 3.0, 9.0]) == approx([INF] * 5 + [2 + math.sqrt(2)])
    assert run.state("count") == [3]


def test_zscore_of_blocks_that_know_different_numbers_of_norms(several):
    run = Run(MeanStd(1.0), several, blocks=3, window=4)
    for lengths in ([1.0, 2.0, 6.0], [3.0, 0.0, 6.0], [5.0, 4.0, 6.0]):
        run.step(lengths)
    assert run.step([1.0, 1.0, 1.0]) == approx([3 + 2, 3 + math.sqrt(2), 6.0])


def test_ratio_is_to_the_weights_and_no_less_than_to_a_thousandth(several):
    run = Run(RatioToWeights(0.01), several, level=0.5, blocks=4)
    found = run.step([1.0] * 4, weights=[0.0, 9.99e-4, 1.001e-3, 6.0])
    assert found == approx([0.5e-3, 0.5e-3, 0.5005e-3, 3.0])


def zclip_state(run):
    return run.state("average") + run.state("variance") + run.state("seen")


def test_zclip_starts_with_mean_and_variance_over_n_of_the_warm_up(form):
    run = Run(ZClip(2.0, warm_up=4), form)
    assert run.of([1.0, 3.0, 5.0, 100.0]) == [INF] * 4  # none is clipped
    mean = 109 / 4
    assert zclip_state(run) == approx([mean, sum((x - mean) ** 2 for x in (1, 3, 5, 100)) / 4, 4])


def test_zclip_shrinks_the_distance_by_the_square_of_the_level(form):
    run = Run(ZClip(2.0, averaging=0.75, warm_up=2), form)
    run.of([1.0, 3.0])  # mean 2, variance 1
    assert run.of([6.0]) == [3.0]  # z = 4: 2 + 2**2 * 1 / 4
    mean = 0.75 * 2 + 0.25 * 3
    assert zclip_state(run) == approx([mean, 0.75 * 1 + 0.25 * (3 - mean) ** 2, 3])  # of the clipped norm, about the new mean


@pytest.mark.parametrize(("norm", "wanted"), [(4.0, INF), (math.nextafter(4.0, 5.0), 4.0), (0.5, INF)])
def test_zclip_clips_beyond_its_level_only(form, norm, wanted):
    run = Run(ZClip(2.0, warm_up=2), form)
    run.of([1.0, 3.0])
    assert run.of([norm]) == approx([wanted])
    mean = 0.97 * 2 + 0.03 * norm
    assert zclip_state(run) == approx([mean, 0.97 * 1 + 0.03 * (norm - mean) ** 2, 3])


@pytest.mark.parametrize(("warm_up", "free"), [(0, 1), (1, 1), (2, 2), (25, 25)])
def test_zclip_counts_after_its_warm_up(form, warm_up, free):
    run = Run(ZClip(2.0, warm_up=warm_up), form)
    run.of([1.0] * (free - 1))
    assert run.of([1.0]) == [INF]
    assert run.of([1.0]) == [INF]  # no spike
    assert run.of([2.0]) == [1.0]  # variance 0: anything longer is one


@pytest.mark.parametrize("warm_up", [0, 1, 2])
def test_zclip_weighs_norms_equally_in_its_warm_up_only(form, warm_up):
    run = Run(ZClip(2.0, averaging=0.75, warm_up=warm_up), form)
    run.of([8.0, 4.0])
    assert zclip_state(run) == ([6.0, 4.0, 2] if warm_up == 2 else [7.0, 0.25 * 3.0**2, 2])


def test_zclip_passes_over_norms_that_are_zero_or_not_finite(form):
    run = Run(ZClip(2.0, warm_up=2), form)
    run.of([1.0, INF, 0.0, NAN])
    assert zclip_state(run) == [1.0, 0.0, 1]
    run.of([3.0])
    before = zclip_state(run)
    assert before == [2.0, 1.0, 2]
    for norm in (INF, NAN, 0.0):
        run.of([norm])
        assert zclip_state(run) == before


def test_zclip_blocks_warm_up_each_on_its_own(several):
    run = Run(ZClip(2.0, warm_up=2), several, blocks=3)
    assert run.step([1.0, 1.0, 0.0]) == [INF] * 3
    assert run.step([3.0, 0.0, 5.0]) == [INF] * 3
    assert run.step([6.0, 100.0, 7.0]) == [3.0, INF, INF]
    assert run.state("seen") == [3, 2, 2]
    assert run.state("average") == approx([0.97 * 2 + 0.03 * 3, 50.5, 6.0])


def test_zclip_is_the_oracles(form):
    run, oracle = Run(ZClip(2.5), form), reference.ZClip()
    norms = np.exp(np.random.default_rng(0).normal(size=120)).tolist()
    assert run.of(norms) == pytest.approx([oracle.threshold(norm, 2.5) for norm in norms], rel=1e-9)
    assert zclip_state(run) == pytest.approx([oracle.mean, oracle.variance, 120], rel=1e-9)


def test_adagc_clips_the_whole_gradient_in_its_warm_up(several):
    run = Run(AdaGC(1.5, warm_up=2), several, blocks=3)
    assert run.step([3.0, 4.0, 0.0], norm=5.0) == approx([0.6, 0.8, 0.0])
    assert run.state("average") == approx([0.6, 0.8, 0.0])  # of the clipped norms
    assert run.step([0.3, 0.4, 0.1], norm=0.5) == approx([0.6, 0.8, 0.2])  # whole norm below 1: nothing is clipped
    assert run.state("average") == approx([0.3, 0.4, 0.1])
    assert run.state("seen") == [2, 2, 1]


def test_adagc_average_is_the_smallest_norm_of_its_warm_up(form):
    run = Run(AdaGC(1.0, warm_up=4), form)
    assert run.of([0.5, 0.75, 0.25, 0.5], norm=2.0) == [0.25, 0.375, 0.125, 0.25]
    assert run.state("average") == [0.125]


def test_adagc_averages_clipped_norms_after_its_warm_up(form):
    run = Run(AdaGC(1.5, averaging=0.75, warm_up=1), form)
    run.step([0.5], norm=1.0)
    assert run.of([4.0]) == approx([0.75])
    assert run.state("average") == approx([0.75 * 0.5 + 0.25 * 0.75])
    before = run.state("average")[0]
    assert run.of([0.5]) == approx([1.5 * before])
    assert run.state("average") == approx([0.75 * before + 0.25 * 0.5])  # not clipped
    assert run.state("seen") == [3]


@pytest.mark.parametrize("warm_up", [0, 1, 3, 100])
def test_adagc_counts_after_its_warm_up(form, warm_up):
    run = Run(AdaGC(1.5, warm_up=warm_up), form)
    found = run.of([2.0] * (warm_up + 2), norm=2.0)
    first = 2.0 if warm_up == 0 else 1.0  # the average after the warm-up
    assert found[:warm_up] == [1.0] * warm_up
    assert found[warm_up:] == approx([1.5 * first, 1.5 * (0.99 * first + 0.01 * min(2.0, 1.5 * first))])


def test_adagc_block_that_comes_late_starts_with_its_own_norm(several):
    run = Run(AdaGC(1.5, averaging=0.75, warm_up=1), several, blocks=2)
    run.step([0.5, 0.0], norm=1.0)
    assert run.step([0.5, 7.0]) == approx([0.75, 10.5])
    assert run.state("average") == approx([0.5, 7.0])
    assert run.step([0.5, 100.0]) == approx([0.75, 10.5])


def test_adagc_of_level_below_one_starts_with_its_clipped_norm(form):
    run = Run(AdaGC(0.5, averaging=0.75, warm_up=0), form)
    assert run.of([8.0]) == [4.0]
    assert run.state("average") == [0.75 * 8 + 0.25 * 4]


@pytest.mark.parametrize("norm", [INF, NAN])
def test_adagc_warm_up_learns_nothing_where_the_whole_norm_is_not_finite(form, norm):
    run = Run(AdaGC(1.5, warm_up=1), form)
    assert run.of([0.5], norm=norm) == [INF]
    assert run.state("average") + run.state("seen") == [0.0, 0]
    assert run.of([4.0], norm=norm) == [6.0]  # after the warm-up it does not matter
    assert run.state("average") + run.state("seen") == [4.0, 1]


def test_adagc_passes_over_norms_that_are_zero_or_not_finite(form):
    run = Run(AdaGC(1.5, warm_up=2), form)
    run.of([0.5, INF, NAN, 0.0])
    assert run.state("average") + run.state("seen") == [0.5, 1]


def test_adagc_warm_up_with_no_norm_to_clip_to_takes_norms_as_they_are(form):
    run = Run(AdaGC(1.5, warm_up=2, warm_up_norm=INF), form)
    assert run.of([3.0, 2.0, 9.0], norm=9.0) == [INF, INF, 3.0]
    assert run.state("average") == approx([0.99 * 2 + 0.01 * 3])


def test_adagc_is_the_oracles(several):
    run, oracle = Run(AdaGC(1.04, warm_up=5), several, blocks=2), reference.AdaGC(5)
    for step, pair in enumerate(np.exp(np.random.default_rng(1).normal(size=(60, 2))).tolist(), start=1):
        norm = math.hypot(*pair)
        wanted = [oracle.threshold(i, length, norm, step, 1.04) for i, length in enumerate(pair)]
        assert run.step(pair, norm=norm) == pytest.approx(wanted, rel=1e-9)
    assert run.state("average") == pytest.approx([oracle.gamma[0], oracle.gamma[1]], rel=1e-9)


@pytest.mark.parametrize("threshold", [Quantile(0.75), MeanStd(2.0), ZClip(2.5, warm_up=3), AdaGC(1.04, warm_up=3)])
def test_blocks_are_thresholded_as_if_each_were_alone(several, threshold):
    lengths = np.exp(np.random.default_rng(2).normal(size=(20, 3)))
    together, alone = Run(threshold, several, blocks=3, window=5), [Run(threshold, "one block", window=5) for _ in range(3)]
    for row in lengths.tolist():
        wanted = [run.step([length], norm=3.0)[0] for run, length in zip(alone, row, strict=True)]
        assert together.step(row, norm=3.0) == pytest.approx(wanted, rel=1e-9)
