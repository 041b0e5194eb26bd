"""Tables and figures of data.json that both tasks show: sources, splits, lengths and dropped rows."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, has, joined, translate, translate_or
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context

FILE = "data.json"
LINES_SHOWN = 6  # of each problem; data.json has more


def sources_named(data: dict) -> Bilingual:
    """Where the rows are from: a list of files as each language writes lists."""
    whole = str(data.get("source", "?"))
    parts = whole.split(", ")
    return (
        joined([code(one) for one in parts])
        if not any(" " in one or ":" in one for one in parts)
        else Bilingual(code(whole), code(whole))
    )


def splits_table(data: dict, columns: list[str]) -> Table:
    """Rows (or images) and tokens (or captions) of each split, with its share."""
    splits = data.get("splits") if isinstance(data.get("splits"), dict) else {}
    first = columns[0]
    total = sum(as_number(get_path(splits, s, first)) or 0 for s in splits)
    rows = []
    for name in [s for s in ("train", "validation", "test") if s in splits]:
        size = as_number(get_path(splits, name, first))
        share = size / total if size is not None and total else None
        rows.append(
            [
                text_cell(translate(f"split.{name}")),
                *[number_cell(get_path(splits, name, c), "count", FILE) for c in columns],
                number_cell(share, "percent", FILE),
            ]
        )
    return Table(
        translate("data.splits"),
        [
            translate("data.split"),
            *[translate(f"data.{c}") for c in columns],
            translate("data.share"),
        ],
        rows,
        [FILE],
    )


def lengths_table(data: dict, keys: tuple) -> Table:
    """Mean, percentiles and the longest, for each way of counting."""
    columns = ("mean", "p50", "p90", "p99", "max")
    rows = []
    for key in keys:
        values = get_path(data, "structure", "lengths", key, default={})
        if values:
            rows.append(
                [
                    text_cell(translate(f"length.{key}")),
                    *[
                        number_cell(get_path(values, c), "points" if c == "mean" else "count", FILE)
                        for c in columns
                    ],
                ]
            )
    return Table(
        translate("data.lengths"),
        [translate("data.counted_in"), *[translate(f"length.{c}") for c in columns]],
        rows,
        [FILE],
    )


def length_figures(context: Context, keys: tuple) -> list[Figure]:
    """One histogram for each way of counting."""
    found = []
    for key in keys:
        edges = get_path(
            context.study.data, "structure", "lengths", key, "histogram", "edges", default=[]
        )
        counts = get_path(
            context.study.data, "structure", "lengths", key, "histogram", "counts", default=[]
        )
        if len(edges) > 1 and counts:
            title = translate(f"length.{key}")
            make = partial(charts.histogram, edges, counts, title, translate("data.rows_axis"))
            tail = all(as_number(edge) is not None for edge in edges) and edges[-1] - edges[
                -2
            ] > charts.TAIL * (edges[1] - edges[0])
            found.append(
                context.figures.add(
                    f"lengths-{key}",
                    translate("data.lengths_of_tail" if tail else "data.lengths_of", what=title),
                    make,
                    [FILE],
                )
            )
    return found


def reason_text(reason: object) -> object:
    """A reason that tarazu itself gives, in both languages; any other as it stands in the file."""
    key = f"reason.{reason}"
    return translate(key) if has(key) else reason


def problems_table(data: dict) -> Table:
    """What was repaired or dropped, how often, and where first."""
    rows = []
    for problem in dicts_in(data.get("problems")):
        lines = get_path(problem, "lines", default=[]) or get_path(problem, "names", default=[])
        shown = (
            ", ".join(str(line) for line in lines[:LINES_SHOWN]) if isinstance(lines, list) else ""
        )
        shown += " …" if shown and len(lines) > LINES_SHOWN else ""
        kind = translate_or(f"problem.{problem.get('kind')}", problem.get("kind"))
        rows.append(
            [
                text_cell(reason_text(problem.get("reason", ""))),
                text_cell(kind),
                number_cell(problem.get("count"), "count", FILE),
                code_cell(shown),
            ]
        )
    return Table(
        translate("data.problems"),
        [
            translate("data.reason"),
            translate("data.done"),
            translate("data.count"),
            translate("data.lines"),
        ],
        rows,
        [FILE],
    )
