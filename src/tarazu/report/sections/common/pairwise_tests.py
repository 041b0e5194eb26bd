"""Every pair of methods on the same rows: what the tests found, in a figure, in tables and in one sentence each."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.comparison import Pair
from tarazu.report.analysis.metrics import FORGETTING, primary, signed_form, unsigned
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, number, spaced, translate
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, figure_cell, text_cell
from tarazu.report.sections.chat.answers import all_arms, arm_name
from tarazu.report.sections.common.base import Context


def forest_figure(context: Context) -> Figure | None:
    """Each method's difference from the untouched model, with its interval."""
    base, key = context.study.base, primary(context.study.task).key
    rows = []
    for arm in context.study.arms if base else []:
        pair = context.comparison.pair(key, base.name, arm.name)
        if pair is not None:
            sign = 1 if pair.a == arm.name else -1
            low, high = sorted((sign * pair.found.low, sign * pair.found.high))
            rows.append(
                {
                    "name": arm.name,
                    "mean": sign * pair.found.mean,
                    "low": low,
                    "high": high,
                    "sure": pair.sure,
                }
            )
    if not rows:
        return None
    make = partial(charts.forest_plot, rows, translate("axis.difference"))
    sources = [arm.first.file("metrics.json") for arm in [base, *context.study.arms]]
    return context.gallery.add(
        "difference-from-base",
        translate("compare.forest"),
        lambda language: make(language=language),
        sources,
    )


def pair_table(context: Context, key: str) -> Table:
    """Every pair on one figure: difference, interval, corrected p, effect size, and what that says."""
    rows = []
    for pair in context.comparison.pairs[key]:
        form = signed_form(pair.measure)
        found = pair.found
        span = translate(
            "compare.interval", low=number(found.low, form), high=number(found.high, form)
        )
        says = (
            translate("pair.winner", method=_name(context, pair.winner))
            if pair.winner
            else translate("pair.none", detectable=number(found.detectable, unsigned(form)))
        )
        rows.append(
            [
                Cell(
                    spaced(
                        _name(context, pair.a), translate("pair.against"), _name(context, pair.b)
                    ),
                    f"{pair.a} {pair.b}",
                ),
                figure_cell(found.mean, form),
                Cell(span, found.low),
                Cell(format_p(pair), pair.p),
                figure_cell(found.effect, "two"),
                text_cell(says),
            ]
        )
    columns = [
        translate("pair.pair"),
        translate("pair.difference"),
        translate("pair.interval"),
        translate("pair.p"),
        translate("pair.effect"),
        translate("pair.says"),
    ]
    first = context.comparison.pairs[key][0].found
    caption = translate(
        "pair.caption",
        figure=translate(f"measure.{key}"),
        rows=number(first.rows, "count"),
        seeds=number(max(pair.found.seeds for pair in context.comparison.pairs[key]), "count"),
    )
    file = "metrics.json" if key in ("loss", *FORGETTING) else "samples.jsonl"
    return Table(
        caption,
        columns,
        rows,
        [run.file(file) for arm in all_arms(context.study) for run in arm.measured],
        sortable=True,
    )


def format_p(pair: Pair) -> Bilingual:
    """The corrected p: at most so much, where more resamples could make it smaller."""
    return (
        translate("pair.at_most", p=number(pair.p, "p"))
        if pair.found.floor and pair.p >= 0.001
        else number(pair.p, "p")
    )


def _name(context: Context, name: str) -> Bilingual:
    arm = next((a for a in all_arms(context.study) if a.name == name), None)
    return arm_name(arm) if arm else Bilingual(code(name), code(name))


def pair_findings(context: Context) -> list[Bilingual]:
    """How many pairs differ on each figure, in one sentence each."""
    found = []
    for key, pairs in context.comparison.pairs.items():
        if pairs:
            sure = sum(p.sure for p in pairs)
            found.append(
                translate(
                    "pair.summary",
                    figure=translate(f"measure.{key}"),
                    pairs=number(len(pairs), "count"),
                    sure=number(sure, "count"),
                    none=number(len(pairs) - sure, "count"),
                )
            )
    return found
