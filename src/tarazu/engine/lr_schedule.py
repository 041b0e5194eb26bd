"""Learning-rate schedules, as a function of the used part of the budget.

The search for the best learning rate is `successive_halving.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tarazu.engine.trainable import TrainingPhase

MIN_WARMUP_FACTOR = 0.05  # a factor of 0 would waste the first step


def lr_factor(fraction: float, schedule: str, warmup_ratio: float) -> float:
    """The factor on the peak learning rate.

    Args:
        fraction: part of the budget that is used, 0 to 1.
        schedule: `cosine` (to 0), `linear` (to 0) or `constant`.
        warmup_ratio: part of the budget in which the rate rises linearly.

    Returns:
        The factor, 0 to 1.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < warmup_ratio:
        return max(fraction / warmup_ratio, MIN_WARMUP_FACTOR)
    after_warmup = (fraction - warmup_ratio) / (1 - warmup_ratio) if warmup_ratio < 1 else 1.0
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * after_warmup))
        case "linear":
            return 1 - after_warmup
        case _:
            return 1.0


def lr_factor_in_phase(
    fraction: float,
    epoch: float,
    phases: Sequence[TrainingPhase],
    schedule: str,
    warmup_ratio: float,
) -> float:
    """The factor on the peak learning rate where each phase has its own warm-up and decay.

    A phase with another objective thus starts from weights whose own schedule has ended.

    Args:
        fraction: part of the budget that is used, 0 to 1.
        epoch: passes over the rows so far. With `fraction` it gives the number of all passes.
        phases: phases after the first one, in order of their first epoch.
        schedule: as in `lr_factor`.
        warmup_ratio: as in `lr_factor`, of each phase.

    Returns:
        `lr_factor` within the current phase, times the phase's own factor.
    """
    if not phases or not fraction:
        return lr_factor(fraction, schedule, warmup_ratio)
    all_phases = [TrainingPhase(0, 1.0), *phases]
    # The tolerance is for rounding in `epoch`, which is a quotient.
    current = max(i for i, phase in enumerate(all_phases) if phase.from_epoch <= epoch + 1e-9)
    # Begin and end of the current phase as fractions of the budget.
    epoch_fraction = fraction / epoch
    bounds = [*(phase.from_epoch * epoch_fraction for phase in all_phases), 1.0]
    begin, end = bounds[current], bounds[current + 1]
    fraction_of_phase = (fraction - begin) / max(end - begin, 1e-9)
    return all_phases[current].factor * lr_factor(fraction_of_phase, schedule, warmup_ratio)
