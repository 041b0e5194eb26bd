"""Learning-rate schedules, as a function of the share of the budget that is used: the same curve for every method."""

from __future__ import annotations

import math


def scale(fraction: float, schedule: str, warmup: float) -> float:
    """The factor on the peak learning rate.

    Args:
        fraction: share of the budget used so far, 0..1.
        schedule: "cosine" (to 0), "linear" (to 0) or "constant".
        warmup: share of the budget in which the rate climbs linearly.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < warmup:
        return max(fraction / warmup, 0.05)  # never 0: the first step would be wasted
    rest = (fraction - warmup) / (1 - warmup) if warmup < 1 else 1.0
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * rest))
        case "linear":
            return 1 - rest
        case _:
            return 1.0
