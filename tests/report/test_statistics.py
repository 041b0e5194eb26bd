"""The statistics against scipy and against results worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tarazu.report.analysis.comparison import Pair
from tarazu.report.analysis.statistics import difference, holm, interval
from tarazu.report.sections.chat.metrics import METRICS
from tarazu.report.sections.common.pairwise_tests import format_p


@pytest.fixture
def rows():
    return np.random.default_rng(3).normal(2.0, 0.5, 200)


def test_interval_matches_scipy_bootstrap(rows):
    ours = interval(rows)
    theirs = stats.bootstrap(
        (rows,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert ours.mean == pytest.approx(rows.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_weighted_mean_is_a_ratio_of_sums():
    nats, tokens = np.array([10.0, 90.0]), np.array([10.0, 30.0])
    assert interval(nats, tokens).mean == pytest.approx(100 / 40)  # not the mean of 1 and 3


def test_difference_matches_the_paired_t_test(rows):
    other = rows + np.random.default_rng(4).normal(0.05, 0.2, 200)
    ours, theirs = difference(rows, other), stats.ttest_rel(rows, other)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02, rel=0.5)
    low, high = theirs.confidence_interval()
    assert (ours.low, ours.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert ours.effect == pytest.approx((rows - other).mean() / (rows - other).std(ddof=1))


def test_paired_test_finds_what_an_unpaired_test_does_not(rows):
    result = difference(rows, rows + 0.02 + np.random.default_rng(5).normal(0, 0.02, 200))
    assert result.p < 0.01 and result.lower > 0.7
    assert stats.ttest_ind(rows, rows + 0.02).pvalue > 0.5


def test_equal_rows_do_not_differ(rows):
    result = difference(rows, rows)
    assert (result.mean, result.p, result.effect, result.min_detectable) == (0.0, 1.0, 0.0, 0.0)


def test_false_positive_rate_is_about_five_percent():
    rng = np.random.default_rng(6)
    alarms = [
        difference(rng.normal(size=40), rng.normal(size=40), resamples=500, seed=i).p < 0.05
        for i in range(200)
    ]
    assert 2 <= sum(alarms) <= 20


def test_seed_variance_widens_the_interval():
    rng = np.random.default_rng(7)
    rows = rng.normal(2, 0.1, 400)
    seeds = np.array([-0.3, 0.0, 0.3])
    result = interval(rows + seeds[:, None])
    theory = np.sqrt(seeds.var(ddof=1) / 3 + rows.var(ddof=1) / 400)
    t_quantile = 4.303  # of two degrees of freedom
    assert (result.high - result.low) / (2 * t_quantile) == pytest.approx(theory, rel=0.2)
    assert result.seeds == 3 and result.rows == 400


@pytest.mark.parametrize(("seeds", "deviation"), [(2, 0.05), (3, 0.05), (3, 0.012)])
def test_interval_of_few_seeds_has_its_coverage(seeds, deviation):
    """Of two methods that differ between seeds only, 95% of the intervals contain zero."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(150):
        rows, method_effect = rng.normal(0, 0.05, 100), rng.normal(0, 0.04, 100)
        a, b = (
            rows + effect + rng.normal(0, deviation, (seeds, 1)) + rng.normal(0, 0.02, (seeds, 100))
            for effect in (method_effect, 0)
        )
        result = difference(a, b, resamples=1000)
        covered += result.low <= 0 <= result.high
    assert 0.88 <= covered / 150 <= 0.995


def test_single_seed_takes_over_the_seed_variance_of_the_other_method():
    rng, alarms = np.random.default_rng(2), {True: 0, False: 0}
    for _ in range(150):
        a, b = (
            rng.normal(0, 0.03, (seeds, 1)) + rng.normal(0, 0.05, (seeds, 100)) for seeds in (1, 3)
        )
        for both_trained in alarms:
            p = difference(a, b, resamples=1000, both_trained=both_trained).p
            alarms[both_trained] += p < 0.05
    assert alarms[True] <= 12 < alarms[False]
    # The base model was not trained, so it has no seed variance.
    base, tuned = rng.normal(0, 0.05, 100), rng.normal(-0.03, 0.05, (3, 100))
    assert difference(base, tuned, both_trained=False).p < difference(base, tuned).p


def test_difference_between_seeds_is_not_significant():
    rows = np.random.default_rng(8).normal(2, 0.1, 300)
    a, b = rows + np.array([[-0.3], [0.0], [0.25]]), rows + np.array([[-0.2], [0.1], [0.2]])
    assert difference(a[:1], b[:1]).p < 0.01  # with one seed each, it seems to be
    assert difference(a, b).p > 0.3


def test_min_detectable_follows_the_power_formula(rows):
    other = rows + np.random.default_rng(9).normal(0, 0.3, 200)
    standard_error = (rows - other).std(ddof=1) / np.sqrt(200)
    single, ten = difference(rows, other), difference(rows, other, comparisons=10)
    assert single.min_detectable == pytest.approx((1.96 + 0.8416) * standard_error, rel=0.05)
    assert ten.min_detectable > single.min_detectable


def test_holm_matches_a_calculation_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_same_seed_gives_same_results(rows):
    assert interval(rows, seed=5) == interval(rows, seed=5)
    assert difference(rows, rows[::-1], seed=5) == difference(rows, rows[::-1], seed=5)


def test_unpaired_rows_are_refused(rows):
    with pytest.raises(ValueError, match="paired rows"):
        difference(rows, rows[:-1])


def test_interval_of_one_row_is_its_value():
    result = interval(np.array([2.0]))
    assert (result.low, result.mean, result.high) == (2.0, 2.0, 2.0)


def test_smallest_possible_p_is_marked(rows):
    different, alike = difference(rows, rows + 5), difference(rows, rows[::-1])
    assert different.floor and different.p == pytest.approx(2 / 10_001) and not alike.floor


def test_smallest_possible_p_is_written_as_an_upper_bound(rows):
    result = difference(rows, rows + 5)
    pair = Pair("a", "b", METRICS.by_key["loss"], result, 36 * result.p)
    assert format_p(pair).plain("en") == "≤ 0.007"
    assert format_p(pair).plain("fa").startswith("حداکثر")
    assert format_p(replace(pair, p=2 * result.p)).plain("en") == "< 0.001"
    exact = replace(pair, p=0.04, difference=replace(result, floor=False))
    assert format_p(exact).plain("en") == "0.040"
