"""How sure a number is: bootstrap over rows and seeds, Holm's correction, effect sizes, what could have been found.

Every method answers the same rows, so differences are taken row by row (Koehn 2004, "Statistical significance tests for
machine translation evaluation"); seeds are resampled above the rows, so the luck of one start is not taken for skill. Two or
three seeds tell little of how far seeds scatter: where they make much of the spread, Student's t is taken for the normal (`student.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from tarazu.report.analysis import student

DRAWS, MOST_CELLS = (
    10_000,
    10_000_000,
)  # resamples; and the most rows x resamples that are held at once
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95% confidence, over `rows` rows and `seeds` seeds."""

    mean: float
    low: float
    high: float
    rows: int
    seeds: int


@dataclass(frozen=True)
class Difference:
    """`a - b` on the same rows.

    `effect` is Cohen's d of the row differences (mean over standard deviation), `lower` the share of rows on which `a`
    is below `b`, `min_detectable` the smallest difference that so many rows and seeds would show four times out of five.
    `floor`: so many resamples cannot show a smaller p than this one.
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
    values: np.ndarray, weights: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The mean of `values` with its bootstrap interval.

    Args:
        values: (rows,) or (seeds, rows), summed figures of each row (nats, say).
        weights: (rows,), what the sums are divided by (tokens, say); ones when None.
    """
    values, weights = _shaped(values, weights)
    drawn = _bootstrap_means(values, weights, draws, seed)
    centre = _mean(values, weights)
    low, high = _tails(drawn, centre, _degrees_of_freedom(drawn, weights, values))
    return Interval(centre, low, high, values.shape[1], values.shape[0])


def difference(
    a: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    comparisons: int = 1,
    both_trained: bool = True,
) -> Difference:
    """`a - b`: rows are resampled together (paired), the seeds of each side apart.

    Args:
        a, b: (rows,) or (seeds, rows) of the same rows; the number of seeds may differ.
        weights: (rows,), as in `interval`.
        comparisons: how many pairs are tested together: `min_detectable` then uses level / comparisons, as Holm does first.
        both_trained: both were trained from some start: where one side has a single seed, its luck is taken to scatter as the other's.
    """
    a, shared = _shaped(a, weights)
    b, _ = _shaped(b, weights)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"paired rows needed, not {a.shape[1]} and {b.shape[1]}")
    centre = _mean(a, shared) - _mean(b, shared)
    luck = _seed_variance(shared, a, b) if both_trained else 0.0
    drawn = _bootstrap_means(a, shared, draws, seed, 1) - _bootstrap_means(
        b, shared, draws, seed, 2
    )
    drawn = drawn + np.random.default_rng([seed, 3]).normal(0, luck**0.5, len(drawn))
    free = _degrees_of_freedom(drawn, shared, a, b, borrowed=luck)
    low, high = _tails(drawn, centre, free)
    rows = (a.mean(0) - b.mean(0)) / shared.mean()
    spread = rows.std(ddof=1) if rows.size > 1 else 0.0
    p = _two_sided(drawn, centre, free)
    reach = student.quantile(1 - (1 - LEVEL) / 2 / comparisons, free) + student.quantile(0.8, free)
    return Difference(
        centre,
        low,
        high,
        p,
        float(rows.mean() / spread) if spread > 0 else 0.0,
        float((rows < 0).mean()),
        float(reach * drawn.std()),
        a.shape[1],
        min(a.shape[0], b.shape[0]),
        p <= _least(drawn),
    )


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction (1979): the adjusted p of each test, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


@lru_cache(maxsize=4)
def _row_counts(rows: int, draws: int, seed: int) -> np.ndarray:
    """(draws, rows): how often each row is drawn. The same for both sides of a pair: that is what pairing means."""
    rng = np.random.default_rng([seed, rows])
    picks = rng.integers(0, rows, (draws, rows)) + np.arange(draws)[:, None] * rows
    return (
        np.bincount(picks.ravel(), minlength=draws * rows).reshape(draws, rows).astype(np.float32)
    )


def _bootstrap_means(
    values: np.ndarray, weights: np.ndarray, draws: int, seed: int, side: int = 0
) -> np.ndarray:
    """(draws,): the mean in each resample of rows and, above them, of seeds.

    A bootstrap of k things spreads sqrt((k-1)/k) too little; with three seeds that matters, so it is put right.
    """
    seeds, rows = values.shape
    if rows == 1:
        return np.full(draws, _mean(values, weights))
    draws = min(draws, max(1000, MOST_CELLS // rows))
    counts = _row_counts(rows, draws, seed)
    centres = values.sum(1) / weights.sum()
    apart = (values - centres[:, None] * weights).T.astype(
        np.float32
    )  # from the centre: float32 loses nothing that counts
    away = (counts @ apart) / np.maximum(counts @ weights.astype(np.float32), 1e-12)[:, None]
    per_seed = centres + away.astype(np.float64) * np.sqrt(rows / (rows - 1))
    middle = per_seed.mean(1)
    if seeds == 1:
        return middle
    picks = np.random.default_rng([seed, seeds, side]).integers(0, seeds, (draws, seeds))
    chosen = np.take_along_axis(per_seed, picks, 1).mean(1)
    return middle + (chosen - middle) * np.sqrt(seeds / (seeds - 1))


def _shaped(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values.shape[1] == 0:
        raise ValueError("no rows")
    weights = np.ones(values.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    return values, weights


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(values.mean(0).sum() / weights.sum())


def _seed_variance(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The variance of one start's luck, from the side that has several seeds where the other has one; else 0."""
    several = [side for side in (a, b) if len(side) > 1]
    return float((several[0].sum(1) / weights.sum()).var(ddof=1)) if len(several) == 1 else 0.0


def _degrees_of_freedom(
    drawn: np.ndarray, weights: np.ndarray, *sides: np.ndarray, borrowed: float = 0.0
) -> float:
    """Degrees of freedom of the resamples' spread: few where it comes from the seeds, many where it comes from the rows."""
    centres = [side.sum(1) / weights.sum() for side in sides]
    return student.freedom(
        float(drawn.var()),
        [(float(c.var(ddof=1)) / len(c) + borrowed, len(c)) for c in centres if len(c) > 1],
    )


def _tails(drawn: np.ndarray, centre: float, free: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wider = student.quantile((1 + LEVEL) / 2, free) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    return float(centre + (low - centre) * wider), float(centre + (high - centre) * wider)


def _least(drawn: np.ndarray) -> float:
    return 2 / (len(drawn) + 1)


def _two_sided(drawn: np.ndarray, centre: float, free: float) -> float:
    """Twice the smaller tail beyond zero; never 0, because a finite number of draws cannot show that.

    With few degrees of freedom the tail is Student's at the same distance; where no draw came as far, that is told by the spread.
    """
    if not drawn.any():
        return 1.0
    below, above = (drawn <= 0).sum(), (drawn >= 0).sum()
    least = _least(drawn)
    p = float(min(1.0, least * (min(below, above) + 1)))
    if free >= student.MANY or p >= 1.0:
        return p
    away = NormalDist().inv_cdf(1 - p / 2)
    if min(below, above) == 0:
        away = max(away, abs(centre) / float(drawn.std()))
    return max(least, min(1.0, 2 * student.tail(away, free)))
