"""The pieces that sections are made of: tables, cells and links to the files that numbers came from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tarazu.report.analysis.study_view import as_number
from tarazu.report.render.bilingual import Bilingual, code, data_text, number


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, and what a sort goes by."""

    html: Any
    sort: float | str | None = None
    best: bool = False

    @property
    def key(self) -> str:
        """What the page's script compares: seven digits of a number are enough."""
        return f"{self.sort:.7g}" if isinstance(self.sort, float) else str(self.sort)


@dataclass
class Table:
    """A table with a caption and the files behind it."""

    caption: Bilingual
    columns: list
    rows: list[list[Cell]]
    sources: list[str] = field(default_factory=list)
    sortable: bool = False


def number_cell(value: Any, format: str, source: str = "", best: bool = False) -> Cell:
    return Cell(number(value, format, source), as_number(value), best)


def text_cell(value: Any) -> Cell:
    return Cell(
        value if hasattr(value, "__html__") else data_text(value),
        value.plain("en") if isinstance(value, Bilingual) else str(value),
    )


def code_cell(value: Any) -> Cell:
    return Cell(code(value), str(value))


def pairs_table(
    caption: Bilingual,
    pairs: Iterable[tuple[Bilingual, Any]],
    columns: list[Bilingual],
    sources: list[str],
) -> Table:
    """Two columns: what, and how much. Pairs whose value is None are left out."""
    rows = [
        [text_cell(name), value if isinstance(value, Cell) else text_cell(value)]
        for name, value in pairs
        if value is not None
    ]
    return Table(caption, columns, rows, sources)


def patterns(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that differ only in their numbers, as one pattern with how many there are: `layers.N.q_proj`, 18."""
    found: dict[str, int] = {}
    for name in names:
        key = re.sub(r"\d+", "N", name)
        found[key] = found.get(key, 0) + 1
    return list(found.items())


def best_of(values: list[float | None], better: str) -> set[int]:
    """Where the best figure stands, more than once where several are equal; nowhere when fewer than two are known or all are alike."""
    known = {i: float(f"{v:.9g}") for i, v in enumerate(values) if v is not None}
    if len(set(known.values())) < 2:
        return set()
    best = min(known.values()) if better == "low" else max(known.values())
    return {i for i, value in known.items() if value == best}
