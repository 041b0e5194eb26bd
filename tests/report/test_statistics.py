"""The statistics against scipy and against what can be worked out by hand."""

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


def test_interval_is_scipys_bootstrap(rows):
    ours = interval(rows)
    theirs = stats.bootstrap(
        (rows,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert ours.mean == pytest.approx(rows.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01) and ours.high == pytest.approx(
        theirs.high, abs=0.01
    )


def test_weights_make_a_ratio_of_sums():
    nats, tokens = np.array([10.0, 90.0]), np.array([10.0, 30.0])
    assert interval(nats, tokens).mean == pytest.approx(100 / 40)  # not the mean of 1 and 3


def test_a_paired_difference_agrees_with_the_paired_t_test(rows):
    other = rows + np.random.default_rng(4).normal(0.05, 0.2, 200)
    ours, theirs = difference(rows, other), stats.ttest_rel(rows, other)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02, rel=0.5)
    low, high = theirs.confidence_interval()
    assert (ours.low, ours.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert ours.effect == pytest.approx((rows - other).mean() / (rows - other).std(ddof=1))


def test_pairing_finds_what_unpaired_rows_hide(rows):
    found = difference(rows, rows + 0.02 + np.random.default_rng(5).normal(0, 0.02, 200))
    assert found.p < 0.01 and found.lower > 0.7
    assert stats.ttest_ind(rows, rows + 0.02).pvalue > 0.5


def test_the_same_answers_are_no_difference(rows):
    found = difference(rows, rows)
    assert (found.mean, found.p, found.effect, found.min_detectable) == (0.0, 1.0, 0.0, 0.0)


def test_false_alarms_are_about_five_in_a_hundred():
    rng = np.random.default_rng(6)
    alarms = [
        difference(rng.normal(size=40), rng.normal(size=40), resamples=500, seed=i).p < 0.05
        for i in range(200)
    ]
    assert 2 <= sum(alarms) <= 20


def test_few_seeds_widen_the_interval_by_what_they_spread():
    rng = np.random.default_rng(7)
    rows = rng.normal(2, 0.1, 400)
    seeds = np.array([-0.3, 0.0, 0.3])  # three starts of very different luck
    found = interval(rows + seeds[:, None])
    theory = np.sqrt(seeds.var(ddof=1) / 3 + rows.var(ddof=1) / 400)
    assert (found.high - found.low) / (2 * 4.303) == pytest.approx(
        theory, rel=0.2
    )  # Student's t of two degrees of freedom
    assert found.seeds == 3 and found.rows == 400


@pytest.mark.parametrize(("seeds", "scatter"), [(2, 0.05), (3, 0.05), (3, 0.012)])
def test_the_interval_of_few_seeds_holds_the_truth_as_often_as_it_says(seeds, scatter):
    """Two methods that are alike but for the luck of their starts: no difference is in the interval 95 times in a hundred."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(150):
        rows, apart = rng.normal(0, 0.05, 100), rng.normal(0, 0.04, 100)
        a, b = (
            rows + more + rng.normal(0, scatter, (seeds, 1)) + rng.normal(0, 0.02, (seeds, 100))
            for more in (apart, 0)
        )
        found = difference(a, b, resamples=1000)
        inside += found.low <= 0 <= found.high
    assert 0.88 <= inside / 150 <= 0.995


def test_a_single_seed_has_luck_too_beside_a_method_with_several():
    rng, alarms = np.random.default_rng(2), {True: 0, False: 0}
    for _ in range(150):
        a, b = (
            rng.normal(0, 0.03, (seeds, 1)) + rng.normal(0, 0.05, (seeds, 100)) for seeds in (1, 3)
        )
        for started in alarms:
            alarms[started] += difference(a, b, resamples=1000, both_trained=started).p < 0.05
    assert alarms[True] <= 12 < alarms[False]
    base, tuned = (
        rng.normal(0, 0.05, 100),
        rng.normal(-0.03, 0.05, (3, 100)),
    )  # the untouched model has no start
    assert difference(base, tuned, both_trained=False).p < difference(base, tuned).p


def test_a_difference_of_seed_luck_is_not_a_finding():
    rows = np.random.default_rng(8).normal(2, 0.1, 300)
    lucky, plain = rows + np.array([[-0.3], [0.0], [0.25]]), rows + np.array([[-0.2], [0.1], [0.2]])
    assert difference(lucky[:1], plain[:1]).p < 0.01  # one seed each would have been called a win
    assert difference(lucky, plain).p > 0.3


def test_detectable_is_the_power_formula(rows):
    other = rows + np.random.default_rng(9).normal(0, 0.3, 200)
    spread = (rows - other).std(ddof=1) / np.sqrt(200)
    assert difference(rows, other).min_detectable == pytest.approx(
        (1.96 + 0.8416) * spread, rel=0.05
    )
    assert (
        difference(rows, other, comparisons=10).min_detectable
        > difference(rows, other).min_detectable
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_same_seed_gives_the_same_numbers(rows):
    assert interval(rows, seed=5) == interval(rows, seed=5)
    assert difference(rows, rows[::-1], seed=5) == difference(rows, rows[::-1], seed=5)


def test_rows_that_are_not_pairs_are_refused(rows):
    with pytest.raises(ValueError, match="paired rows"):
        difference(rows, rows[:-1])


def test_one_row_has_no_spread():
    found = interval(np.array([2.0]))
    assert (found.low, found.mean, found.high) == (2.0, 2.0, 2.0)


def test_a_p_that_more_resamples_would_make_smaller_says_so(rows):
    sure, chance = difference(rows, rows + 5), difference(rows, rows[::-1])
    assert sure.floor and sure.p == pytest.approx(2 / 10_001) and not chance.floor


def test_such_a_p_is_written_as_at_most(rows):
    sure = difference(rows, rows + 5)
    pair = Pair("a", "b", METRICS.by_key["loss"], sure, 36 * sure.p)
    assert format_p(pair).plain("en") == "≤ 0.007" and format_p(pair).plain("fa").startswith(
        "حداکثر"
    )
    assert format_p(replace(pair, p=2 * sure.p)).plain("en") == "< 0.001"
    assert (
        format_p(replace(pair, p=0.04, difference=replace(sure, floor=False))).plain("en")
        == "0.040"
    )
