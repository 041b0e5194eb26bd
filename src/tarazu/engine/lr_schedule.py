"""Learning-rate schedules, as a function of the share of the budget that is used: the same curve for every method."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tarazu.engine.trainable import TrainingPhase


def lr_factor(fraction: float, schedule: str, warmup: float) -> float:
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


def in_phases(
    fraction: float, epoch: float, phases: Sequence[TrainingPhase], schedule: str, warmup: float
) -> float:
    """`scale` within the phase that is on, times its factor: what trains for something else starts from weights that have
    come to rest, and comes to rest itself.

    Args:
        epoch: passes over the rows so far; with `fraction` it tells how many there will be.
    """
    if not phases or not fraction:
        return lr_factor(fraction, schedule, warmup)
    share = fraction / epoch  # of the budget that one epoch takes
    parts = [TrainingPhase(0, 1.0), *phases]
    now = max(place for place, part in enumerate(parts) if part.from_epoch <= epoch + 1e-9)
    begin, end = [*(part.from_epoch * share for part in parts), 1.0][now : now + 2]
    return parts[now].factor * lr_factor(
        (fraction - begin) / max(end - begin, 1e-9), schedule, warmup
    )
