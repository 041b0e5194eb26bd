"""What was expected of each method before it ran, beside what happened: time, speed, memory and disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tarazu.report.analysis.study_view import (
    MethodView,
    RunView,
    StudyView,
    as_number,
    dicts_in,
    get_path,
)
from tarazu.report.render.bilingual import Bilingual, number, translate
from tarazu.report.render.tables import Cell, Table, text_cell
from tarazu.report.sections.common.method_names import all_methods, method_name

FILE, CLOSE = "estimate.json", 0.2
FORMS = {
    "train": "seconds",
    "whole": "seconds",
    "speed": "count",
    "memory": "bytes",
    "disk": "bytes",
}


@dataclass(frozen=True)
class Expected:
    """One figure of one method. `low` and `high` are the same where steps were measured; None: not told."""

    figure: str
    low: float | None
    high: float | None
    happened: float | None

    @property
    def ratio(self) -> float | None:
        """What happened over what was expected; of a range, over its nearer end, and 1 inside it."""
        if self.happened is None or not self.low or not self.high:
            return None
        if self.happened < self.low:
            return self.happened / self.low
        return self.happened / self.high if self.happened > self.high else 1.0


def estimates_view(study: StudyView) -> dict | None:
    """The table and the sentences; None where the folder has no estimate of a method that ran."""
    entries = {
        str(entry.get("method")): entry
        for entry in dicts_in(study.extras["estimate"].get("methods"))
    }
    methods = [
        (method, entries[method.name])
        for method in all_methods(study)
        if method.name in entries and method.first.ledger
    ]
    found = [(method, entry, list(figures(entry, method.first))) for method, entry in methods]
    found = [
        (method, entry, told)
        for method, entry, told in found
        if any(one.ratio is not None for one in told)
    ]
    if not found:
        return None
    return {"table": _table(found), "sentences": _sentences(found)}


def figures(entry: dict, run: RunView) -> Iterator[Expected]:
    """Every figure that the estimate has, beside the run's ledger."""
    phases, ledger = get_path(entry, "seconds", default={}), run.ledger
    of_run = {
        phase: as_number(value) or 0.0
        for phase, value in get_path(ledger, "seconds", default={}).items()
    }
    part_of_it = [phase for phase in of_run if (phase in phases if phases else phase != "search")]
    memory = [
        as_number(get_path(ledger, "train_memory", kind)) for kind in ("allocated", "resident")
    ]
    happened = {
        "train": as_number(get_path(ledger, "seconds", "train")),
        "whole": sum(of_run[phase] for phase in part_of_it) if part_of_it else None,
        "speed": as_number(ledger.get("tokens_per_second")),
        "memory": memory[0] or memory[1],
        "disk": as_number(ledger.get("disk_bytes")),
    }
    ranges = {"whole": "seconds", "memory": "memory", "disk": "disk"}
    for figure in FORMS:
        if figure in ranges:
            low, high = (
                as_number(get_path(entry, "range", ranges[figure], side)) for side in (0, 1)
            )
        else:
            low = high = as_number(
                phases.get("train") if figure == "train" else entry.get("tokens_per_second")
            )
        yield Expected(figure, low, high, happened[figure])


def _table(found: list[tuple[MethodView, dict, list[Expected]]]) -> Table:
    shown = [
        figure
        for figure in FORMS
        if any(one.ratio is not None for *_, told in found for one in told if one.figure == figure)
    ]
    rows = [
        [
            text_cell(method_name(method)),
            text_cell(_how(entry)),
            *[_cell(method, one) for one in told if one.figure in shown],
        ]
        for method, entry, told in found
    ]
    columns = [
        translate("compare.method"),
        translate("estimate.how"),
        *[translate(f"estimate.{figure}") for figure in shown],
    ]
    sources = [FILE, *[method.first.file("ledger.json") for method, *_ in found]]
    return Table(translate("estimate.table"), columns, rows, sources, sortable=True)


def _how(entry: dict) -> Bilingual:
    return translate(
        "estimate.measured" if entry.get("how") == "measured" else "estimate.predicted"
    )


def _cell(method: MethodView, one: Expected) -> Cell:
    """Expected, happened and their ratio; a sort goes by the ratio."""
    format = FORMS[one.figure]
    if one.ratio is None:
        return Cell(number(one.happened, format, method.first.file("ledger.json")), None)
    low, high = number(one.low, format, FILE), number(one.high, format, FILE)
    told = low if low == high else translate("estimate.range", low=low, high=high)
    inside = one.low != one.high and one.ratio == 1.0
    ratio = (
        translate("estimate.inside")
        if inside
        else translate("estimate.ratio", ratio=number(one.ratio, "two"))
    )
    happened = number(one.happened, format, method.first.file("ledger.json"))
    return Cell(
        translate("estimate.cell", expected=told, happened=happened, ratio=ratio), one.ratio
    )


def _sentences(found: list[tuple[MethodView, dict, list[Expected]]]) -> list[Bilingual]:
    """How many figures came out as expected: within a fifth where steps were measured, else inside the range."""
    told = []
    for how in ("measured", "predicted"):
        some = [
            one
            for _, entry, figures in found
            if (entry.get("how") == "measured") == (how == "measured")
            for one in figures
        ]
        some = [one for one in some if one.ratio is not None]
        good = [
            one
            for one in some
            if (abs(one.ratio - 1) <= CLOSE if how == "measured" else one.ratio == 1.0)
        ]
        if some:
            told.append(
                translate(
                    f"estimate.{how}_good",
                    good=number(len(good), "count"),
                    all=number(len(some), "count"),
                )
            )
    return told
