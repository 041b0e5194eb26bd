"""Estimated and actual costs of each method: time, speed, memory and disk."""

from __future__ import annotations

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
from tarazu.report.sections.common.cells import translate_all
from tarazu.report.sections.common.method_names import all_methods, method_name

FILE = "estimate.json"
CLOSE = 0.2  # an estimate from measured steps is good within this fraction of the actual value
FORMATS = {
    "train": "seconds",
    "total": "seconds",
    "speed": "count",
    "memory": "bytes",
    "disk": "bytes",
}


@dataclass(frozen=True)
class EstimatedValue:
    """One quantity of one method.

    Args:
        quantity: a key of `FORMATS`.
        low, high: the estimated range; equal for a single value, None where there is no estimate.
        actual: the value in the run's ledger, or None.
    """

    quantity: str
    low: float | None
    high: float | None
    actual: float | None

    @property
    def ratio(self) -> float | None:
        """Actual over estimated: 1 inside the range, else over the nearer end of it."""
        if self.actual is None or not self.low or not self.high:
            return None
        if self.actual < self.low:
            return self.actual / self.low
        return self.actual / self.high if self.actual > self.high else 1.0


@dataclass(frozen=True)
class MethodEstimate:
    """The estimate of one method.

    Args:
        measured: whether it comes from measured steps, not from model size alone.
    """

    method: MethodView
    measured: bool
    values: list[EstimatedValue]

    def is_good(self, value: EstimatedValue) -> bool:
        """Whether the actual value is within `CLOSE` of the estimate or inside its range."""
        return abs(value.ratio - 1) <= CLOSE if self.measured else value.ratio == 1.0


def estimates_view(study: StudyView) -> dict | None:
    """The table and the sentences; None where the study has no estimate of a method that ran."""
    entries = {
        str(entry.get("method")): entry
        for entry in dicts_in(study.extras["estimate"].get("methods"))
    }
    estimates = []
    for method in all_methods(study):
        entry = entries.get(method.name)
        if entry is None or not method.first.ledger:
            continue
        values = estimated_values(entry, method.first)
        if any(value.ratio is not None for value in values):
            estimates.append(MethodEstimate(method, entry.get("how") == "measured", values))
    if not estimates:
        return None
    return {"table": _table(estimates), "sentences": _sentences(estimates)}


def estimated_values(entry: dict, run: RunView) -> list[EstimatedValue]:
    """Every quantity of one entry of estimate.json, with its actual value in the ledger."""
    actual = _actual_values(entry, run.ledger)
    train = as_number(get_path(entry, "seconds", "train"))
    speed = as_number(entry.get("tokens_per_second"))
    ranges = {
        "train": (train, train),
        "total": _range(entry, "seconds"),
        "speed": (speed, speed),
        "memory": _range(entry, "memory"),
        "disk": _range(entry, "disk"),
    }
    return [EstimatedValue(name, *ranges[name], actual[name]) for name in FORMATS]


def _range(entry: dict, key: str) -> tuple[float | None, float | None]:
    low, high = (as_number(get_path(entry, "range", key, side)) for side in (0, 1))
    return low, high


def _actual_values(entry: dict, ledger: dict) -> dict[str, float | None]:
    """What the run took. The total covers the estimated phases, else all but the search."""
    estimated_phases = get_path(entry, "seconds", default={})
    seconds = [
        as_number(value) or 0.0
        for phase, value in get_path(ledger, "seconds", default={}).items()
        if (phase in estimated_phases if estimated_phases else phase != "search")
    ]
    allocated = as_number(get_path(ledger, "train_memory", "allocated"))
    return {
        "train": as_number(get_path(ledger, "seconds", "train")),
        "total": sum(seconds) if seconds else None,
        "speed": as_number(ledger.get("tokens_per_second")),
        "memory": allocated or as_number(get_path(ledger, "train_memory", "resident")),
        "disk": as_number(ledger.get("disk_bytes")),
    }


def _table(estimates: list[MethodEstimate]) -> Table:
    """One row for each method, with the quantities that are known of at least one."""
    known = {v.quantity for e in estimates for v in e.values if v.ratio is not None}
    rows = []
    for estimate in estimates:
        basis = translate("estimate.measured" if estimate.measured else "estimate.predicted")
        cells = [_cell(estimate.method, v) for v in estimate.values if v.quantity in known]
        rows.append([text_cell(method_name(estimate.method)), text_cell(basis), *cells])
    quantities = [f"estimate.{name}" for name in FORMATS if name in known]
    columns = translate_all("compare.method", "estimate.basis", *quantities)
    sources = [FILE, *[estimate.method.first.file("ledger.json") for estimate in estimates]]
    return Table(translate("estimate.table"), columns, rows, sources, sortable=True)


def _cell(method: MethodView, value: EstimatedValue) -> Cell:
    """Estimated value, actual value and their ratio; the ratio is the sort key."""
    format = FORMATS[value.quantity]
    actual = number(value.actual, format, method.first.file("ledger.json"))
    if value.ratio is None:
        return Cell(actual, None)
    low, high = number(value.low, format, FILE), number(value.high, format, FILE)
    estimated = low if low == high else translate("estimate.range", low=low, high=high)
    if value.low != value.high and value.ratio == 1.0:
        ratio = translate("estimate.inside")
    else:
        ratio = translate("estimate.ratio", ratio=number(value.ratio, "two"))
    text = translate("estimate.cell", estimated=estimated, actual=actual, ratio=ratio)
    return Cell(text, value.ratio)


def _sentences(estimates: list[MethodEstimate]) -> list[Bilingual]:
    """How many quantities came out as estimated, for measured and for predicted estimates."""
    sentences = []
    for measured, key in ((True, "estimate.measured_good"), (False, "estimate.predicted_good")):
        outcomes = [
            estimate.is_good(value)
            for estimate in estimates
            if estimate.measured == measured
            for value in estimate.values
            if value.ratio is not None
        ]
        if outcomes:
            good, total = number(sum(outcomes), "count"), number(len(outcomes), "count")
            sentences.append(translate(key, good=good, all=total))
    return sentences
