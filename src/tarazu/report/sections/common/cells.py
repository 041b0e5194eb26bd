"""Cells and tables that several sections are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render.bilingual import Bilingual, number, small_note, spaced, translate
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, pairs_table


def translate_all(*keys: str) -> list[Bilingual]:
    """The strings of several keys: the columns of a table."""
    return [translate(key) for key in keys]


def facts_table(caption: str, facts: Iterable[tuple[str, Any]], *sources: str) -> Table:
    """A table of two columns: what, and its value.

    Args:
        caption: the string key of the caption.
        facts: (string key, value or cell) of each row. A fact whose value is None is left out.
        sources: the files that the values come from.
    """
    pairs = [(translate(key), value) for key, value in facts]
    columns = translate_all("common.what", "common.value")
    return pairs_table(translate(caption), pairs, columns, list(sources))


def code_or_none(value: Any) -> Cell | None:
    """A code cell, or None for an empty value."""
    return code_cell(value) if value else None


def number_cells(values: Iterable[Any], format: str, source: str = "") -> list[Cell]:
    """Number cells of one format and source."""
    return [number_cell(value, format, source) for value in values]


def shape_text(shape: Any) -> str:
    """The dimensions of a tensor: `1024 × 640`."""
    return " × ".join(str(size) for size in shape) if isinstance(shape, list) else str(shape)


def interval_text(low: Any, high: Any, format: str) -> Bilingual:
    """An interval: `[low to high]`."""
    return translate("compare.interval", low=number(low, format), high=number(high, format))


def with_interval(value: Bilingual, low: Any, high: Any, format: str) -> Bilingual:
    """A value with its interval in small print."""
    return spaced(value, small_note(interval_text(low, high, format)))


def files_of(methods: Iterable[MethodView], name: str) -> list[str]:
    """The file `name` of every run that was evaluated."""
    return [run.file(name) for method in methods for run in method.measured]


def first_files(methods: Iterable[MethodView], *names: str) -> list[str]:
    """The files `names` of the first run of each method."""
    return [method.first.file(name) for method in methods for name in names]
