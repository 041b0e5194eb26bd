"""Methods against each other on the same rows: intervals, every pair tested, corrected for how many pairs there are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from tarazu.report.analysis.metrics import (
    SAME_ROWS,
    SECONDARY_TESTS,
    TESTED,
    Metric,
    Rows,
    all_metrics,
    row_values,
)
from tarazu.report.analysis.statistics import Difference, Interval, difference, holm, interval
from tarazu.report.analysis.study_view import MethodView, StudyView

SURE = 0.05


@dataclass(frozen=True)
class Pair:
    """Two methods on one figure. `p` is Holm-adjusted over all pairs of that figure."""

    a: str
    b: str
    metric: Metric
    difference: Difference
    p: float

    @property
    def significant(self) -> bool:
        return self.p < SURE

    @property
    def winner(self) -> str | None:
        """The better of the two where the difference is sure, else None."""
        if not self.significant:
            return None
        return self.a if (self.difference.mean < 0) == (self.metric.better == "low") else self.b


@dataclass(frozen=True)
class Comparison:
    """All tests of a study. `rows_differ` names methods whose test rows are not the others' rows: never compared."""

    intervals: dict[tuple[str, str], Interval]
    pairs: dict[str, list[Pair]]
    rows_differ: list[str]

    def pair(self, key: str, a: str, b: str) -> Pair | None:
        return next((p for p in self.pairs.get(key, []) if {p.a, p.b} == {a, b}), None)

    def is_significant(self, key: str, a: str, b: str) -> bool | None:
        """Whether a difference was found; None where it could not be tested."""
        pair = self.pair(SAME_ROWS.get(key, key), a, b)
        return None if pair is None else pair.significant


def compare(study: StudyView) -> Comparison:
    """Every figure of `TESTED` and `BESIDES` for every pair of methods, the untouched model included."""
    methods = ([study.base] if study.base else []) + study.methods
    known = all_metrics(study.task)
    intervals: dict[tuple[str, str], Interval] = {}
    pairs: dict[str, list[Pair]] = {}
    odd: set[str] = set()
    for key in [*TESTED.get(study.task, []), *SECONDARY_TESTS.get(study.task, [])]:
        rows, left_out = _same_rows(methods, key)
        odd |= set(left_out)
        for name, found in rows.items():
            intervals[name, key] = interval(found.values, found.weights)
        pairs[key] = _test(known[key], rows, study.base.name if study.base else None)
    return Comparison(intervals, pairs, sorted(odd))


def _same_rows(methods: list[MethodView], key: str) -> tuple[dict[str, Rows], list[str]]:
    """The methods that answered the rows that most of them answered, and the names of the others."""
    found = {method.name: rows for method in methods if (rows := row_values(method, key)) is not None}
    if not found:
        return {}, []
    signs = {
        name: (rows.ids, None if rows.weights is None else rows.weights.tobytes())
        for name, rows in found.items()
    }
    tally = list(signs.values())
    common = max(tally, key=tally.count)
    return {name: rows for name, rows in found.items() if signs[name] == common}, [
        n for n in found if signs[n] != common
    ]


def _test(metric: Metric, rows: dict[str, Rows], base: str | None) -> list[Pair]:
    couples = list(combinations(rows, 2))
    found = [
        difference(
            rows[a].values,
            rows[b].values,
            rows[a].weights,
            comparisons=len(couples),
            started=base not in (a, b),
        )
        for a, b in couples
    ]
    adjusted = holm([one.p for one in found])
    return [
        Pair(a, b, metric, one, p) for (a, b), one, p in zip(couples, found, adjusted, strict=True)
    ]
