"""Statistics of tails on laws whose answers are known, and lengths of gradients at weights that stay where they are."""

import copy
import math
import random
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from support.assertions import live_tensors
from support.cases import pairwise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.toy.noise import NOISES
from torch_clipped import ClippedSGD
from torch_clipped.heavy_tails import (
    excess_kurtosis,
    gradient_lengths,
    hill_curve,
    hill_index,
    noise_lengths,
    outlier_shares,
    quantiles,
    skewness,
    stable_index,
    tail_statistics,
    variance_curve,
)
from torch_clipped.heavy_tails.resamples import Sample

MEASURES = [gradient_lengths, noise_lengths]
FEW = {"resamples": 100}
STATISTICS = [quantiles, skewness, excess_kurtosis, hill_index, hill_curve, outlier_shares, variance_curve, tail_statistics]
WEIBULL, BURR = NOISES[2:]


def lengths_of_vectors(draw):
    """Lengths of 10,000 vectors of 100 numbers, in parts of a size that fits the memory of small machines."""
    return np.concatenate([np.linalg.norm(draw((1000, 100)), axis=1) for _ in range(10)])


LAWS = {  # 10,000 lengths by a generator, and the Hill index at 5 % that is expected of them
    "normal": (lambda g: np.abs(g.standard_normal(10_000)), 6.0),
    "norm of 100 normal": (lambda g: lengths_of_vectors(g.standard_normal), 37),
    "t(3)": (lambda g: np.abs(g.standard_t(3, 10_000)), 2.5),
    "Cauchy": (lambda g: np.abs(g.standard_cauchy(10_000)), 1.0),
    "norm of 100 Weibull 0.2": (lambda g: lengths_of_vectors(lambda shape: WEIBULL.draw(g, shape)), 1.7),
    "norm of 100 Burr": (lambda g: lengths_of_vectors(lambda shape: BURR.draw(g, shape)), 2.5),
}


@pytest.mark.parametrize("law", LAWS)
def test_hill_index_of_known_laws(law):
    draw, expected = LAWS[law]
    found = [hill_index(draw(np.random.default_rng(seed)), **FEW) for seed in range(3)]
    assert np.mean([index.value for index in found]) == pytest.approx(expected, rel=0.08)
    for index in found:
        assert index.low < index.value < index.high
        assert index.high - index.low == pytest.approx(4 * index.value / math.sqrt(500), rel=0.5)  # 2 * 1.96 a / sqrt(k)


def test_hill_index_is_its_formula():
    lengths = [3.0, 1.0, 16.0, 2.0, 0.0, 8.0, 0.5, 4.0, 1.0, 2.0]
    assert hill_index(lengths, share=0.2).value == pytest.approx(2 / (math.log(16 / 4) + math.log(8 / 4)))
    assert hill_curve(lengths).values[1] == pytest.approx(hill_index(lengths, share=0.2).value)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_intervals_of_the_hill_index_cover_that_of_a_pareto_law(power):
    draws = [np.random.default_rng(seed).pareto(power, 400) + 1 for seed in range(100)]
    found = [hill_index(x, share=0.2, confidence=0.9, resamples=200) for x in draws]
    assert 80 <= sum(index.low < power < index.high for index in found) <= 98
    curves = [hill_curve(x, confidence=0.9) for x in draws]
    for k in (1, 20, 200):
        assert 80 <= sum(c.low[k - 1] < power < c.high[k - 1] for c in curves) <= 98


def test_hill_curve_has_the_normal_interval_for_large_k():
    curve = hill_curve(np.random.default_rng(0).pareto(3, 20_000) + 1)
    assert curve.samples.tolist() == list(range(1, 10_001))
    assert curve.high[-1] == pytest.approx(curve.values[-1] * (1 + stats.norm.ppf(0.975) / 100), rel=1e-3)
    assert curve.low[-1] == pytest.approx(curve.values[-1] * (1 - stats.norm.ppf(0.975) / 100), rel=1e-3)


def test_hill_curve_ends_where_lengths_are_zero():
    assert hill_curve([0.0] * 7 + [1.0, 2.0, 4.0]).samples.tolist() == [1, 2]


def test_hill_index_of_equal_lengths_is_infinite():
    assert hill_index(np.full(100, 3.0)).value == math.inf
    assert (hill_curve(np.full(100, 3.0)).values == math.inf).all()


def test_hill_curve_of_ties_is_infinite_until_they_end():
    curve = hill_curve([7.0] * 4 + [1.0] * 8)
    assert [column[:3].tolist() for column in curve[1:]] == [[math.inf] * 3] * 3
    assert curve.values[3:] == pytest.approx([1 / math.log(7), 5 / 4 / math.log(7), 6 / 4 / math.log(7)])


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8, 2.0])
def test_stable_index_of_stable_laws(alpha):
    draws = [stats.levy_stable.rvs(alpha, 0, size=20_000, random_state=np.random.default_rng(seed)) for seed in range(5)]
    found = [stable_index(x, **FEW) for x in draws]
    assert np.mean([index.value for index in found]) == pytest.approx(alpha, rel=0.04)
    assert sum(index.low < alpha < index.high for index in found) >= 3
    assert stable_index(7 * draws[0], **FEW).value == pytest.approx(found[0].value)


def test_stable_index_is_its_formula_and_leaves_out_what_fills_no_block():
    samples, sums = [1.0, -3.0, 2.0, 4.0, 5.0, -1.0], [-2.0, 6.0, 4.0]
    growth = np.mean(np.log(np.abs(sums))) - np.mean(np.log(np.abs(samples)))
    assert stable_index([*samples, 100.0], block=2).value == pytest.approx(math.log(2) / growth)


def test_stable_index_of_lengths_that_are_not_centred_is_near_one():
    assert stable_index(LAWS["norm of 100 normal"][0](np.random.default_rng(0)), **FEW).value == pytest.approx(1, rel=0.01)


def test_stable_index_is_nan_where_a_sum_is_zero_and_infinite_where_sums_shrink():
    assert math.isnan(stable_index([49.0, -49.0, 51.0, 3.0]).value)
    assert stable_index([3.0, -2.0, 5.0, -4.5]).value == math.inf


def test_intervals_of_quantiles_cover_as_often_as_they_say():
    draws = [np.random.default_rng(seed).standard_exponential(300) for seed in range(100)]
    found = [quantiles(x, [0.5, 0.9], confidence=0.9, resamples=200) for x in draws]
    for p in (0.5, 0.9):
        truth = -math.log(1 - p)
        assert 80 <= sum(f[p].low < truth < f[p].high for f in found) <= 98


def test_quantiles_and_moments_are_those_of_numpy_and_scipy():
    x = np.random.default_rng(0).standard_exponential(1000)
    assert {p: q.value for p, q in quantiles(x, [0, 0.3, 1]).items()} == pytest.approx(
        {p: np.quantile(x, p) for p in (0, 0.3, 1)}
    )
    assert skewness(x).value == pytest.approx(stats.skew(x))
    assert excess_kurtosis(x).value == pytest.approx(stats.kurtosis(x))
    assert variance_curve(x).values[-1] == pytest.approx(np.var(x, ddof=1))


@pytest.mark.parametrize(("statistic", "normal", "exponential"), [(skewness, 0, 2), (excess_kurtosis, 0, 6)])
def test_moments_of_known_laws(statistic, normal, exponential):
    g = np.random.default_rng(0)
    found = statistic(g.standard_normal(50_000) + 10, **FEW)
    assert found.low < normal < found.high
    assert found.high - found.low < 0.2
    assert statistic(g.standard_exponential(50_000), **FEW).value == pytest.approx(exponential, rel=0.2)


@pytest.mark.parametrize("statistic", [skewness, excess_kurtosis, hill_index, stable_index])
def test_statistics_do_not_depend_on_the_unit(statistic):
    x = np.random.default_rng(0).standard_exponential(100)
    for unit in (1e-200, 1e200, 2e307):
        assert statistic(unit * x) == pytest.approx(statistic(x), rel=1e-6), f"in units of {unit}"


def test_fence_of_lengths_near_the_largest_float_is_infinite():
    found = outlier_shares(np.linspace(0, 1.7e308, 100), **FEW)
    assert found[3.0].fence == math.inf
    assert found[3.0].count == 0


def test_variance_of_equal_lengths_is_zero():
    assert (variance_curve(np.full(50, 0.1), **FEW).values == 0).all()
    assert tail_statistics(np.full(50, 0.1), **FEW)["variance"] == 0


def test_intervals_are_those_of_scipy():
    x = np.random.default_rng(0).standard_exponential(300)

    def interval(statistic):
        generator = np.random.default_rng(3)
        return tuple(
            stats.bootstrap((x,), statistic, n_resamples=20, method="percentile", random_state=generator).confidence_interval
        )

    def hill_weight(x, axis):
        largest = -np.sort(-x)[..., :6]
        return np.log(largest[..., :5] / largest[..., 5:]).mean(axis=axis)

    few = {"resamples": 20, "seed": 3}
    assert quantiles(x, [0.9], **few)[0.9][1:] == pytest.approx(interval(lambda x, axis: np.quantile(x, 0.9, axis=axis)))
    assert skewness(x, **few)[1:] == pytest.approx(interval(stats.skew))
    low, high = interval(hill_weight)
    assert hill_index(x, 5 / 300, **few)[1:] == pytest.approx((1 / high, 1 / low))


def test_outlier_shares_of_a_normal_law():
    quartile = stats.norm.ppf(0.75)
    for c, ratio_of_one in ((1.5, 0.0034883), (3.0, 1.171e-6)):
        assert stats.norm.sf(quartile + c * 2 * quartile) == pytest.approx(ratio_of_one, rel=1e-4)
    found = outlier_shares(100 + stats.norm.ppf((np.arange(1_000_000) + 0.5) / 1_000_000), resamples=2)
    assert found[1.5].count == pytest.approx(3488, abs=2)
    assert found[1.5].ratio.value == pytest.approx(1, rel=1e-3)
    assert found[3.0].count == 1
    assert found[3.0].share.value == 1e-6
    assert found[3.0].ratio.value == pytest.approx(1 / 1.1709712, rel=1e-6)


def test_outlier_shares_of_a_cauchy_law():
    found = outlier_shares(np.abs(np.random.default_rng(0).standard_cauchy(20_000)), **FEW)
    low, high = math.tan(math.pi / 8), math.tan(3 * math.pi / 8)  # quartiles of the law
    for c in (1.5, 3.0):
        truth = 1 - 2 / math.pi * math.atan(high + c * (high - low))
        assert found[c].share.low < truth < found[c].share.high
        assert found[c].count == round(found[c].share.value * 20_000)


def test_variance_settles_only_where_there_is_one():
    g = np.random.default_rng(0)
    settled = variance_curve(np.abs(g.standard_normal(10_000)), **FEW)
    assert settled.samples[0] == 10
    assert settled.samples[-1] == 10_000
    assert len(settled.samples) == 20
    assert settled.values[-5:] == pytest.approx(1 - 2 / math.pi, rel=0.1)
    assert settled.low[-1] < 1 - 2 / math.pi < settled.high[-1]
    growing = variance_curve(np.abs(g.standard_cauchy(10_000)), **FEW)
    assert growing.values[-1] > 100 * growing.values[0]


def test_all_statistics_are_plain_numbers_and_those_of_the_functions():
    x = np.random.default_rng(0).standard_t(3, 500) ** 2
    found = tail_statistics(torch.tensor(x), share=0.1, **FEW)
    assert all(type(value) in (int, float) for value in found.values())
    assert found["count"] == 500
    assert found["hill_samples"] == 50
    assert (found["hill_index"], found["hill_index_low"], found["hill_index_high"]) == hill_index(x, 0.1, **FEW)
    assert found["quantile_0.5"] == np.median(x)
    assert found["beyond_3_iqr_count"] == outlier_shares(x, **FEW)[3.0].count
    assert found["beyond_3_iqr_ratio_low"] == outlier_shares(x, **FEW)[3.0].ratio.low
    assert found["stable_index"] == stable_index(x[::2] - x[1::2], **FEW).value
    assert found["variance"] == pytest.approx(np.var(x, ddof=1))
    for name, statistic in (("skewness", skewness), ("excess_kurtosis", excess_kurtosis)):
        assert (found[name], found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(statistic(x, **FEW))
    for p, estimate in quantiles(x, **FEW).items():
        assert (found[f"quantile_{p:g}_low"], found[f"quantile_{p:g}_high"]) == estimate[1:]


def test_what_the_samples_do_not_determine_is_nan():
    found = tail_statistics(np.full(100, 3.0), **FEW)
    assert all(math.isnan(found[name]) for name in ("skewness", "excess_kurtosis", "stable_index"))
    assert found["variance"] == 0
    assert found["quantile_0.5_low"] == found["quantile_0.5_high"] == 3


def test_recorded_norms_of_an_optimizer_are_lengths():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = ClippedSGD([weight], lr=0.1)
    for step in range(20):
        weight.grad = torch.full((3,), 1.0 + step)
        optimizer.step()
    assert tail_statistics(optimizer.grad_norms(), **FEW)["quantile_0.5"] == pytest.approx(10.5 * math.sqrt(3))


def test_same_seed_gives_the_same_interval_and_no_global_random_state_is_touched():
    x = np.random.default_rng(0).standard_exponential(100)
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    assert hill_index(x, seed=1) == hill_index(x, seed=1) != hill_index(x, seed=2)
    assert (np.random.get_state()[1] == before[0]).all()
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "lengths must be at least . samples, got 0"),
        ([1.0], "lengths must be at least . samples, got 1"),
        ([1.0] * 20 + [math.nan], "lengths must be finite and at least 0, got nan in place 20"),
        ([math.inf] * 20, "lengths must be finite and at least 0, got inf in place 0"),
        ([1.0, -2.0] * 20, "lengths must be finite and at least 0, got -2.0 in place 1"),
        (torch.ones(4, 5), r"lengths must have one dimension, got shape \(4, 5\)"),
        (["long"] * 20, "lengths must be numbers"),
        (["1.5"] * 20, "lengths must be numbers, got .'1.5', '1.5'"),
        ([True, False] * 20, "lengths must be numbers"),
        (torch.ones(20) > 0, "lengths must be numbers"),
        (np.ones(20, dtype=complex), "lengths must be numbers"),
        (torch.ones(20) * 1j, "lengths must be numbers"),
        (np.array(["2026-01-01"] * 20, dtype="datetime64[D]"), "lengths must be numbers"),
        ([10**400] * 20, "lengths must be numbers"),
        ([None] * 20, "lengths must be numbers, got .None, None"),
        (3.0, r"lengths must have one dimension, got shape \(\)"),
    ],
)
def test_wrong_lengths_are_named(lengths, message):
    for statistic in STATISTICS:
        with pytest.raises(ValueError, match=message):
            pytest.fail(f"{statistic.__name__} has taken them for {statistic(lengths)}")


@pytest.mark.parametrize(
    "lengths",
    [
        list(range(1, 41)),
        torch.arange(1, 41),
        torch.arange(1.0, 41.0).half(),
        torch.arange(1.0, 41.0).bfloat16(),
        torch.arange(1.0, 41.0, requires_grad=True),
        [torch.tensor(float(i), requires_grad=True) for i in range(1, 41)],
        [torch.tensor(float(i)).bfloat16() for i in range(1, 41)],
    ],
)
def test_lengths_of_any_kind_of_number_are_taken(lengths):
    assert hill_index(lengths) == hill_index(np.arange(1.0, 41.0))


@pytest.mark.parametrize("statistic", [*STATISTICS, stable_index])
def test_masked_samples_are_refused_and_an_empty_mask_is_none(statistic):
    samples = np.ma.masked_greater(np.arange(1.0, 41.0), 38.0)
    with pytest.raises(ValueError, match=r"(lengths|samples) must not be masked, got 2 masked of 40 samples: pass .*compressed"):
        statistic(samples)
    everything = np.ma.masked_greater(np.arange(1.0, 41.0), 99.0)
    assert repr(statistic(everything)) == repr(statistic(np.arange(1.0, 41.0)))


def test_as_many_resamples_are_drawn_of_many_samples_as_asked_for():
    samples = np.random.default_rng(0).pareto(2.0, 1_000_000) + 1
    found = [hill_index(samples, resamples=resamples) for resamples in (100, 1000)]
    assert found[0] != found[1]
    assert found[0].value == found[1].value


def test_intervals_of_a_million_samples_are_those_of_formulas():
    n, z, a = 1_000_000, stats.norm.ppf(0.975), 2.0
    x = np.random.default_rng(0).pareto(a, n) + 1
    found = hill_index(x)
    assert found.value == pytest.approx(a, rel=0.02)
    assert found[1:] == pytest.approx([found.value * (1 + sign * z / 50_000**0.5) for sign in (-1, 1)], rel=1e-3)
    for p, estimate in quantiles(x, [0.01, 0.5, 0.999]).items():
        ends = [np.quantile(x, p + sign * z * math.sqrt(p * (1 - p) / n)) for sign in (-1, 1)]
        assert estimate[1:] == pytest.approx(ends, abs=0.05 * (ends[1] - ends[0]))
    beyond = outlier_shares(x)[3.0].share
    assert beyond.high - beyond.low == pytest.approx(2 * z * math.sqrt(beyond.value / n), rel=0.1)  # the fence hardly varies


def test_intervals_of_moments_of_many_samples_are_those_of_formulas():
    x = np.abs(np.random.default_rng(0).standard_normal(300_000))
    found = tail_statistics(x)
    centred = (x - x.mean()) / x.std()
    third, fourth = (centred**3).mean(), (centred**4).mean()
    influences = {  # what one sample adds to the statistic, as the derivative by its share
        "variance": x.var() * (centred**2 - 1),
        "skewness": centred**3 - third - 3 * centred - 1.5 * third * (centred**2 - 1),
        "excess_kurtosis": centred**4 - fourth - 4 * third * centred - 2 * fourth * (centred**2 - 1),
    }
    for name, influence in influences.items():
        width = 2 * stats.norm.ppf(0.975) * influence.std() / math.sqrt(len(x))
        assert found[f"{name}_high"] - found[f"{name}_low"] == pytest.approx(width, rel=0.07)
        middle = (found[f"{name}_high"] + found[f"{name}_low"]) / 2
        assert middle == pytest.approx(found[name], abs=0.05 * width)


@pytest.mark.parametrize("law", ["standard_normal", "standard_exponential", "standard_cauchy"])
def test_intervals_do_not_jump_where_samples_begin_to_be_drawn_in_blocks(law):
    x = np.abs(getattr(np.random.default_rng(0), law)(20_001))
    single, blocks = tail_statistics(x[:-1]), tail_statistics(x)
    for name in (name.removesuffix("_low") for name in single if name.endswith("_low")):
        width = single[f"{name}_high"] - single[f"{name}_low"]
        for end in (f"{name}_low", f"{name}_high"):
            assert blocks[end] == pytest.approx(single[end], abs=0.15 * width), end  # 1000 resamples


def test_statistics_of_many_samples_are_computed_from_all_of_them():
    x = np.random.default_rng(0).standard_t(3, 50_000) ** 2
    found = tail_statistics(x, **FEW)
    assert found["variance"] == pytest.approx(np.var(x, ddof=1), rel=1e-12)
    assert found["skewness"] == pytest.approx(stats.skew(x), rel=1e-9)
    assert found["excess_kurtosis"] == pytest.approx(stats.kurtosis(x), rel=1e-9)
    largest = np.log(-np.sort(-x)[:2501])
    assert found["hill_index"] == pytest.approx(1 / (largest[:-1] - largest[-1]).mean(), rel=1e-12)
    for p in (0.01, 0.5, 0.99):
        assert found[f"quantile_{p:g}"] == pytest.approx(np.quantile(x, p), rel=1e-15)
    assert found["beyond_3_iqr"] == found["beyond_3_iqr_count"] / 50_000


def test_many_equal_samples_and_ties_have_intervals_without_width():
    equal = tail_statistics(np.full(30_000, 0.1), **FEW)
    assert equal["variance"] == equal["variance_low"] == equal["variance_high"] == 0
    assert equal["hill_index"] == equal["hill_index_low"] == equal["hill_index_high"] == math.inf
    assert all(math.isnan(equal[f"{name}{end}"]) for name in ("skewness", "excess_kurtosis") for end in ("", "_low", "_high"))
    ties = tail_statistics(np.random.default_rng(0).integers(1, 5, 100_000), **FEW)
    assert {ties[f"quantile_{p:g}{end}"] for p in (0.05, 0.95) for end in ("_low", "_high")} == {1, 4}
    assert ties["hill_index"] == ties["hill_index_low"] == ties["hill_index_high"] == math.inf


def test_variance_of_two_values_hardly_varies():
    """Where both values meet in a block, its samples are counted by their mean; the variance must stay unbiased."""
    found = tail_statistics(np.repeat([1.0, 2.0], [60_000, 40_001]), **FEW)
    error = 0.2 * math.sqrt(0.24 / 100_001)  # of p (1 - p) with p = 0.4
    assert found["variance_low"] < found["variance"] < found["variance_high"]
    assert found["variance_high"] - found["variance_low"] == pytest.approx(4 * error, rel=0.2)


def test_resamples_of_ten_million_samples_are_a_few_thousand_counts():
    sample = Sample(np.arange(10_000_000.0))
    assert len(sample.sizes) < 12_000
    assert sample.sizes.sum() == 10_000_000
    assert set(sample.sizes[:500]) == set(sample.sizes[-500:]) == {1}
    assert sample.sizes.max() <= 10_000
    drawn = next(sample.resamples(3, np.random.default_rng(0)))
    assert drawn.counts.sum(axis=1).tolist() == [10_000_000] * 3
    assert drawn.quantile(0.5) == pytest.approx(5_000_000, abs=5 * math.sqrt(10_000_000 / 4))
    limits = drawn.quantile(0.9)
    assert drawn.share_above(limits) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hill_index(x, share=0), "share must be between 0 and 1, both excluded, got 0.0"),
        (lambda x: hill_index(x, share=1.5), "share must be between 0 and 1, both excluded, got 1.5"),
        (lambda x: hill_index(x, share="5 %"), "share must be a number between 0 and 1, got '5 %'"),
        (lambda x: hill_index(x, share=0.01), "share must be at least one sample and not all, got 0.01 of 40 samples"),
        (lambda x: hill_index(x, share=0.99), "share must be at least one sample and not all, got 0.99 of 40 samples"),
        (lambda x: hill_index(0 * x), "lengths must be positive in the tail, but of the largest 3 not all are"),
        (lambda x: hill_curve(0 * x), "lengths must hold at least two positive ones, got 0"),
        (lambda x: hill_curve(x, confidence=1), "confidence must be between 0 and 1, both excluded, got 1.0"),
        (lambda x: skewness(x, confidence=95), "confidence must be between 0 and 1, both excluded, got 95.0"),
        (lambda x: skewness(x, resamples=0), "resamples must be an integer >= 1, got 0"),
        (lambda x: skewness(x, seed=-1), "seed must be an integer >= 0, got -1"),
        (lambda x: quantiles(x, [0.5, 2]), "probabilities must be numbers between 0 and 1"),
        (lambda x: quantiles(x, []), "probabilities must be numbers between 0 and 1"),
        (lambda x: skewness(torch.tensor(x).to_sparse()), "lengths must be numbers"),
        (lambda x: stable_index(x, block=1), "block must be an integer >= 2, got 1"),
        (lambda x: stable_index(x, block=21), "block must be at most half of the samples, got 21 of 40"),
        (lambda x: stable_index(x[:3]), "samples must be at least 4 samples, got 3"),
        (lambda x: stable_index(math.nan * x), "samples must be finite, got nan in place 0"),
    ],
)
def test_wrong_arguments_are_named_with_their_values(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.arange(1.0, 41.0))


def test_only_the_hill_curve_needs_scipy_and_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert tail_statistics(np.arange(1.0, 41.0), **FEW)["count"] == 40
    with pytest.raises(ImportError, match=r"pip install torch-clipped\[heavy-tails\]"):
        hill_curve(np.arange(1.0, 41.0))


# Lengths at fixed weights


class Net(nn.Module):
    """Batch normalization, dropout, a frozen weight, one that is not used, and a buffer that is replaced."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.layers[0].bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        self.layers[1].train()
        return self.layers(x)


def loss_of(model, batch):
    inputs, targets = batch
    return (model(inputs).squeeze(1) - targets).square().mean()


def batches_of(count=6, size=5):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, generator=generator)) for _ in range(count)]


def gradients_one_by_one(model, loss, batches):
    """All gradients as vectors, from copies of the model: dropout goes on drawing, as in one pass."""
    found = []
    for batch in batches:
        twin = copy.deepcopy(model)
        twin.zero_grad()
        loss(twin, batch).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in twin.parameters() if p.requires_grad]
        found.append(torch.cat([g.flatten() for g in grads]).double())
    return torch.stack(found)


def everything(model):
    random_states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()[1])
    modes = [module.training for module in model.modules()]
    return copy.deepcopy([model.state_dict(), [p.grad for p in model.parameters()], modes, random_states])


def assert_same(one, other):
    torch.testing.assert_close(one[:2], other[:2], rtol=0, atol=0)
    assert one[2] == other[2]
    assert torch.equal(one[3][0], other[3][0])
    assert (one[3][1] == other[3][1]).all()
    assert one[3][2] == other[3][2]


def test_lengths_are_those_of_the_gradients_one_by_one():
    model, batches = Net(), batches_of()
    with torch.random.fork_rng(devices=[]):
        gradients = gradients_one_by_one(model, loss_of, batches)
    torch.testing.assert_close(gradient_lengths(model, loss_of, batches), gradients.norm(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_lengths(model, loss_of, iter(batches), 2), gradients[:2].norm(dim=1), rtol=1e-5, atol=0)
    noise = (gradients - gradients.mean(dim=0)).norm(dim=1)
    torch.testing.assert_close(noise_lengths(model, loss_of, batches), noise, rtol=1e-5, atol=0)
    noise = (gradients[:3] - gradients[:3].mean(dim=0)).norm(dim=1)
    torch.testing.assert_close(noise_lengths(model, loss_of, batches, batches=3), noise, rtol=1e-5, atol=0)


@pairwise(measure=MEASURES, training=[True, False], fails=[True, False])
def test_everything_is_as_before(measure, training, fails):
    model, calls = Net().train(training), []
    model.layers[3].weight.grad = torch.ones(1, 4)
    before, buffers = everything(model), dict(model.named_buffers())

    def loss(model, batch):
        calls.append(1)
        np.random.standard_normal()
        random.random()
        if fails and len(calls) == 3:
            raise RuntimeError("out of memory")
        return loss_of(model, batch)

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            measure(model, loss, batches_of())
    else:
        assert len(measure(model, loss, batches_of())) == 6
    assert_same(everything(model), before)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_the_caller_takes_none(grad_mode):
    model, batches = Net(), batches_of()
    expected = noise_lengths(model, loss_of, batches)
    with grad_mode():
        assert torch.equal(noise_lengths(model, loss_of, batches), expected)


def test_hooks_that_wait_for_gradients_are_not_called():
    model, called = Net(), []
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(called.append)
    gradient_lengths(model, loss_of, batches_of())
    assert called == []


def test_loader_that_shuffles_by_the_global_random_state_gives_the_same_batches_twice():
    data = TensorDataset(*(torch.cat(x) for x in zip(*batches_of(), strict=True)))
    found = noise_lengths(Net(), loss_of, DataLoader(data, batch_size=5, shuffle=True))
    assert not torch.equal(found.sort().values, noise_lengths(Net(), loss_of, DataLoader(data, batch_size=5)).sort().values)
    own = DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="loader must give the same batches in both passes, but batch 0 had loss"):
        noise_lengths(Net(), loss_of, own)


class Changing:
    """A loader that gives other batches in its second pass."""

    def __init__(self, *passes):
        self.passes = iter(passes)

    def __iter__(self):
        return iter(next(self.passes))


def test_other_batches_in_the_second_pass_are_an_error():
    batches = batches_of()
    with pytest.raises(ValueError, match=r"but batch 5 had loss .*, then none"):
        noise_lengths(Net(), loss_of, Changing(batches, batches[:5]))
    with pytest.raises(ValueError, match="but batch 5 had none, then loss"):
        noise_lengths(Net(), loss_of, Changing(batches[:5], batches))
    with pytest.raises(ValueError, match="but batch 4 had loss"):
        noise_lengths(Net(), loss_of, Changing(batches, [*batches[:4], batches[5], batches[4]]))


def test_noise_holds_two_gradients_at_a_time_beyond_those_of_the_model():
    """Counted by the storages of the size of the one weight that are alive when a gradient is asked for."""

    class Big(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1 << 21))

    model, alive = Big(), []
    size = model.weight.untyped_storage().nbytes()

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, scale):
            ctx.scale = scale
            return weight.sum() * scale

        @staticmethod
        def backward(ctx, grad):
            tensors = live_tensors(torch.Tensor, nn.Parameter)
            storages = {t.untyped_storage().data_ptr() for t in tensors if t.untyped_storage().nbytes() >= size}
            alive.append(len(storages))
            return torch.full((1 << 21,), float(grad) * ctx.scale), None

    found = noise_lengths(model, lambda model, scale: Watched.apply(model.weight, scale), [1.0, 2.0, 6.0])
    assert found.tolist() == pytest.approx([x * math.sqrt(1 << 21) for x in (2, 1, 3)])
    assert alive == [1, 2, 2, 2, 2, 2]  # the weight, and the mean once there is one; the new gradient is the second


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_gradients_of_every_type_are_measured(dtype):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4, 3, dtype=dtype))
    found = [measure(model, lambda model, x: model.weight.sum().real * x, [1.0, 2.0, 6.0]) for measure in MEASURES]
    for lengths, expected in zip(found, ([1, 2, 6], [2, 1, 3]), strict=True):
        assert lengths.dtype == torch.float64
        assert lengths.tolist() == pytest.approx([x * math.sqrt(12) for x in expected])


def test_sparse_gradients_and_weights_without_dimensions_are_measured():
    model = nn.Module()
    model.table = nn.Embedding(5, 2, sparse=True)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with torch.no_grad():
        model.table.weight.fill_(1.0)

    def loss(model, rows):
        return model.table(torch.tensor(rows)).sum() * model.scale

    rows = [[0, 0], [1, 2]]
    assert gradient_lengths(model, loss, rows).tolist() == pytest.approx([math.sqrt(8 + 16), math.sqrt(4 + 16)])
    assert noise_lengths(model, loss, rows).tolist() == pytest.approx([math.sqrt(2 + 0.5 + 0.5)] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": []}, "loader must give at least one batch, got none"),
        ({"loss": lambda model, batch: model(batch[0])}, r"loss must return a tensor with one element, got shape \(5, 1\)"),
        ({"loss": lambda model, batch: 1.5}, "loss must return a tensor with one element, got float 1.5"),
        ({"model": nn.ReLU()}, "model must have parameters that require a gradient, got none"),
        ({"batches": 0}, "batches must be an integer >= ., got 0"),
        ({"batches": 2.0}, "batches must be an integer >= ., got 2.0"),
    ],
)
def test_wrong_arguments_of_lengths_are_named(change, message):
    arguments = {"model": Net(), "loss": loss_of, "loader": batches_of()} | change
    for measure in MEASURES:
        with pytest.raises(ValueError, match=message):
            pytest.fail(f"{measure.__name__} has found {measure(**arguments)}")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (iter(batches_of()), "loader must be one that can be gone through twice, such as a list, got list_iterator"),
        (batches_of(1), "loader must give at least two batches, got one"),
    ],
)
def test_loaders_that_leave_no_noise_are_refused(loader, message):
    with pytest.raises(ValueError, match=message):
        noise_lengths(Net(), loss_of, loader)


def test_gradient_that_is_not_finite_is_measured_but_has_no_noise():
    batches = batches_of(3)
    batches[1][1][0] = math.inf
    assert not gradient_lengths(Net(), loss_of, batches)[1].isfinite()
    with pytest.raises(ValueError, match="gradients must be finite, but batch 1 has loss inf"):
        noise_lengths(Net(), loss_of, batches)
