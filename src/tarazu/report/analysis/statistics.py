"""Confidence intervals and paired tests over test rows and seeds.

All methods answer the same rows, so differences are taken row by row and rows are resampled in
pairs (Koehn 2004, "Statistical significance tests for machine translation evaluation"). Seeds are
resampled as an outer level, so that the variance between seeds widens the interval. Two or three
seeds are a poor estimate of that variance: where it dominates, Student's t replaces the normal
distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import stdtr, stdtrit

RESAMPLES = 10_000
# Rows x resamples held at once; more rows get fewer resamples, but at least 1000.
MAX_CELLS = 10_000_000
LEVEL = 0.95  # of the intervals
POWER = 0.8  # of the smallest detectable difference
NORMAL_FROM = 500.0  # at this many degrees of freedom or more the normal distribution is used


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval.

    Args:
        mean, low, high: in the unit of the values.
        rows, seeds: how many it was computed from.
    """

    mean: float
    low: float
    high: float
    rows: int
    seeds: int


@dataclass(frozen=True)
class Difference:
    """The test of `a - b` on the same rows.

    Args:
        mean, low, high: the difference and its 95% confidence interval.
        p: the two-sided p value.
        effect: Cohen's d of the row differences (mean over standard deviation).
        lower: the fraction of rows on which `a` is below `b`.
        min_detectable: the smallest true difference that such a test finds with a power of 80%.
        rows: how many rows were compared.
        seeds: the smaller number of seeds of the two.
        floor: whether p is as small as this number of resamples allows (read it as <=).
    """

    mean: float
    low: float
    high: float
    p: float
    effect: float
    lower: float
    min_detectable: float
    rows: int
    seeds: int
    floor: bool = False


def interval(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean of `values`.

    Args:
        values: (rows,) or (seeds, rows), one total per row (its loss in nats, for instance).
        weights: (rows,), what the sums are divided by (tokens, for instance); None: ones.
        resamples: the number of bootstrap resamples.
        seed: seed of the random numbers.

    Raises:
        ValueError: there are no rows.
    """
    values, weights = _as_matrix(values, weights)
    means = _bootstrap_means(values, weights, resamples, seed)
    mean = _mean(values, weights)
    low, high = _percentiles(means, mean, _degrees_of_freedom(means, weights, values))
    return Interval(mean, low, high, rows=values.shape[1], seeds=values.shape[0])


def difference(
    a: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    comparisons: int = 1,
    both_trained: bool = True,
) -> Difference:
    """Test `a - b`: rows are resampled together, the seeds of each side independently.

    Args:
        a: (rows,) or (seeds, rows).
        b: the same rows; the number of seeds may differ.
        weights: (rows,), as in `interval`.
        resamples: the number of bootstrap resamples.
        seed: seed of the random numbers.
        comparisons: the number of pairs tested together. `min_detectable` divides the error rate of
            5% by it, as the first step of Holm's correction does.
        both_trained: whether both sides were trained (the base model does not vary between seeds).
            If so and one of them ran with one seed only, its seed variance is assumed to be the
            other's.

    Raises:
        ValueError: the rows are not the same, or there are none.
    """
    a, row_weights = _as_matrix(a, weights)
    b, _ = _as_matrix(b, weights)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"paired rows needed, not {a.shape[1]} and {b.shape[1]}")
    mean = _mean(a, row_weights) - _mean(b, row_weights)

    # The same rows are drawn for both sides: `_row_counts` depends on the seed and the numbers of
    # rows and resamples alone.
    means = _bootstrap_means(a, row_weights, resamples, seed, side=1) - _bootstrap_means(
        b, row_weights, resamples, seed, side=2
    )
    # Add the seed variance that a side with one seed cannot show.
    assumed_variance = _assumed_seed_variance(row_weights, a, b) if both_trained else 0.0
    noise = np.random.default_rng([seed, 3]).normal(0, assumed_variance**0.5, len(means))
    means = means + noise

    freedom = _degrees_of_freedom(means, row_weights, a, b, assumed_variance=assumed_variance)
    low, high = _percentiles(means, mean, freedom)
    p = _two_sided_p(means, mean, freedom)

    # Difference that a two-sided test at the corrected level finds with the given power.
    level_quantile = _t_quantile(1 - (1 - LEVEL) / 2 / comparisons, freedom)
    min_detectable = (level_quantile + _t_quantile(POWER, freedom)) * means.std()

    # Divided by the mean weight, so that their mean is the weighted mean difference.
    row_differences = (a.mean(0) - b.mean(0)) / row_weights.mean()
    deviation = row_differences.std(ddof=1) if row_differences.size > 1 else 0.0
    return Difference(
        mean=mean,
        low=low,
        high=high,
        p=p,
        effect=float(row_differences.mean() / deviation) if deviation > 0 else 0.0,
        lower=float((row_differences < 0).mean()),
        min_detectable=float(min_detectable),
        rows=a.shape[1],
        seeds=min(a.shape[0], b.shape[0]),
        floor=p <= _smallest_p(means),
    )


def holm(p_values: list[float]) -> list[float]:
    """Adjust p values by Holm's step-down correction (1979); the result keeps their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        # The smallest p is multiplied by the number of tests, the next by one less, and so on; an
        # adjusted p is never below that of a smaller p.
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


@lru_cache(maxsize=4)
def _row_counts(rows: int, resamples: int, seed: int) -> np.ndarray:
    """How often each row is drawn, (resamples, rows). Cached, so that paired sides share it."""
    rng = np.random.default_rng([seed, rows])
    # Row i of resample r becomes the number r * rows + i, so that one bincount counts all
    # resamples.
    drawn = rng.integers(0, rows, (resamples, rows)) + np.arange(resamples)[:, None] * rows
    counts = np.bincount(drawn.ravel(), minlength=resamples * rows)
    return counts.reshape(resamples, rows).astype(np.float32)


def _bootstrap_means(
    values: np.ndarray, weights: np.ndarray, resamples: int, seed: int, side: int = 0
) -> np.ndarray:
    """The mean in each resample of rows and, above them, of seeds.

    The bootstrap standard error of a mean of k values is too small by the factor sqrt((k - 1) / k),
    which matters with three seeds. So deviations of rows and of seeds are divided by their factor.

    Args:
        values: (seeds, rows), sums.
        weights: (rows,).
        side: distinguishes the seed draws of the two sides of a difference.

    Returns:
        (resamples,), fewer than asked for where there are very many rows.
    """
    seeds, rows = values.shape
    if rows == 1:
        return np.full(resamples, _mean(values, weights))
    resamples = min(resamples, max(1000, MAX_CELLS // rows))
    counts = _row_counts(rows, resamples, seed)

    # Deviations from each seed's mean are small, so float32 is precise enough for their
    # products.
    seed_means = values.sum(1) / weights.sum()
    deviations = (values - seed_means[:, None] * weights).T.astype(np.float32)
    # A resample may draw only rows of weight 0.
    resampled_weights = np.maximum(counts @ weights.astype(np.float32), 1e-12)
    row_deviations = (counts @ deviations) / resampled_weights[:, None]
    per_seed = seed_means + row_deviations.astype(np.float64) * np.sqrt(rows / (rows - 1))
    over_seeds = per_seed.mean(1)
    if seeds == 1:
        return over_seeds

    # Resample the seeds: average as many of them as there are, drawn with replacement.
    drawn = np.random.default_rng([seed, seeds, side]).integers(0, seeds, (resamples, seeds))
    resampled = np.take_along_axis(per_seed, drawn, 1).mean(1)
    return over_seeds + (resampled - over_seeds) * np.sqrt(seeds / (seeds - 1))


def _as_matrix(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Values as (seeds, rows) and weights as (rows,), both float64."""
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values.shape[1] == 0:
        raise ValueError("no rows")
    weights = np.ones(values.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    return values, weights


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean over rows of the mean over seeds."""
    return float(values.mean(0).sum() / weights.sum())


def _assumed_seed_variance(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """If exactly one side has several seeds, its variance between seeds; otherwise 0."""
    with_several = [side for side in (a, b) if len(side) > 1]
    if len(with_several) != 1:
        return 0.0
    return float((with_several[0].sum(1) / weights.sum()).var(ddof=1))


def _degrees_of_freedom(
    means: np.ndarray, weights: np.ndarray, *sides: np.ndarray, assumed_variance: float = 0.0
) -> float:
    """Degrees of freedom of the spread of resampled means (Satterthwaite 1946).

    Few where the variance comes from the seeds, many where it comes from the rows:
    `variance ** 2 / sum(v_i ** 2 / (n_i - 1))` over the parts v_i estimated from n_i seeds, and at
    least the smallest `n_i - 1`.

    Args:
        means: (resamples,).
        weights: (rows,).
        sides: (seeds, rows) of each method.
        assumed_variance: seed variance that a side with one seed took over from the other.

    Returns:
        The degrees of freedom; infinity if they are at least `NORMAL_FROM`.
    """
    seed_counts, uncertainty = [], 0.0
    for side in sides:
        if len(side) > 1:
            seed_means = side.sum(1) / weights.sum()
            # The assumed variance is estimated from the same seeds, so it belongs to this part.
            part = float(seed_means.var(ddof=1)) / len(side) + assumed_variance
            uncertainty += part**2 / (len(side) - 1)
            seed_counts.append(len(side))
    if uncertainty <= 0:
        return math.inf
    freedom = max(min(seed_counts) - 1, float(means.var()) ** 2 / uncertainty)
    return math.inf if freedom >= NORMAL_FROM else freedom


def _t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t; of the normal distribution for infinite degrees of freedom."""
    return float(stdtrit(freedom, probability))


def _percentiles(means: np.ndarray, mean: float, freedom: float) -> tuple[float, float]:
    """The percentile interval, widened by the ratio of Student's t to the normal distribution."""
    upper = (1 + LEVEL) / 2
    low, high = np.quantile(means, [1 - upper, upper])
    widening = _t_quantile(upper, freedom) / _t_quantile(upper, math.inf)
    return float(mean + (low - mean) * widening), float(mean + (high - mean) * widening)


def _smallest_p(means: np.ndarray) -> float:
    """The smallest two-sided p that so many resamples can show."""
    return 2 / (len(means) + 1)


def _two_sided_p(means: np.ndarray, mean: float, freedom: float) -> float:
    """Twice the fraction of resampled means on the less likely side of zero.

    It is never 0, because a finite number of resamples cannot show that. With few degrees of
    freedom p is converted: take the z at which a normal distribution gives p, and return Student's
    p for that z.
    """
    if not means.any():  # both sides are identical
        return 1.0
    beyond_zero = min((means <= 0).sum(), (means >= 0).sum())
    smallest = _smallest_p(means)
    p = float(min(1.0, smallest * (beyond_zero + 1)))
    if math.isinf(freedom) or p >= 1.0:
        return p
    distance = _t_quantile(1 - p / 2, math.inf)
    if beyond_zero == 0:  # no resample reached zero: the standard error says how far away it is
        distance = max(distance, abs(mean) / float(means.std()))
    return max(smallest, min(1.0, 2 * float(stdtr(freedom, -distance))))
