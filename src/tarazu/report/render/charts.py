"""The kinds of chart that the report draws, as Altair charts: axes run left to right in both languages.

A chart is made once per language; `figures.py` turns it into SVG and PNG. Labels that come from data are made visible
text first, so nothing in them is obeyed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import altair as alt

from tarazu.report.render.bilingual import Bilingual, visible

INK, GRID = "#333333", "#e0e0e0"
TAIL = 4  # a bar that is so many times as wide as the first is a tail put together
PALETTE = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#b8860b",
    "#3a9bd9",
    "#7a5cc8",
    "#8a8a00",
    "#b03060",
    "#4d7f7f",
]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
_RTL = re.compile("[\u0600-\u06ff]")
FONT = "Vazirmatn, 'DejaVu Sans', Tahoma, 'Noto Sans Arabic', sans-serif"  # the first three have both scripts: no mixture


@dataclass(frozen=True)
class Series:
    """One line: its name, its points, and whether it is the second of a pair (dashed)."""

    name: Bilingual | str
    x: list[float]
    y: list[float]
    color: int = 0
    dash: int = 0


def label_text(value: Bilingual | str, language: str) -> str:
    """A label as plain text; Persian stands between isolates (U+2067, U+2069), for a figure runs left to right."""
    text = value.plain(language) if isinstance(value, Bilingual) else visible(value)
    return f"\u2067{text}\u2069" if language == "fa" and _RTL.search(text) else text


def _data(rows: list[dict]) -> alt.Data:
    return alt.Data(values=rows)


def lines(
    series: list[Series],
    x: Bilingual,
    y: Bilingual,
    language: str,
    width: int = 560,
    height: int = 260,
    log: bool = False,
) -> alt.Chart:
    """Curves on one pair of axes; a legend names them."""
    names = [label_text(one.name, language) for one in series]
    rows = [
        {"x": a, "y": b, "s": name}
        for one, name in zip(series, names, strict=True)
        for a, b in zip(one.x, one.y, strict=True)
    ]
    scale = alt.Scale(domain=names, range=[PALETTE[one.color % len(PALETTE)] for one in series])
    dashes = alt.Scale(domain=names, range=[DASHES[one.dash % len(DASHES)] for one in series])
    legend = alt.Legend(title=None, orient="bottom", columns=3, labelLimit=260, symbolStrokeWidth=3)
    few = max(len(one.x) for one in series) <= 40
    ticks = (
        {"format": "~e", "values": sorted({row["x"] for row in rows}), "labelOverlap": "greedy"}
        if log
        else {"format": "~s"}
    )  # a log axis is marked where something was tried
    return (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=2, point={"size": 14} if few else False)
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
            color=alt.Color("s:N", scale=scale, legend=legend, sort=names),
            strokeDash=alt.StrokeDash("s:N", scale=dashes, legend=legend, sort=names),
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
    """Horizontal bars in the order given, each with its figure at its end."""
    names = [f"{label_text(label, language)}" for label in labels]
    rows = [
        {"n": i, "l": name, "v": v} for i, (name, v) in enumerate(zip(names, values, strict=True))
    ]
    chart = alt.Chart(_data(rows)).encode(
        y=alt.Y(
            "l:N",
            title=None,
            sort=alt.EncodingSortField("n"),
            axis=alt.Axis(labelLimit=240, ticks=False, domain=False),
        ),
        x=alt.X("v:Q", title=label_text(x, language), axis=alt.Axis(format=format)),
    )
    text = chart.mark_text(align="left", dx=4).encode(text=alt.Text("v:Q", format=format))
    return (chart.mark_bar(color=PALETTE[0], height={"band": 0.7}) + text).properties(
        width=width, height={"step": 22}
    )


def grouped(
    rows: list[tuple], groups: list[str], x: Bilingual, language: str, width: int = 420
) -> alt.Chart:
    """Bars of several figures side by side. rows: (label, group, value)."""
    values = [
        {"l": label_text(label, language), "g": visible(group), "v": value, "n": i}
        for i, (label, group, value) in enumerate(rows)
    ]
    labels = list(dict.fromkeys(row["l"] for row in values))
    return (
        alt.Chart(_data(values))
        .mark_bar()
        .encode(
            y=alt.Y("l:N", title=None, sort=labels, axis=alt.Axis(labelLimit=240)),
            yOffset=alt.YOffset("g:N", sort=groups),
            x=alt.X("v:Q", title=label_text(x, language)),
            color=alt.Color(
                "g:N",
                sort=groups,
                scale=alt.Scale(domain=groups, range=PALETTE[: len(groups)]),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
        )
        .properties(
            width=width, height={"step": 12, "for": "offset"} if len(groups) > 1 else {"step": 22}
        )
    )


def stacked(rows: list[tuple], x: Bilingual, language: str, width: int = 420) -> alt.Chart:
    """One bar per label, cut into parts. rows: (label, part, value)."""
    values = [
        {"l": label_text(label, language), "p": label_text(part, language), "v": value}
        for label, part, value in rows
    ]
    parts, labels = (
        list(dict.fromkeys(r["p"] for r in values)),
        list(dict.fromkeys(r["l"] for r in values)),
    )
    return (
        alt.Chart(_data(values))
        .mark_bar(height={"band": 0.7})
        .encode(
            y=alt.Y("l:N", title=None, sort=labels, axis=alt.Axis(labelLimit=240)),
            x=alt.X("v:Q", title=label_text(x, language)),
            color=alt.Color(
                "p:N",
                sort=parts,
                scale=alt.Scale(domain=parts, range=PALETTE[: len(parts)]),
                legend=alt.Legend(title=None, orient="bottom", columns=4),
            ),
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
    """Counts between edges. A bar that gathers a long tail is pale: its height does not compare with the others'."""
    rows = [
        {"a": a, "b": b, "c": c, "wide": b - a > TAIL * (edges[1] - edges[0])}
        for a, b, c in zip(edges, edges[1:], counts, strict=False)
    ]
    return (
        alt.Chart(_data(rows))
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
    """Points, one colour and shape per series."""
    names = [label_text(one.name, language) for one in series]
    rows = [
        {"x": a, "y": b, "s": name}
        for one, name in zip(series, names, strict=True)
        for a, b in zip(one.x, one.y, strict=True)
    ]
    legend = alt.Legend(title=None, orient="bottom") if len(names) > 1 else None
    return (
        alt.Chart(_data(rows))
        .mark_point(filled=True, size=size, opacity=0.85 if size > 20 else 0.35)
        .encode(
            x=alt.X("x:Q", title=label_text(x, language)),
            y=alt.Y("y:Q", title=label_text(y, language)),
            color=alt.Color(
                "s:N",
                sort=names,
                scale=alt.Scale(domain=names, range=PALETTE[: len(names)]),
                legend=legend,
            ),
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
    """Quality against a cost. points: {name, x, y, low?, high?}; the front is a line, its points are filled."""
    rows = [{**p, "name": visible(p["name"]), "front": p["name"] in front} for p in points]
    small = min(p["x"] for p in points) < 1  # "300m" would be read as metres or minutes
    axes = {
        "x": alt.X(
            "x:Q",
            title=label_text(x, language),
            scale=alt.Scale(type="log" if log else "linear", zero=False, padding=30),
            axis=alt.Axis(format=".3~g" if small else "~s", tickCount=5, labelOverlap="greedy"),
        ),
        "y": alt.Y("y:Q", title=label_text(y, language), scale=alt.Scale(zero=False, padding=16)),
    }
    on_front = sorted((r for r in rows if r["front"]), key=lambda r: r["x"])
    line = alt.Chart(_data(on_front)).mark_line(color=PALETTE[2], strokeDash=[5, 3]).encode(**axes)
    bars_ = (
        alt.Chart(_data([r for r in rows if r.get("low") is not None]))
        .mark_rule(color=INK, opacity=0.5)
        .encode(x=axes["x"], y="low:Q", y2="high:Q")
    )
    kinds = [
        alt.Chart(_data([r for r in rows if r["front"] is on]))
        .mark_point(size=80, filled=on, color=PALETTE[2] if on else PALETTE[0])
        .encode(**axes)
        for on in (True, False)
    ]
    names = [
        alt.Chart(_data(some))
        .mark_text(align=side, dx=8 if side == "left" else -8, dy=shift, limit=width * 0.55)
        .encode(text="name:N", **axes)
        for (side, shift), some in _place_labels(rows, log, width).items()
    ]
    return alt.layer(line, bars_, *kinds, *names).properties(width=width, height=260)


def _place_labels(
    rows: list[dict], log: bool, width: int = 420
) -> dict[tuple[str, int], list[dict]]:
    """Rows by the side of their point that their name stands at (inwards where there is room) and by how many pixels below it,
    so that no name covers another one or a point."""
    place = {r["name"]: (math.log(r["x"]) if log else r["x"], r["y"]) for r in rows}
    sizes = [max(v) - min(v) or 1.0 for v in zip(*place.values(), strict=True)]
    left, top = min(x for x, _ in place.values()), max(y for _, y in place.values())
    spots = {
        name: ((x - left) / sizes[0] * (width - 60), (top - y) / sizes[1] * 190)
        for name, (x, y) in place.items()
    }  # pixels, about
    taken = [(x - 5, x + 5, y - 5, y + 5) for x, y in spots.values()]
    found: dict[tuple[str, int], list[dict]] = {}
    for row in sorted(rows, key=lambda r: r["x"]):
        x, y = spots[row["name"]]
        long = min(6.2 * len(row["name"]), 0.55 * width)
        sides = [("right", x - 8 - long), ("left", x + 8)]
        if x <= 0.55 * (width - 60):
            sides.reverse()
        sides = [one for one in sides if one[1] >= -30 and one[1] + long <= width - 30] or sides[:1]
        choices = [
            (side, shift, (start, start + long, y + shift - 7, y + shift + 7))
            for shift in (-7, 9, -21, 23, -35, 37, -49, 51)
            for side, start in sides
        ]
        side, shift, box = next(
            (one for one in choices if not any(_meet(one[2], other) for other in taken)), choices[0]
        )
        taken.append(box)
        found.setdefault((side, shift), []).append(row)
    return found


def _meet(one: tuple, other: tuple) -> bool:
    """Whether two boxes (left, right, top, bottom) overlap."""
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def forest_plot(rows: list[dict], x: Bilingual, language: str, width: int = 420) -> alt.Chart:
    """Differences with their intervals around zero. rows: {name, mean, low, high, sure}."""
    values = [{**r, "name": label_text(r["name"], language)} for r in rows]
    y = alt.Y("name:N", title=None, sort=[r["name"] for r in values], axis=alt.Axis(labelLimit=260))
    zero = alt.Chart(_data([{"z": 0}])).mark_rule(strokeDash=[4, 3], color=INK).encode(x="z:Q")
    spans = (
        alt.Chart(_data(values))
        .mark_rule(strokeWidth=2, color=INK)
        .encode(x=alt.X("low:Q", title=label_text(x, language)), x2="high:Q", y=y)
    )
    kinds = [
        alt.Chart(_data([r for r in values if r["significant"] is on]))
        .mark_point(size=70, filled=on, color=PALETTE[0], opacity=1)
        .encode(x="mean:Q", y=y)
        for on in (True, False)
    ]
    return alt.layer(zero, spans, *kinds).properties(width=width, height={"step": 26})
