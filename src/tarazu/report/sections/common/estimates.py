"""What was expected of each method before it ran, beside what happened: time, speed, memory and disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tarazu.report.analysis.study_view import Arm, RunView, StudyView, as_number, dicts_in, get_path
from tarazu.report.render.bilingual import Bilingual, number, translate
from tarazu.report.render.tables import Cell, Table, text_cell
from tarazu.report.sections.chat.answers import all_arms, arm_name

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


def expected_view(study: StudyView) -> dict | None:
    """The table and the sentences; None where the folder has no estimate of a method that ran."""
    entries = {
        str(entry.get("method")): entry
        for entry in dicts_in(study.extras["estimate"].get("methods"))
    }
    arms = [
        (arm, entries[arm.name])
        for arm in all_arms(study)
        if arm.name in entries and arm.first.ledger
    ]
    found = [(arm, entry, list(figures(entry, arm.first))) for arm, entry in arms]
    found = [
        (arm, entry, told)
        for arm, entry, told in found
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


def _table(found: list[tuple[Arm, dict, list[Expected]]]) -> Table:
    shown = [
        figure
        for figure in FORMS
        if any(one.ratio is not None for *_, told in found for one in told if one.figure == figure)
    ]
    rows = [
        [
            text_cell(arm_name(arm)),
            text_cell(_how(entry)),
            *[_cell(arm, one) for one in told if one.figure in shown],
        ]
        for arm, entry, told in found
    ]
    columns = [
        translate("compare.method"),
        translate("expected.how"),
        *[translate(f"expected.{figure}") for figure in shown],
    ]
    sources = [FILE, *[arm.first.file("ledger.json") for arm, *_ in found]]
    return Table(translate("expected.table"), columns, rows, sources, sortable=True)


def _how(entry: dict) -> Bilingual:
    return translate("expected.measured" if entry.get("how") == "measured" else "expected.foreseen")


def _cell(arm: Arm, one: Expected) -> Cell:
    """Expected, happened and their ratio; a sort goes by the ratio."""
    form = FORMS[one.figure]
    if one.ratio is None:
        return Cell(number(one.happened, form, arm.first.file("ledger.json")), None)
    low, high = number(one.low, form, FILE), number(one.high, form, FILE)
    told = low if low == high else translate("expected.range", low=low, high=high)
    inside = one.low != one.high and one.ratio == 1.0
    ratio = (
        translate("expected.inside")
        if inside
        else translate("expected.ratio", ratio=number(one.ratio, "two"))
    )
    happened = number(one.happened, form, arm.first.file("ledger.json"))
    return Cell(
        translate("expected.cell", expected=told, happened=happened, ratio=ratio), one.ratio
    )


def _sentences(found: list[tuple[Arm, dict, list[Expected]]]) -> list[Bilingual]:
    """How many figures came out as expected: within a fifth where steps were measured, else inside the range."""
    told = []
    for how in ("measured", "foreseen"):
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
                    f"expected.{how}_good",
                    good=number(len(good), "count"),
                    all=number(len(some), "count"),
                )
            )
    return told
