"""Metrics that a report compares: their source, better direction, and value for each test row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tarazu.report.analysis.study_view import (
    MethodView,
    RunView,
    StudyView,
    as_number,
    dicts_in,
    get_path,
)


class RunRows(NamedTuple):
    """One metric of one run, row by row. Weights are None where all rows count alike."""

    ids: tuple[Any, ...]
    values: list[float]
    weights: np.ndarray | None


@dataclass(frozen=True)
class RowSource:
    """Where a metric's value for each test row is read.

    Args:
        file: the file of the run folder, as the report's source links name it.
        read: returns the rows of a run, or None where the run has none.
    """

    file: str
    read: Callable[[RunView], RunRows | None]


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Args:
        key: its name in strings (`metric.KEY`, `axis.KEY`) and in results.csv.
        better: "low" or "high".
        format: a format of `number_format`.
        file: metrics.json, ledger.json, or results.json (the run's row of it).
        paths: key paths in that file; the first that leads to a number counts.
        is_cost: whether it measures what training costs, not how good the model is.
        rows: where its value for each test row is read; None where it has no such values.
    """

    key: str
    better: str
    format: str
    file: str
    paths: tuple[tuple[str | int, ...], ...]
    is_cost: bool = False
    rows: RowSource | None = None

    def of(self, run: RunView) -> float | None:
        """The metric of one run, or None where it was not measured."""
        files = {
            "metrics.json": run.metrics,
            "ledger.json": run.ledger,
            "results.json": run.results,
        }
        values = (as_number(get_path(files[self.file], *path)) for path in self.paths)
        return next((value for value in values if value is not None), None)

    def gain(self, value: float, reference: float) -> float:
        """How much better `value` is than `reference`; positive is better in both directions."""
        return reference - value if self.better == "low" else value - reference


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of one task.

    Args:
        quality: quality metrics; the first one decides the recommendation.
        tested: keys of the metrics on which every pair of methods is tested, each with a table.
        secondary: keys of further tested metrics, each summarised in one sentence.
        side_costs: quality metrics that also count as a cost of training, such as forgetting.
        tested_as: metrics that are another one in a different unit, so that its test holds for
            them.
        baseline: the primary metric without training, where a study has no base model.
    """

    quality: tuple[Metric, ...]
    tested: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    side_costs: tuple[Metric, ...] = ()
    tested_as: Mapping[str, str] = field(default_factory=dict)
    baseline: Callable[[StudyView], float | None] = lambda study: None

    @property
    def primary(self) -> Metric:
        """The metric that "quality" means."""
        return self.quality[0]

    @property
    def by_key(self) -> dict[str, Metric]:
        """Every metric, quality first, by its key."""
        return {metric.key: metric for metric in (*self.quality, *COSTS, *THROUGHPUT)}

    @property
    def pareto_costs(self) -> tuple[Metric, ...]:
        """What quality is weighed against."""
        return (*COSTS, *self.side_costs)


def _cost(key: str, format: str, *paths: tuple[str, ...]) -> Metric:
    return Metric(key, "low", format, "ledger.json", paths, is_cost=True)


TRAINED_PARAMETERS = _cost("trained_parameters", "count", ("trained_parameters",))
COSTS = (
    _cost("train_seconds", "seconds", ("seconds", "train")),
    _cost(
        "train_memory",
        "bytes",
        ("train_memory", "allocated"),
        ("train_memory", "reserved"),
        ("train_memory", "resident"),
    ),
    TRAINED_PARAMETERS,
    _cost("weights_bytes", "bytes", ("weights_bytes",)),
)
FLOPS = Metric("flops_per_token", "low", "flops", "ledger.json", (("flops_per_token",),))
THROUGHPUT = (
    Metric("tokens_per_second", "high", "count", "ledger.json", (("tokens_per_second",),)),
    Metric("energy_joules", "low", "count", "ledger.json", (("energy_joules",),)),
    FLOPS,
    Metric("utilisation", "high", "percent", "ledger.json", (("utilisation",),)),
)


def mean_over_seeds(method: MethodView, metric: Metric) -> float | None:
    """The mean over the seeds that have the metric; a method that trains nothing has no costs."""
    if metric.is_cost and method.untrained:
        return None
    values = seed_values(method, metric)
    return float(np.mean(values)) if values else None


def seed_values(method: MethodView, metric: Metric) -> list[float]:
    """The metric of each seed that has it.

    Costs in the ledger are comparable on one device only, so seeds that ran on another device than
    most seeds of the method are left out.
    """
    return [
        value
        for run in method.runs
        if not (metric.file == "ledger.json" and run.on_other_device)
        and (value := metric.of(run)) is not None
    ]


@dataclass(frozen=True)
class Rows:
    """One metric row by row: values (seeds, rows), weights (rows,) or None, and the row ids."""

    values: np.ndarray
    weights: np.ndarray | None
    ids: tuple[Any, ...]


def row_values(method: MethodView, metric: Metric) -> Rows | None:
    """The metric of each test row, for the seeds that were tested on the first seed's rows."""
    if metric.rows is None:
        return None
    runs = [rows for run in method.measured if (rows := metric.rows.read(run)) is not None]
    if not runs:
        return None
    first = runs[0]
    values = [rows.values for rows in runs if rows.ids == first.ids]
    return Rows(np.array(values), first.weights, first.ids)


def row_losses(*path: str, weight_column: int = 1, unit: float = 1.0) -> RowSource:
    """Rows from a list in metrics.json: summed loss of each row, weighted by its tokens or bytes.

    Args:
        path: keys that lead to the list, whose items are `[loss_nats, tokens, bytes]`.
        weight_column: the column that holds the weights.
        unit: nats in one unit of the metric: 1, or ln 2 for bits.
    """

    def read(run: RunView) -> RunRows | None:
        rows = get_path(run.metrics, *path)
        if not isinstance(rows, list) or not rows:
            return None
        if not all(_is_loss_row(row, weight_column) for row in rows):
            return None
        weights = np.array([row[weight_column] for row in rows], dtype=float)
        return RunRows(tuple(range(len(rows))), [row[0] / unit for row in rows], weights)

    return RowSource("metrics.json", read)


def _is_loss_row(row: Any, weight_column: int) -> bool:
    """Whether the row has a finite loss and a weight above zero."""
    if not isinstance(row, list) or len(row) <= weight_column:
        return False
    return as_number(row[0]) is not None and bool(as_number(row[weight_column]))


def sample_scores(score: Callable[[dict], float | None]) -> RowSource:
    """Rows from samples.jsonl: `score` of each sample; samples without one are left out."""

    def read(run: RunView) -> RunRows | None:
        scored = [(s.get("id"), value) for s in run.samples if (value := score(s)) is not None]
        if len(scored) < 2:
            return None
        scored.sort(key=lambda pair: str(pair[0]))
        ids, values = zip(*scored, strict=True)
        return RunRows(ids, list(values), None)

    return RowSource("samples.jsonl", read)


LOSS = Metric("loss", "low", "loss", "metrics.json", (("loss",),), rows=row_losses("row_losses"))
PERPLEXITY = Metric("perplexity", "low", "two", "metrics.json", (("perplexity",),))
NATS_PER_BIT = math.log(2)


def by_id(run: RunView) -> dict[str, dict]:
    """The samples of a run by their id."""
    return {str(sample.get("id")): sample for sample in dicts_in(run.samples)}


def signed_format(metric: Metric) -> str:
    """The format of a difference: row scores run from 0 to 100, losses do not."""
    return "signed" if metric.format in ("loss", "two") else "signed_points"


def unsigned(format: str) -> str:
    """The format without a sign of what `signed_format` gave."""
    return "loss" if format == "signed" else "points"
