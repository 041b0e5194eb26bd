"""Section 6: all methods in one table, on one pair of axes, and side by side in their own words."""

from __future__ import annotations

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
from tarazu.report.sections.common.curves import axis_of, line_figure
from tarazu.report.sections.common.method_names import (
    all_methods,
    axis_title,
    method_name,
    metric_name,
)
from tarazu.report.sections.common.pairwise_tests import (
    forest_plot_figure,
    pair_findings,
    pair_table,
)


def comparison_section(context: Context) -> Section:
    """The section of all methods side by side, with the parts that the task adds."""
    study, comparison = context.study, context.comparison
    parts = context.task.comparison_parts(context)
    view = {
        "quality": quality_table(context),
        "after_quality": [part for part in parts if part.after_quality],
        "costs": cost_table(study),
        "computing": computing(study),
        "curves": validation_figure(context),
        "trades": [
            figure
            for cost in context.metrics.pareto_costs
            if (figure := pareto_figure(context, cost)) is not None
        ],
        "forest": forest_plot_figure(context),
        "pairs": [
            pair_table(context, key) for key in context.metrics.tested if comparison.pairs.get(key)
        ],
        "findings": pair_findings(context),
        "rows_differ": joined([code(name) for name in comparison.rows_differ])
        if comparison.rows_differ
        else None,
        "after_tests": [part for part in parts if not part.after_quality],
    }
    return Section(
        "comparison",
        translate("section.comparison"),
        "comparison.html",
        view,
        explain(*context.task.comparison_explanations),
    )


def quality_table(context: Context) -> Table:
    """Quality of every method: mean over seeds, an interval where rows allow one, and the gain over the base."""
    study, methods = context.study, all_methods(context.study)
    known = [
        m
        for m in context.metrics.quality
        if any(mean_over_seeds(a, m) is not None for a in methods)
    ]
    best = {m.key: best_of([mean_over_seeds(a, m) for a in methods], m.better) for m in known}
    lead, rows = context.metrics.primary, []
    for i, method in enumerate(methods):
        cells = [text_cell(method_name(method)), number_cell(len(method.measured), "count")]
        cells += [_with_interval(context, method, m, i in best[m.key]) for m in known]
        if study.base:
            after, before = mean_over_seeds(method, lead), mean_over_seeds(study.base, lead)
            gain = (
                None
                if after is None or before is None or method is study.base
                else lead.gain(after, before) / abs(before)
                if before
                else None
            )
            cells.append(number_cell(gain, "signed_percent", method.first.file("metrics.json")))
        rows.append(cells)
    columns = [
        translate("compare.method"),
        translate("compare.seeds"),
        *[_heading(m) for m in known],
    ]
    columns += [translate("compare.gain")] if study.base else []
    return Table(
        translate("compare.quality"),
        columns,
        rows,
        [run.file("metrics.json") for method in methods for run in method.measured],
        sortable=True,
    )


def _heading(metric: Metric) -> Bilingual:
    return spaced(metric_name(metric.key), translate(f"compare.{metric.better}"))


def _with_interval(context: Context, method: MethodView, metric: Metric, best: bool) -> Cell:
    value, source = mean_over_seeds(method, metric), method.first.file("metrics.json")
    shown = number(value, metric.format, source)
    found = context.comparison.intervals.get((method.name, metric.key))
    if found is not None and metric is context.metrics.primary:
        shown = spaced(
            shown,
            small_note(
                translate(
                    "compare.interval",
                    low=number(found.low, metric.format),
                    high=number(found.high, metric.format),
                )
            ),
        )
    several = seed_values(method, metric)
    if len(several) > 1 and metric is context.metrics.primary:
        shown = spaced(
            shown,
            small_note(
                translate(
                    "compare.spread",
                    low=number(min(several), metric.format),
                    high=number(max(several), metric.format),
                )
            ),
        )
    return Cell(shown, value, best)


def cost_table(study: StudyView) -> Table:
    """What every method cost: the mean over its seeds."""
    methods = study.methods
    known = [
        m for m in (*COSTS, *THROUGHPUT) if any(mean_over_seeds(a, m) is not None for a in methods)
    ]
    best = {m.key: best_of([mean_over_seeds(a, m) for a in methods], m.better) for m in known}
    rows = []
    for i, method in enumerate(methods):
        cells = [text_cell(method_name(method))]
        cells += [
            number_cell(
                mean_over_seeds(method, m),
                m.format,
                method.first.file("ledger.json"),
                i in best[m.key],
            )
            for m in known
        ]
        total = as_number(method.first.ledger.get("total_parameters")) or as_number(
            method.first.run_info.get("total_parameters")
        )
        trained = mean_over_seeds(method, TRAINED_PARAMETERS)
        cells.append(
            number_cell(
                trained / total if trained is not None and total else None,
                "share",
                method.first.file("ledger.json"),
            )
        )
        rows.append(cells)
    columns = [
        translate("compare.method"),
        *[_heading(m) for m in known],
        translate("compare.trained_fraction"),
    ]
    return Table(
        translate("compare.costs"),
        columns,
        rows,
        [run.file("ledger.json") for method in methods for run in method.runs if run.ledger],
        sortable=True,
    )


def computing(study: StudyView) -> list[Bilingual]:
    """What a token's training takes beside how much is trained, and the rate that utilisation is a share of."""
    found, known = (
        [],
        [
            (f, p, method)
            for method in study.methods
            if (f := mean_over_seeds(method, FLOPS))
            and (p := mean_over_seeds(method, TRAINED_PARAMETERS))
        ],
    )
    if len(known) > 1:
        ends = {
            "least": min(known, key=lambda one: one[0]),
            "most": max(known, key=lambda one: one[0]),
        }
        values = {
            key: number(one[0], FLOPS.format, one[2].first.file("ledger.json"))
            for key, one in ends.items()
        }
        names = {f"{key}_name": code(one[2].name) for key, one in ends.items()}
        trained = [one[1] for one in known]
        spread = {
            "times": number(ends["most"][0] / ends["least"][0], "two"),
            "trained": number(max(trained) / min(trained), "count"),
        }
        found.append(translate("compare.flops", **values, **names, **spread))
    rates = {
        str(get_path(run.ledger, "device_matmul_flops")): run
        for method in study.methods
        for run in method.runs
        if as_number(get_path(run.ledger, "device_matmul_flops"))
    }
    if rates:
        told = [
            number(
                as_number(get_path(run.ledger, "device_matmul_flops")),
                "flops",
                run.file("ledger.json"),
            )
            for run in rates.values()
        ]
        found.append(translate("compare.matmul", rates=joined(told)))
    return found


def validation_figure(context: Context) -> Figure | None:
    """Every method's validation loss on one pair of axes."""
    field, title, _ = axis_of(context)
    series = []
    for i, method in enumerate(context.study.methods):
        points = curve(method.first, "validation", field)
        if points:
            series.append(
                charts.Series(method.name, points.x, points.y, i, i // len(charts.PALETTE))
            )
    if not series:
        return None
    sources = [method.first.file("events.jsonl") for method in context.study.methods]
    return line_figure(
        context,
        "curves-all",
        translate("compare.curves"),
        series,
        title,
        translate("axis.validation_loss"),
        sources,
    )


def pareto_figure(context: Context, cost: Metric, name: str | None = None) -> Figure | None:
    """Quality against one cost, with its Pareto front."""
    verdict, points = context.verdict, []
    for one in verdict.candidates:
        x = one.costs.get(cost.key)
        if x is not None and x > 0:
            found = context.comparison.intervals.get((one.name, verdict.metric.key))
            points.append(
                {
                    "name": one.name,
                    "x": x,
                    "y": one.quality,
                    "low": found.low if found else None,
                    "high": found.high if found else None,
                }
            )
    if not points:
        return None
    values = [p["x"] for p in points]
    make = partial(
        charts.pareto_chart,
        points,
        verdict.fronts[cost.key],
        axis_title(cost.key),
        axis_title(verdict.metric.key),
        log=max(values) > 20 * min(values),
    )
    sources = [
        f
        for method in context.study.methods
        for f in (method.first.file("metrics.json"), method.first.file("ledger.json"))
    ]
    caption = translate(
        "compare.trade",
        cost=metric_name(cost.key),
        quality=metric_name(verdict.metric.key),
    )
    return context.figures.add(
        name or f"quality-{cost.key}", caption, lambda language: make(language=language), sources
    )
