"""The report's kinds of chart, as Altair charts. Axes run left to right in both languages.

A chart is made once per language; `figures.py` turns it into SVG and PNG. Labels that come from
data pass `visible`, so that no control character in them has an effect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import altair as alt

from tarazu.report.render.bilingual import Bilingual, visible
from tarazu.report.render.label_placement import MAX_NAME_FRACTION, place_labels

INK, GRID = "#333333", "#e0e0e0"
PALETTE = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b",
    "#3a9bd9", "#7a5cc8", "#8a8a00", "#b03060", "#4d7f7f",
]  # fmt: skip
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
# The first three fonts have Latin and Persian letters, so that a label does not mix fonts.
FONT = "Vazirmatn, 'DejaVu Sans', Tahoma, 'Noto Sans Arabic', sans-serif"
MAX_MARKED_POINTS = 40  # a line with more points than this shows no dots
TAIL_WIDTH = 4  # a histogram's bar that is so many times as wide as the first holds a long tail
_PERSIAN = re.compile("[\u0600-\u06ff]")


@dataclass(frozen=True)
class Series:
    """One line or set of points. `color` and `dash` are indices into `PALETTE` and `DASHES`."""

    name: Bilingual | str
    x: list[float]
    y: list[float]
    color: int = 0
    dash: int = 0


def label_text(value: Bilingual | str, language: str) -> str:
    """A label as plain text.

    Persian text stands between isolates (U+2067, U+2069), because a chart's text runs left to
    right.
    """
    text = value.plain(language) if isinstance(value, Bilingual) else visible(value)
    return f"\u2067{text}\u2069" if language == "fa" and _PERSIAN.search(text) else text


def _chart(rows: list[dict]) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows))


def _series_rows(series: list[Series], names: list[str]) -> list[dict]:
    """The points of all series as rows of x, y and the series' name."""
    return [
        {"x": x, "y": y, "s": name}
        for line, name in zip(series, names, strict=True)
        for x, y in zip(line.x, line.y, strict=True)
    ]


def _label_axis(field: str, sort: object, **axis: object) -> alt.Y:
    """A vertical axis of names."""
    return alt.Y(f"{field}:N", title=None, sort=sort, axis=alt.Axis(labelLimit=240, **axis))


def _legend(**options: object) -> alt.Legend:
    """A legend below the chart."""
    return alt.Legend(title=None, orient="bottom", **options)


def _colors(field: str, names: list[str], legend: alt.Legend | None) -> alt.Color:
    """One colour of the palette for each name."""
    return alt.Color(
        f"{field}:N",
        sort=names,
        scale=alt.Scale(domain=names, range=PALETTE[: len(names)]),
        legend=legend,
    )


def lines(
    series: list[Series],
    x: Bilingual,
    y: Bilingual,
    language: str,
    width: int = 560,
    height: int = 260,
    log: bool = False,
) -> alt.Chart:
    """Curves on one pair of axes with a legend.

    Args:
        log: whether the x axis is logarithmic. It then has a tick at each x of a point.
    """
    names = [label_text(line.name, language) for line in series]
    rows = _series_rows(series, names)
    colors = [PALETTE[line.color % len(PALETTE)] for line in series]
    dashes = [DASHES[line.dash % len(DASHES)] for line in series]
    legend = _legend(columns=3, labelLimit=260, symbolStrokeWidth=3)
    ticks = {"format": "~s"}
    if log:
        values = sorted({row["x"] for row in rows})
        ticks = {"format": "~e", "values": values, "labelOverlap": "greedy"}
    marked = max(len(line.x) for line in series) <= MAX_MARKED_POINTS
    return (
        _chart(rows)
        .mark_line(strokeWidth=2, point={"size": 14} if marked else False)
        .encode(
            x=alt.X(
                "x:Q",
                title=label_text(x, language),
                axis=alt.Axis(**ticks),
                scale=alt.Scale(type="log", nice=False) if log else alt.Scale(),
            ),
            y=alt.Y(
                "y:Q",
                title=label_text(y, language),
                axis=alt.Axis(format=".4~f"),
                scale=alt.Scale(zero=False),
            ),
            color=alt.Color(
                "s:N", scale=alt.Scale(domain=names, range=colors), legend=legend, sort=names
            ),
            strokeDash=alt.StrokeDash(
                "s:N", scale=alt.Scale(domain=names, range=dashes), legend=legend, sort=names
            ),
        )
        .properties(width=width, height=height)
    )


def bars(
    labels: list,
    values: list[float],
    x: Bilingual,
    language: str,
    format: str = "~s",
    width: int = 420,
) -> alt.Chart:
    """Horizontal bars in the order given, each with its value at its end.

    Args:
        format: the d3 format of the values.
    """
    rows = [
        {"n": i, "l": label_text(label, language), "v": value}
        for i, (label, value) in enumerate(zip(labels, values, strict=True))
    ]
    chart = _chart(rows).encode(
        y=_label_axis("l", alt.EncodingSortField("n"), ticks=False, domain=False),
        x=alt.X("v:Q", title=label_text(x, language), axis=alt.Axis(format=format)),
    )
    numbers = chart.mark_text(align="left", dx=4).encode(text=alt.Text("v:Q", format=format))
    bars_ = chart.mark_bar(color=PALETTE[0], height={"band": 0.7})
    return (bars_ + numbers).properties(width=width, height={"step": 22})


def grouped(
    rows: list[tuple], groups: list[str], x: Bilingual, language: str, width: int = 420
) -> alt.Chart:
    """For each label, one bar per group side by side.

    Args:
        rows: (label, group, value).
        groups: the groups in their order.
    """
    values = [
        {"l": label_text(label, language), "g": visible(group), "v": value, "n": i}
        for i, (label, group, value) in enumerate(rows)
    ]
    labels = list(dict.fromkeys(row["l"] for row in values))
    step = {"step": 12, "for": "offset"} if len(groups) > 1 else {"step": 22}
    return (
        _chart(values)
        .mark_bar()
        .encode(
            y=_label_axis("l", labels),
            yOffset=alt.YOffset("g:N", sort=groups),
            x=alt.X("v:Q", title=label_text(x, language)),
            color=_colors("g", groups, _legend()),
        )
        .properties(width=width, height=step)
    )


def stacked(rows: list[tuple], x: Bilingual, language: str, width: int = 420) -> alt.Chart:
    """One bar per label, cut into parts.

    Args:
        rows: (label, part, value).
    """
    values = [
        {"l": label_text(label, language), "p": label_text(part, language), "v": value}
        for label, part, value in rows
    ]
    parts = list(dict.fromkeys(row["p"] for row in values))
    labels = list(dict.fromkeys(row["l"] for row in values))
    return (
        _chart(values)
        .mark_bar(height={"band": 0.7})
        .encode(
            y=_label_axis("l", labels),
            x=alt.X("v:Q", title=label_text(x, language)),
            color=_colors("p", parts, _legend(columns=4)),
        )
        .properties(width=width, height={"step": 26})
    )


def histogram(
    edges: list[float],
    counts: list[int],
    x: Bilingual,
    y: Bilingual,
    language: str,
    width: int = 250,
) -> alt.Chart:
    """Counts between edges.

    A bar that holds a long tail is pale, since its height does not compare with the others'.
    """
    first_width = edges[1] - edges[0]
    rows = [
        {"a": low, "b": high, "c": count, "wide": high - low > TAIL_WIDTH * first_width}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return (
        _chart(rows)
        .mark_bar(color=PALETTE[0], stroke="white", strokeWidth=0.5)
        .encode(
            opacity=alt.condition("datum.wide", alt.value(0.35), alt.value(1)),
            x=alt.X("a:Q", title=label_text(x, language), axis=alt.Axis(format="~s")),
            x2="b:Q",
            y=alt.Y("c:Q", title=label_text(y, language)),
            y2=alt.datum(0),
        )
        .properties(width=width, height=150)
    )


def dots(
    series: list[Series],
    x: Bilingual,
    y: Bilingual,
    language: str,
    width: int = 560,
    size: int = 45,
) -> alt.Chart:
    """Points, one colour and shape per series.

    Args:
        size: the area of a point; small points are drawn pale, because there are many of them.
    """
    names = [label_text(line.name, language) for line in series]
    legend = _legend() if len(names) > 1 else None
    return (
        _chart(_series_rows(series, names))
        .mark_point(filled=True, size=size, opacity=0.85 if size > 20 else 0.35)
        .encode(
            x=alt.X("x:Q", title=label_text(x, language)),
            y=alt.Y("y:Q", title=label_text(y, language)),
            color=_colors("s", names, legend),
            shape=alt.Shape("s:N", sort=names, legend=legend),
        )
        .properties(width=width, height=220)
    )


def pareto_chart(
    points: list[dict],
    front: list[str],
    x: Bilingual,
    y: Bilingual,
    language: str,
    log: bool,
    width: int = 420,
) -> alt.Chart:
    """Quality against a cost, with the Pareto front as a dashed line.

    Args:
        points: {"name", "x", "y", "low", "high"}; low and high are the interval of y, or None.
        front: the names of the points on the front, which are filled.
        log: whether the x axis is logarithmic.
    """
    rows = [
        {**point, "name": visible(point["name"]), "on": point["name"] in front} for point in points
    ]
    # Without SI prefixes below 1: "300m" would be read as metres or minutes.
    x_format = ".3~g" if min(point["x"] for point in points) < 1 else "~s"
    axes = {
        "x": alt.X(
            "x:Q",
            title=label_text(x, language),
            scale=alt.Scale(type="log" if log else "linear", zero=False, padding=30),
            axis=alt.Axis(format=x_format, tickCount=5, labelOverlap="greedy"),
        ),
        "y": alt.Y("y:Q", title=label_text(y, language), scale=alt.Scale(zero=False, padding=16)),
    }
    front_rows = sorted((row for row in rows if row["on"]), key=lambda row: row["x"])
    front_line = _chart(front_rows).mark_line(color=PALETTE[2], strokeDash=[5, 3]).encode(**axes)
    intervals = (
        _chart([row for row in rows if row.get("low") is not None])
        .mark_rule(color=INK, opacity=0.5)
        .encode(x=axes["x"], y="low:Q", y2="high:Q")
    )
    marks = [
        _chart([row for row in rows if row["on"] is on])
        .mark_point(size=80, filled=on, color=PALETTE[2] if on else PALETTE[0])
        .encode(**axes)
        for on in (True, False)
    ]
    names = [
        _chart(placed)
        .mark_text(
            align=side, dx=8 if side == "left" else -8, dy=shift, limit=width * MAX_NAME_FRACTION
        )
        .encode(text="name:N", **axes)
        for (side, shift), placed in place_labels(rows, log, width).items()
    ]
    return alt.layer(front_line, intervals, *marks, *names).properties(width=width, height=260)


def forest_plot(rows: list[dict], x: Bilingual, language: str, width: int = 420) -> alt.Chart:
    """Differences with their intervals around zero; a significant one is filled.

    Args:
        rows: {"name", "mean", "low", "high", "significant"}.
    """
    values = [{**row, "name": label_text(row["name"], language)} for row in rows]
    names = [row["name"] for row in values]
    y = alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=260))
    zero = _chart([{"z": 0}]).mark_rule(strokeDash=[4, 3], color=INK).encode(x="z:Q")
    intervals = (
        _chart(values)
        .mark_rule(strokeWidth=2, color=INK)
        .encode(x=alt.X("low:Q", title=label_text(x, language)), x2="high:Q", y=y)
    )
    means = [
        _chart([row for row in values if row["significant"] is filled])
        .mark_point(size=70, filled=filled, color=PALETTE[0], opacity=1)
        .encode(x="mean:Q", y=y)
        for filled in (True, False)
    ]
    return alt.layer(zero, intervals, *means).properties(width=width, height={"step": 26})
