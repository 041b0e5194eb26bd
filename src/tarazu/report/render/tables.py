"""Tables of the page and their cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tarazu.report.analysis.study_view import as_number
from tarazu.report.render.bilingual import Bilingual, code, data_text, number


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        html: what is shown.
        sort: what the column is sorted by; None for an empty cell.
        best: whether it is marked as the best of its column.
    """

    html: Any
    sort: float | str | None = None
    best: bool = False

    @property
    def key(self) -> str:
        """What the page's script sorts by, with seven digits of a number."""
        return f"{self.sort:.7g}" if isinstance(self.sort, float) else str(self.sort)


@dataclass
class Table:
    """A table with its caption; `sources` are the files that its numbers came from."""

    caption: Bilingual
    columns: list
    rows: list[list[Cell]]
    sources: list[str] = field(default_factory=list)
    sortable: bool = False


def number_cell(value: Any, format: str, source: str = "", best: bool = False) -> Cell:
    """A number; the arguments are those of `number`."""
    return Cell(number(value, format, source), as_number(value), best)


def text_cell(value: Any) -> Cell:
    """A text; one that is not markup is escaped as data."""
    sort = value.plain("en") if isinstance(value, Bilingual) else str(value)
    return Cell(value if hasattr(value, "__html__") else data_text(value), sort)


def code_cell(value: Any) -> Cell:
    """A name, path or setting."""
    return Cell(code(value), str(value))


def pairs_table(
    caption: Bilingual,
    pairs: Iterable[tuple[Bilingual, Any]],
    columns: list[Bilingual],
    sources: list[str],
) -> Table:
    """A table of two columns, name and value. Pairs without a value are left out."""
    rows = [
        [text_cell(name), value if isinstance(value, Cell) else text_cell(value)]
        for name, value in pairs
        if value is not None
    ]
    return Table(caption, columns, rows, sources)


def patterns(names: Iterable[str]) -> list[tuple[str, int]]:
    """Group names that differ only in numbers: pattern (`layers.N.q_proj`) and count."""
    return list(Counter(re.sub(r"\d+", "N", name) for name in names).items())


def best_of(values: list[float | None], better: str) -> set[int]:
    """The indices of the best values, all of them where several are equal.

    Args:
        values: None where a value is missing.
        better: "low" or "high".

    Returns:
        Empty where there are not two different values.
    """
    # Nine digits: equal measurements may differ in their last bits.
    rounded = {i: float(f"{v:.9g}") for i, v in enumerate(values) if v is not None}
    if len(set(rounded.values())) < 2:
        return set()
    best = min(rounded.values()) if better == "low" else max(rounded.values())
    return {i for i, value in rounded.items() if value == best}
