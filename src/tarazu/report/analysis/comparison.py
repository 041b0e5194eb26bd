"""Compare methods on the same test rows: confidence intervals and corrected paired tests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from tarazu.report.analysis.metrics import Metric, Rows, TaskMetrics, row_values
from tarazu.report.analysis.statistics import Difference, Interval, difference, holm, interval
from tarazu.report.analysis.study_view import MethodView, StudyView

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """The test of two methods on one metric.

    Args:
        a, b: the names of the methods.
        difference: `a - b` with its interval.
        p: the p value, adjusted by Holm over all pairs of the metric.
    """

    a: str
    b: str
    metric: Metric
    difference: Difference
    p: float

    @property
    def significant(self) -> bool:
        """Whether the methods differ."""
        return self.p < SIGNIFICANCE_LEVEL

    @property
    def winner(self) -> str | None:
        """The better of the two where the difference is significant, else None."""
        if not self.significant:
            return None
        a_is_lower = self.difference.mean < 0
        return self.a if a_is_lower == (self.metric.better == "low") else self.b


@dataclass(frozen=True)
class Comparison:
    """All tests of a study.

    Args:
        metrics: the metrics of the study's task.
        intervals: the confidence interval of each (method, metric key).
        pairs: the tests of each metric key.
        rows_differ: methods that were tested on other rows than most methods: they are not
            compared.
    """

    metrics: TaskMetrics
    intervals: dict[tuple[str, str], Interval]
    pairs: dict[str, list[Pair]]
    rows_differ: list[str]

    def pair(self, key: str, a: str, b: str) -> Pair | None:
        """The test of methods `a` and `b` in any order, or None where there is none."""
        return next((p for p in self.pairs.get(key, []) if {p.a, p.b} == {a, b}), None)

    def is_significant(self, key: str, a: str, b: str) -> bool | None:
        """Whether two methods differ on a metric; None where that was not tested."""
        pair = self.pair(self.metrics.tested_as.get(key, key), a, b)
        return None if pair is None else pair.significant


def compare(study: StudyView, metrics: TaskMetrics) -> Comparison:
    """Test every pair of methods, the base model included, on each tested metric."""
    base_name = study.base.name if study.base else None
    intervals: dict[tuple[str, str], Interval] = {}
    pairs: dict[str, list[Pair]] = {}
    rows_differ: set[str] = set()
    for key in (*metrics.tested, *metrics.secondary):
        metric = metrics.by_key[key]
        rows, excluded = _on_common_rows(study.all_methods, metric)
        rows_differ |= set(excluded)
        for name, method_rows in rows.items():
            intervals[name, key] = interval(method_rows.values, method_rows.weights)
        pairs[key] = _test_pairs(metric, rows, base_name)
    return Comparison(metrics, intervals, pairs, sorted(rows_differ))


def _on_common_rows(methods: list[MethodView], metric: Metric) -> tuple[dict[str, Rows], list[str]]:
    """The methods that were tested on the most common set of rows, and the names of the others."""
    rows_of = {m.name: rows for m in methods if (rows := row_values(m, metric)) is not None}
    if not rows_of:
        return {}, []
    # Two methods have the same rows if ids and weights are equal: weights are the rows' token
    # counts.
    signatures = {
        name: (rows.ids, None if rows.weights is None else rows.weights.tobytes())
        for name, rows in rows_of.items()
    }
    all_signatures = list(signatures.values())
    most_common = max(all_signatures, key=all_signatures.count)
    common = {name: rows for name, rows in rows_of.items() if signatures[name] == most_common}
    return common, [name for name in rows_of if name not in common]


def _test_pairs(metric: Metric, rows: dict[str, Rows], base: str | None) -> list[Pair]:
    """Test every pair; `base` names the model that was not trained and so has no seed variance."""
    couples = list(combinations(rows, 2))
    differences = [
        difference(
            rows[a].values,
            rows[b].values,
            rows[a].weights,
            comparisons=len(couples),
            both_trained=base not in (a, b),
        )
        for a, b in couples
    ]
    adjusted = holm([result.p for result in differences])
    return [
        Pair(a, b, metric, result, p)
        for (a, b), result, p in zip(couples, differences, adjusted, strict=True)
    ]
