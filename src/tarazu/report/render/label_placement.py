"""Place the names of points in a chart, so that no name covers another name or a point."""

from __future__ import annotations

import math
from typing import NamedTuple

LETTER_WIDTH = 6.2  # pixels
POINT_RADIUS = 5
GAP = 8  # between a point and its name
HALF_HEIGHT = 7  # of a name
MAX_NAME_FRACTION = 0.55  # of the chart's width; longer names are cut by the chart
PADDING, PLOT_HEIGHT = 60, 190  # approximate space left of the chart's width, and of its height
SHIFTS = (-7, 9, -21, 23, -35, 37, -49, 51)  # vertical offsets that are tried in turn


class Box(NamedTuple):
    """A rectangle in pixels; y grows downwards."""

    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether two boxes share an area."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def place_labels(
    rows: list[dict], log: bool, width: int = 420
) -> dict[tuple[str, int], list[dict]]:
    """Choose a side and a vertical offset for the name of each point.

    Args:
        rows: points with "name", "x" and "y".
        log: whether the x axis is logarithmic.
        width: of the chart in pixels.

    Returns:
        The rows by (side, offset): the name starts ("left") or ends ("right") at its point, and is
        moved down by so many pixels. Side names are those of a text's `align`.
    """
    pixels = _pixels(rows, log, width)
    taken = [
        Box(x - POINT_RADIUS, x + POINT_RADIUS, y - POINT_RADIUS, y + POINT_RADIUS)
        for x, y in pixels.values()
    ]
    placed: dict[tuple[str, int], list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["x"]):
        x, y = pixels[row["name"]]
        choices = _choices(row["name"], x, y, width)
        # The first choice that is free; the first one of all where none is.
        side, shift, box = next(
            (choice for choice in choices if not any(choice[2].overlaps(b) for b in taken)),
            choices[0],
        )
        taken.append(box)
        placed.setdefault((side, shift), []).append(row)
    return placed


def _pixels(rows: list[dict], log: bool, width: int) -> dict[str, tuple[float, float]]:
    """The approximate position of each point in pixels."""
    positions = {r["name"]: (math.log(r["x"]) if log else r["x"], r["y"]) for r in rows}
    xs, ys = zip(*positions.values(), strict=True)
    x_range, y_range = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    return {
        name: (
            (x - min(xs)) / x_range * (width - PADDING),
            (max(ys) - y) / y_range * PLOT_HEIGHT,
        )
        for name, (x, y) in positions.items()
    }


def _choices(name: str, x: float, y: float, width: int) -> list[tuple[str, int, Box]]:
    """Where the name of a point at (x, y) can stand, best first."""
    length = min(LETTER_WIDTH * len(name), MAX_NAME_FRACTION * width)
    # Towards the middle of the chart first.
    sides = [("right", x - GAP - length), ("left", x + GAP)]
    if x <= MAX_NAME_FRACTION * (width - PADDING):
        sides.reverse()
    # A name may reach half of the padding beyond the plot.
    inside = [
        (side, start)
        for side, start in sides
        if start >= -PADDING / 2 and start + length <= width - PADDING / 2
    ]
    return [
        (side, shift, Box(start, start + length, y + shift - HALF_HEIGHT, y + shift + HALF_HEIGHT))
        for shift in SHIFTS
        for side, start in inside or sides[:1]
    ]
