"""Student's t for any number of degrees of freedom: what a spread that is known from a few seeds only adds to an interval."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np

MANY = 500.0  # degrees of freedom from which it is the normal distribution
GRID = 20_001


def tail(value: float, freedom: float) -> float:
    """The share of the distribution beyond `value` >= 0, on one side."""
    if freedom >= MANY:
        return NormalDist().cdf(-value)
    angles, shares = _distribution(round(freedom, 2))
    return float(1 - np.interp(np.arctan(value / np.sqrt(freedom)), angles, shares))


def quantile(share: float, freedom: float) -> float:
    """The value below which `share` of the distribution lies."""
    if freedom >= MANY:
        return NormalDist().inv_cdf(share)
    angles, shares = _distribution(round(freedom, 2))
    return float(np.sqrt(freedom) * np.tan(np.interp(share, shares, angles)))


def freedom(whole: float, parts: list[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances (Satterthwaite 1946).

    Args:
        whole: the variance of the figure.
        parts: the variances that were estimated from a few values, and from how many each.
    """
    unsure = sum(variance**2 / (count - 1) for variance, count in parts if count > 1)
    least = min((count - 1 for _, count in parts if count > 1), default=MANY)
    return float(max(least, min(MANY, whole**2 / unsure))) if unsure > 0 else MANY


@lru_cache(maxsize=32)  # 320 KB each
def _distribution(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """The distribution on a grid of angles: t is sqrt(freedom) tan(angle), whose density is cos(angle)^(freedom - 1)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, GRID)
    density = np.cos(angles).clip(0) ** (freedom - 1)
    sums = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, sums / sums[-1]
