"""What a pair of loss curves says: where it began, ended and flattened, whether it memorised, where it jumped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tarazu.report.analysis.study_view import RunView, as_number

FLAT_SHARE = 0.05  # flat: from here on, less than this share of the whole fall is left
OVERFIT = 0.01  # over-fitted: the last validation loss is this share above the best one


@dataclass(frozen=True)
class Points:
    """A curve: x in tokens (or epochs), y the loss."""

    x: list[float]
    y: list[float]

    def __bool__(self) -> bool:
        return bool(self.x)


@dataclass(frozen=True)
class CurveFacts:
    """What the analysis is written from. None where the events do not tell."""

    train_first: float | None
    train_last: float | None
    validation_first: float | None
    validation_best: float | None
    validation_last: float | None
    best_at: float | None
    end_at: float | None
    flat_at: float | None
    gap: float | None
    overfit: bool
    still_falling: bool
    spikes: list[int]
    largest_gradient: float | None


def curve(run: RunView, event: str, x: str = "tokens", y: str = "loss") -> Points:
    """The points of one figure of one kind of event that have both numbers."""
    points = [(as_number(e.get(x)), as_number(e.get(y))) for e in run.of_kind(event)]
    kept = [(a, b) for a, b in points if a is not None and b is not None]
    return Points([a for a, _ in kept], [b for _, b in kept])


def downsample(points: Points, most: int = 240) -> tuple[Points, int]:
    """At most `most` points, each the mean of as many neighbours; and how many that is."""
    size = -(-len(points.x) // most) if points else 1
    if size <= 1:
        return points, 1
    chunks = [slice(i, i + size) for i in range(0, len(points.x), size)]
    return Points(
        [float(np.mean(points.x[c])) for c in chunks], [float(np.mean(points.y[c])) for c in chunks]
    ), size


def analyse(run: RunView, x: str = "tokens") -> CurveFacts:
    """The facts of one run's curves."""
    train, validation = curve(run, "step", x), curve(run, "validation", x)
    edge = max(1, len(train.y) // 20)
    train_last = float(np.mean(train.y[-edge:])) if train else None
    best = int(np.argmin(validation.y)) if validation else None
    last = validation.y[-1] if validation else None
    lowest = validation.y[best] if best is not None else None
    return CurveFacts(
        train_first=float(np.mean(train.y[:edge])) if train else None,
        train_last=train_last,
        validation_first=validation.y[0] if validation else None,
        validation_best=lowest,
        validation_last=last,
        best_at=validation.x[best] if best is not None else None,
        end_at=max([*train.x[-1:], *validation.x[-1:]], default=None),
        flat_at=_flat_at(validation),
        gap=last - train_last if last is not None and train_last is not None else None,
        overfit=bool(validation) and best < len(validation.y) - 1 and last > lowest * (1 + OVERFIT),
        still_falling=_still_falling(validation),
        spikes=_spikes(run),
        largest_gradient=max(
            (g for e in run.of_kind("step") if (g := as_number(e.get("grad_norm"))) is not None),
            default=None,
        ),
    )


def _flat_at(validation: Points) -> float | None:
    """Where less than `FLAT_SHARE` of the whole fall was left; None when it never fell or was falling to the end."""
    if len(validation.y) < 4:
        return None
    lowest = min(validation.y)
    fall = validation.y[0] - lowest
    if fall <= 0:
        return None
    index = next(i for i, y in enumerate(validation.y) if y - lowest <= FLAT_SHARE * fall)
    return validation.x[index] if index < len(validation.y) - 2 else None


def _still_falling(validation: Points) -> bool:
    """Whether the last interval brought more than an even share of 1/20 of the fall, with the best value at the end."""
    if len(validation.y) < 3 or validation.y[-1] > min(validation.y):
        return False
    fall = validation.y[0] - validation.y[-1]
    return fall > 0 and validation.y[-2] - validation.y[-1] > 0.05 * fall


def _spikes(run: RunView, window: int = 15) -> list[int]:
    """Steps whose loss stands 6 robust standard deviations above those just before it."""
    steps = [
        (e.get("step"), y)
        for e in run.of_kind("step")
        if (y := as_number(e.get("loss"))) is not None
    ]
    found = []
    for i in range(window, len(steps)):
        before = np.array([y for _, y in steps[i - window : i]])
        middle = np.median(before)
        spread = 1.4826 * np.median(np.abs(before - middle))
        if steps[i][1] > middle + 6 * max(spread, 0.02 * abs(middle)):
            found.append(steps[i][0])
    return found
