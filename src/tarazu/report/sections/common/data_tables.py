"""Tables and figures of data.json that several tasks show: splits, lengths, problems."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, has, translate, translate_or
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.cells import number_cells, translate_all
from tarazu.report.sections.common.method_names import code_text, joined_code

FILE = "data.json"
SPLITS = ("train", "validation", "test")
LENGTH_STATISTICS = ("mean", "p50", "p90", "p99", "max")
MAX_LINES = 6  # line numbers shown for each kind of problem; data.json has more


def sources_named(data: dict) -> Bilingual:
    """Where the data comes from: a list of files, or one description."""
    source = str(data.get("source", "?"))
    files = source.split(", ")
    is_list = not any(" " in file or ":" in file for file in files)
    return joined_code(files) if is_list else code_text(source)


def splits_table(data: dict, columns: list[str]) -> Table:
    """The sizes of each split, and its share of the first column.

    Args:
        columns: keys of data.json's `splits`, such as rows and tokens.
    """
    splits = get_path(data, "splits", default={})
    total = sum(as_number(get_path(splits, name, columns[0])) or 0 for name in splits)
    rows = []
    for name in (name for name in SPLITS if name in splits):
        size = as_number(get_path(splits, name, columns[0]))
        fraction = size / total if size is not None and total else None
        sizes = [get_path(splits, name, column) for column in columns]
        cells = [*number_cells(sizes, "count", FILE), number_cell(fraction, "percent", FILE)]
        rows.append([text_cell(translate(f"split.{name}")), *cells])
    titles = translate_all("data.split", *[f"data.{column}" for column in columns], "data.fraction")
    return Table(translate("data.splits"), titles, rows, [FILE])


def lengths_table(caption: str, unit: str, lengths: Iterable[tuple[str, Any]]) -> Table:
    """Mean, percentiles and maximum of lengths, one row for each way of counting or split.

    Args:
        caption: the string key of the caption.
        unit: the string key of the first column's title.
        lengths: (string key of the row's name, statistics) of each row; empty ones are left out.
    """
    rows = [[text_cell(translate(key)), *_statistics_cells(s)] for key, s in lengths if s]
    titles = translate_all(unit, *[f"length.{name}" for name in LENGTH_STATISTICS])
    return Table(translate(caption), titles, rows, [FILE])


def _statistics_cells(statistics: Any) -> list[Cell]:
    """The cells of one row of lengths: the mean has a decimal."""
    return [
        number_cell(get_path(statistics, name), "points" if name == "mean" else "count", FILE)
        for name in LENGTH_STATISTICS
    ]


def length_figures(context: Context, keys: Iterable[str]) -> list[Figure]:
    """One histogram for each way of counting."""
    lengths = get_path(context.study.data, "structure", "lengths", default={})
    figures = []
    for key in keys:
        edges = get_path(lengths, key, "histogram", "edges", default=[])
        counts = get_path(lengths, key, "histogram", "counts", default=[])
        if len(edges) < 2 or not counts:
            continue
        unit = translate(f"length.{key}")
        caption_key = "data.lengths_of_tail" if _has_tail(edges) else "data.lengths_of"
        make = partial(charts.histogram, edges, counts, unit, translate("data.rows_axis"))
        caption = translate(caption_key, what=unit)
        figures.append(context.figures.add(f"lengths-{key}", caption, make, [FILE]))
    return figures


def _has_tail(edges: list) -> bool:
    """Whether the last bin is much wider than the others, so that it holds all longer rows."""
    if any(as_number(edge) is None for edge in edges):
        return False
    return edges[-1] - edges[-2] > charts.TAIL_WIDTH * (edges[1] - edges[0])


def reason_text(reason: object) -> object:
    """A reason that tarazu gives, in both languages; any other as it is in the file."""
    key = f"reason.{reason}"
    return translate(key) if has(key) else reason


def problems_table(data: dict) -> Table:
    """What was repaired or dropped, how often, and the first lines or names."""
    rows = []
    for problem in dicts_in(data.get("problems")):
        kind = translate_or(f"problem.{problem.get('kind')}", problem.get("kind"))
        rows.append(
            [
                text_cell(reason_text(problem.get("reason", ""))),
                text_cell(kind),
                number_cell(problem.get("count"), "count", FILE),
                code_cell(_first_lines(problem)),
            ]
        )
    titles = translate_all("data.reason", "data.done", "data.count", "data.lines")
    return Table(translate("data.problems"), titles, rows, [FILE])


def _first_lines(problem: dict) -> str:
    """The first lines, or the first names, that a problem was found at."""
    lines = get_path(problem, "lines", default=[]) or get_path(problem, "names", default=[])
    shown = ", ".join(str(line) for line in lines[:MAX_LINES])
    return f"{shown} …" if len(lines) > MAX_LINES else shown
