"""Every pair of methods on the same rows: what the tests found, in a figure, in tables and in one sentence each."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.comparison import Pair
from tarazu.report.analysis.metrics import signed_format, unsigned
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, number, spaced, translate
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.method_names import all_methods, method_name, metric_name


def forest_plot_figure(context: Context) -> Figure | None:
    """Each method's difference from the untouched model, with its interval."""
    base, key = context.study.base, context.metrics.primary.key
    rows = []
    for method in context.study.methods if base else []:
        pair = context.comparison.pair(key, base.name, method.name)
        if pair is not None:
            sign = 1 if pair.a == method.name else -1
            low, high = sorted((sign * pair.difference.low, sign * pair.difference.high))
            rows.append(
                {
                    "name": method.name,
                    "mean": sign * pair.difference.mean,
                    "low": low,
                    "high": high,
                    "significant": pair.significant,
                }
            )
    if not rows:
        return None
    make = partial(charts.forest_plot, rows, translate("axis.difference"))
    sources = [method.first.file("metrics.json") for method in [base, *context.study.methods]]
    return context.figures.add(
        "difference-from-base",
        translate("compare.forest"),
        lambda language: make(language=language),
        sources,
    )


def pair_table(context: Context, key: str) -> Table:
    """Every pair on one figure: difference, interval, corrected p, effect size, and what that says."""
    rows = []
    for pair in context.comparison.pairs[key]:
        format = signed_format(pair.metric)
        found = pair.difference
        span = translate(
            "compare.interval", low=number(found.low, format), high=number(found.high, format)
        )
        says = (
            translate("pairwise.winner", method=_name(context, pair.winner))
            if pair.winner
            else translate(
                "pairwise.none", detectable=number(found.min_detectable, unsigned(format))
            )
        )
        rows.append(
            [
                Cell(
                    spaced(
                        _name(context, pair.a),
                        translate("pairwise.against"),
                        _name(context, pair.b),
                    ),
                    f"{pair.a} {pair.b}",
                ),
                number_cell(found.mean, format),
                Cell(span, found.low),
                Cell(format_p(pair), pair.p),
                number_cell(found.effect, "two"),
                text_cell(says),
            ]
        )
    columns = [
        translate("pairwise.pair"),
        translate("pairwise.difference"),
        translate("pairwise.interval"),
        translate("pairwise.p"),
        translate("pairwise.effect"),
        translate("pairwise.says"),
    ]
    first = context.comparison.pairs[key][0].difference
    caption = translate(
        "pairwise.caption",
        figure=metric_name(key),
        rows=number(first.rows, "count"),
        seeds=number(max(pair.difference.seeds for pair in context.comparison.pairs[key]), "count"),
    )
    source = context.metrics.by_key[key].rows
    file = source.file if source else "metrics.json"
    return Table(
        caption,
        columns,
        rows,
        [run.file(file) for method in all_methods(context.study) for run in method.measured],
        sortable=True,
    )


def format_p(pair: Pair) -> Bilingual:
    """The corrected p: at most so much, where more resamples could make it smaller."""
    return (
        translate("pairwise.at_most", p=number(pair.p, "p"))
        if pair.difference.floor and pair.p >= 0.001
        else number(pair.p, "p")
    )


def _name(context: Context, name: str) -> Bilingual:
    method = next((a for a in all_methods(context.study) if a.name == name), None)
    return method_name(method) if method else Bilingual(code(name), code(name))


def pair_findings(context: Context) -> list[Bilingual]:
    """How many pairs differ on each figure, in one sentence each."""
    found = []
    for key, pairs in context.comparison.pairs.items():
        if pairs:
            sure = sum(p.significant for p in pairs)
            found.append(
                translate(
                    "pairwise.summary",
                    figure=metric_name(key),
                    pairs=number(len(pairs), "count"),
                    sure=number(sure, "count"),
                    none=number(len(pairs) - sure, "count"),
                )
            )
    return found
