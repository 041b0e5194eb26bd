"""What loss curves show: first, last and best values, where they flatten, over-fitting, spikes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tarazu.report.analysis.study_view import RunView, as_number

FLAT_FRACTION = 0.05  # a curve is flat where at most this fraction of its total fall is left
OVERFIT_RISE = 0.01  # over-fitted: the last validation loss is this fraction above the best one
FALLING_FRACTION = 0.05  # still falling: the last interval brought more than this of the total fall
SPIKE_DEVIATIONS = 6  # a spike: so many robust standard deviations above the steps before it
SPIKE_WINDOW = 15  # steps before a step that it is compared with
MAD_TO_DEVIATION = 1.4826  # standard deviation of a normal distribution / median absolute deviation


@dataclass(frozen=True)
class Points:
    """A curve: x in tokens or epochs, y the loss."""

    x: list[float]
    y: list[float]

    def __bool__(self) -> bool:
        return bool(self.x)


@dataclass(frozen=True)
class CurveFacts:
    """What the curves of one run show; None where its events do not say.

    Args:
        train_first, train_last: mean training loss of the first and the last twentieth of the
            steps. validation_first, validation_best, validation_last: validation losses.
        best_at: x of the best validation loss.
        end_at: the largest x.
        flat_at: x from which at most `FLAT_FRACTION` of the fall of the validation loss was left.
        gap: last validation loss minus last training loss.
        overfit: whether the validation loss rose after its best value.
        still_falling: whether the validation loss was still falling at the end.
        spikes: steps whose training loss stands out.
        largest_gradient: the largest gradient norm.
    """

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
    """The points of events that have both numbers.

    Args:
        event: the kind of event, such as "step" or "validation".
        x: the field along the axis.
        y: the field that is drawn.
    """
    points = [(as_number(e.get(x)), as_number(e.get(y))) for e in run.of_kind(event)]
    complete = [(a, b) for a, b in points if a is not None and b is not None]
    return Points([a for a, _ in complete], [b for _, b in complete])


def downsample(points: Points, max_points: int = 240) -> tuple[Points, int]:
    """Average neighbouring points until at most `max_points` are left.

    Returns:
        The curve, and how many points each of its points is the mean of.
    """
    size = -(-len(points.x) // max_points) if points else 1
    if size <= 1:
        return points, 1
    chunks = [slice(i, i + size) for i in range(0, len(points.x), size)]
    x = [float(np.mean(points.x[chunk])) for chunk in chunks]
    y = [float(np.mean(points.y[chunk])) for chunk in chunks]
    return Points(x, y), size


def analyse(run: RunView, x: str = "tokens") -> CurveFacts:
    """Analyse the loss curves of one run along `x`, "tokens" or "epoch"."""
    train, validation = curve(run, "step", x), curve(run, "validation", x)
    twentieth = max(1, len(train.y) // 20)
    train_last = float(np.mean(train.y[-twentieth:])) if train else None
    first = last = best = best_at = None
    if validation:
        best_index = int(np.argmin(validation.y))
        first, last = validation.y[0], validation.y[-1]
        best, best_at = validation.y[best_index], validation.x[best_index]
    norms = (as_number(event.get("grad_norm")) for event in run.of_kind("step"))
    return CurveFacts(
        train_first=float(np.mean(train.y[:twentieth])) if train else None,
        train_last=train_last,
        validation_first=first,
        validation_best=best,
        validation_last=last,
        best_at=best_at,
        end_at=max([*train.x[-1:], *validation.x[-1:]], default=None),
        flat_at=_flat_at(validation),
        gap=last - train_last if last is not None and train_last is not None else None,
        overfit=best is not None and last > max(best, best * (1 + OVERFIT_RISE)),
        still_falling=_still_falling(validation),
        spikes=_spikes(run),
        largest_gradient=max((norm for norm in norms if norm is not None), default=None),
    )


def _flat_at(validation: Points) -> float | None:
    """Where the curve became flat; None where it never fell or fell to the end."""
    if len(validation.y) < 4:
        return None
    lowest = min(validation.y)
    fall = validation.y[0] - lowest
    if fall <= 0:
        return None
    index = next(i for i, y in enumerate(validation.y) if y - lowest <= FLAT_FRACTION * fall)
    return validation.x[index] if index < len(validation.y) - 2 else None


def _still_falling(validation: Points) -> bool:
    """Whether the last value is the best one and clearly below the value before it."""
    if len(validation.y) < 3 or validation.y[-1] > min(validation.y):
        return False
    fall = validation.y[0] - validation.y[-1]
    return fall > 0 and validation.y[-2] - validation.y[-1] > FALLING_FRACTION * fall


def _spikes(run: RunView) -> list[int]:
    """Steps whose loss is far above the `SPIKE_WINDOW` steps before them."""
    losses = [(event.get("step"), as_number(event.get("loss"))) for event in run.of_kind("step")]
    losses = [(step, loss) for step, loss in losses if loss is not None]
    spikes = []
    for i in range(SPIKE_WINDOW, len(losses)):
        before = np.array([loss for _, loss in losses[i - SPIKE_WINDOW : i]])
        # Median and median absolute deviation, so that one spike does not hide the next. The floor
        # keeps a very smooth curve from having spikes everywhere.
        median = np.median(before)
        deviation = MAD_TO_DEVIATION * np.median(np.abs(before - median))
        step, loss = losses[i]
        if loss > median + SPIKE_DEVIATIONS * max(deviation, 0.02 * abs(median)):
            spikes.append(step)
    return spikes
