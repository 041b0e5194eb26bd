"""The comparison of all methods: quality, costs, curves, Pareto charts, pairwise tests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tarazu.report.analysis.curves import curve
from tarazu.report.analysis.metrics import (
    COSTS,
    FLOPS,
    THROUGHPUT,
    TRAINED_PARAMETERS,
    Metric,
    mean_over_seeds,
    seed_values,
)
from tarazu.report.analysis.study_view import MethodView, StudyView, as_number, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    joined,
    number,
    small_note,
    spaced,
    translate,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, best_of, number_cell, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import (
    files_of,
    first_files,
    translate_all,
    with_interval,
)
from tarazu.report.sections.common.curves import axis_of, line_figure
from tarazu.report.sections.common.method_names import (
    all_methods,
    axis_title,
    joined_code,
    method_name,
    metric_name,
)
from tarazu.report.sections.common.pairwise_tests import (
    forest_plot_figure,
    pair_findings,
    pair_table,
)

LOG_RATIO = (
    20  # the cost axis is logarithmic where the largest cost is this many times the smallest
)


def comparison_section(context: Context) -> Section:
    """The section that shows all methods together, with the parts that the task adds."""
    study, comparison = context.study, context.comparison
    parts = context.task.comparison_parts(context)
    pareto_figures = [pareto_figure(context, cost) for cost in context.metrics.pareto_costs]
    tested = [key for key in context.metrics.tested if comparison.pairs.get(key)]
    view = {
        "quality": quality_table(context),
        "after_quality": [part for part in parts if part.after_quality],
        "costs": cost_table(study),
        "compute": compute_sentences(study),
        "curves": validation_figure(context),
        "pareto_figures": [figure for figure in pareto_figures if figure],
        "forest_plot": forest_plot_figure(context),
        "pairs": [pair_table(context, key) for key in tested],
        "findings": pair_findings(context),
        "rows_differ": joined_code(comparison.rows_differ) if comparison.rows_differ else None,
        "after_tests": [part for part in parts if not part.after_quality],
    }
    explanations = explain(*context.task.comparison_explanations)
    title = translate("section.comparison")
    return Section("comparison", title, "comparison.html", view, explanations)


def _measured(metrics: Iterable[Metric], methods: list[MethodView]) -> list[Metric]:
    """The metrics that at least one method has."""
    return [m for m in metrics if any(mean_over_seeds(method, m) is not None for method in methods)]


def _best_rows(metrics: list[Metric], methods: list[MethodView]) -> dict[str, set[int]]:
    """The rows that hold the best value of each metric."""
    return {m.key: best_of([mean_over_seeds(x, m) for x in methods], m.better) for m in metrics}


def _column_title(metric: Metric) -> Bilingual:
    """The name of a metric with an arrow in its better direction."""
    return spaced(metric_name(metric.key), translate(f"compare.{metric.better}"))


def quality_table(context: Context) -> Table:
    """Every quality metric of every method, and the gain over the base model in the primary one."""
    base, methods = context.study.base, all_methods(context.study)
    metrics = _measured(context.metrics.quality, methods)
    best, rows = _best_rows(metrics, methods), []
    for i, method in enumerate(methods):
        cells = [text_cell(method_name(method)), number_cell(len(method.measured), "count")]
        cells += [_quality_cell(context, method, m, i in best[m.key]) for m in metrics]
        if base:
            gain = _relative_gain(context.metrics.primary, method, base)
            cells.append(number_cell(gain, "signed_percent", method.first.file("metrics.json")))
        rows.append(cells)
    columns = translate_all("compare.method", "compare.seeds")
    columns += [_column_title(metric) for metric in metrics]
    columns += [translate("compare.gain")] if base else []
    files = files_of(methods, "metrics.json")
    return Table(translate("compare.quality"), columns, rows, files, sortable=True)


def _relative_gain(metric: Metric, method: MethodView, base: MethodView) -> float | None:
    """The gain of a method as a fraction of the base model's value."""
    after, before = mean_over_seeds(method, metric), mean_over_seeds(base, metric)
    if after is None or not before or method is base:
        return None
    return metric.gain(after, before) / abs(before)


def _quality_cell(context: Context, method: MethodView, metric: Metric, best: bool) -> Cell:
    """The mean over seeds; for the primary metric also its interval and the range over seeds."""
    mean = mean_over_seeds(method, metric)
    text = number(mean, metric.format, method.first.file("metrics.json"))
    if metric is context.metrics.primary:
        interval = context.comparison.intervals.get((method.name, metric.key))
        if interval is not None:
            text = with_interval(text, interval.low, interval.high, metric.format)
        values = seed_values(method, metric)
        if len(values) > 1:
            ends = {"low": min(values), "high": max(values)}
            ends = {name: number(value, metric.format) for name, value in ends.items()}
            text = spaced(text, small_note(translate("compare.spread", **ends)))
    return Cell(text, mean, best)


def cost_table(study: StudyView) -> Table:
    """The cost of every method, mean over seeds, and its fraction of trained parameters."""
    methods = study.methods
    metrics = _measured((*COSTS, *THROUGHPUT), methods)
    best, rows = _best_rows(metrics, methods), []
    for i, method in enumerate(methods):
        source = method.first.file("ledger.json")
        cells = [
            number_cell(mean_over_seeds(method, m), m.format, source, i in best[m.key])
            for m in metrics
        ]
        fraction = number_cell(_trained_fraction(method), "share", source)
        rows.append([text_cell(method_name(method)), *cells, fraction])
    titles = [_column_title(metric) for metric in metrics]
    columns = [translate("compare.method"), *titles, translate("compare.trained_fraction")]
    files = [run.file("ledger.json") for method in methods for run in method.runs if run.ledger]
    return Table(translate("compare.costs"), columns, rows, files, sortable=True)


def _trained_fraction(method: MethodView) -> float | None:
    """Trained parameters as a fraction of all parameters."""
    trained = mean_over_seeds(method, TRAINED_PARAMETERS)
    total = as_number(method.first.ledger.get("total_parameters"))
    total = total or as_number(method.first.run_info.get("total_parameters"))
    return trained / total if trained is not None and total else None


def compute_sentences(study: StudyView) -> list[Bilingual]:
    """FLOPs per token against trained parameters, and the matmul rate of the utilisation."""
    sentences = []
    flops = {m.name: value for m in study.methods if (value := mean_over_seeds(m, FLOPS))}
    trained = {
        m.name: value for m in study.methods if (value := mean_over_seeds(m, TRAINED_PARAMETERS))
    }
    names = [name for name in flops if name in trained]
    if len(names) > 1:
        sentences.append(_flops_sentence(study, flops, trained, names))
    rates = {
        str(rate): number(rate, "flops", run.file("ledger.json"))
        for method in study.methods
        for run in method.runs
        if (rate := as_number(get_path(run.ledger, "device_matmul_flops")))
    }
    if rates:
        sentences.append(translate("compare.matmul", rates=joined(list(rates.values()))))
    return sentences


def _flops_sentence(
    study: StudyView, flops: dict[str, float], trained: dict[str, float], names: list[str]
) -> Bilingual:
    """The cheapest and the most expensive method per token, and the ratio of trained parameters."""
    low, high = min(names, key=flops.__getitem__), max(names, key=flops.__getitem__)
    counts = [trained[name] for name in names]

    def shown(name: str) -> Bilingual:
        source = study.method(name).first.file("ledger.json")
        return number(flops[name], FLOPS.format, source)

    return translate(
        "compare.flops",
        min=shown(low),
        min_name=code(low),
        max=shown(high),
        max_name=code(high),
        times=number(flops[high] / flops[low], "two"),
        trained=number(max(counts) / min(counts), "count"),
    )


def validation_figure(context: Context) -> Figure | None:
    """The validation loss of every method in one chart."""
    field, title, _ = axis_of(context)
    series = []
    for i, method in enumerate(context.study.methods):
        points = curve(method.first, "validation", field)
        if points:
            dash = i // len(charts.PALETTE)
            series.append(charts.Series(method.name, points.x, points.y, i, dash))
    if not series:
        return None
    files = first_files(context.study.methods, "events.jsonl")
    caption, y = translate("compare.curves"), translate("axis.validation_loss")
    return line_figure(context, "curves-all", caption, series, title, y, files)


def pareto_figure(context: Context, cost: Metric, name: str | None = None) -> Figure | None:
    """Quality against one cost, with its Pareto front.

    Args:
        name: the name of the figure's files; by default it names the cost.
    """
    verdict, points = context.verdict, []
    quality = verdict.metric.key
    for candidate in verdict.candidates:
        x = candidate.costs.get(cost.key)
        if x is not None and x > 0:
            interval = context.comparison.intervals.get((candidate.name, quality))
            low, high = (interval.low, interval.high) if interval else (None, None)
            point = {"name": candidate.name, "x": x, "y": candidate.quality}
            points.append({**point, "low": low, "high": high})
    if not points:
        return None
    costs = [point["x"] for point in points]
    log = max(costs) > LOG_RATIO * min(costs)
    titles, front = (axis_title(cost.key), axis_title(quality)), verdict.fronts[cost.key]
    make = partial(charts.pareto_chart, points, front, *titles, log=log)
    names = {"cost": metric_name(cost.key), "quality": metric_name(quality)}
    caption = translate("compare.pareto", **names)
    files = first_files(context.study.methods, "metrics.json", "ledger.json")
    return context.figures.add(name or f"quality-{cost.key}", caption, make, files)
