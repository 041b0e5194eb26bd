"""Tests of every pair of methods on the same rows: a figure, tables and sentences."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.comparison import Pair
from tarazu.report.analysis.metrics import signed_format, unsigned
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, number, spaced, translate
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.cells import (
    files_of,
    first_files,
    interval_text,
    translate_all,
)
from tarazu.report.sections.common.method_names import (
    all_methods,
    code_text,
    method_name,
    metric_name,
)


def difference_of(pair: Pair, name: str) -> tuple[float, float, float]:
    """(mean, low, high) of method `name` minus the other method of the pair."""
    sign = 1 if pair.a == name else -1
    low, high = sorted((sign * pair.difference.low, sign * pair.difference.high))
    return sign * pair.difference.mean, low, high


def forest_rows(pairs: list[tuple[str, Pair]]) -> list[dict]:
    """Rows of a forest plot: for each (method, pair), the difference from the other method."""
    rows = []
    for name, pair in pairs:
        mean, low, high = difference_of(pair, name)
        interval = {"mean": mean, "low": low, "high": high}
        rows.append({"name": name, **interval, "significant": pair.significant})
    return rows


def forest_plot_figure(context: Context) -> Figure | None:
    """Each method's difference from the base model in the primary metric, with its interval."""
    base, key = context.study.base, context.metrics.primary.key
    if base is None:
        return None
    pairs = [
        (m.name, context.comparison.pair(key, base.name, m.name)) for m in context.study.methods
    ]
    rows = forest_rows([(name, pair) for name, pair in pairs if pair is not None])
    if not rows:
        return None
    make = partial(charts.forest_plot, rows, translate("axis.difference"))
    files = first_files([base, *context.study.methods], "metrics.json")
    return context.figures.add("difference-from-base", translate("compare.forest"), make, files)


def pair_table(context: Context, key: str) -> Table:
    """Every pair on one metric: difference, interval, corrected p, effect size, conclusion."""
    pairs, methods = context.comparison.pairs[key], all_methods(context.study)
    names = {method.name: method_name(method) for method in methods}
    rows = [_pair_row(pair, names) for pair in pairs]
    caption = translate(
        "pairwise.caption",
        metric=metric_name(key),
        rows=number(pairs[0].difference.rows, "count"),
        seeds=number(max(pair.difference.seeds for pair in pairs), "count"),
    )
    columns = translate_all(
        "pairwise.pair",
        "pairwise.difference",
        "pairwise.interval",
        "pairwise.p",
        "pairwise.effect",
        "pairwise.conclusion",
    )
    source = context.metrics.by_key[key].rows
    files = files_of(methods, source.file if source else "metrics.json")
    return Table(caption, columns, rows, files, sortable=True)


def _pair_row(pair: Pair, names: dict[str, Bilingual]) -> list[Cell]:
    """The row of one pair."""
    result, format = pair.difference, signed_format(pair.metric)
    a, b = (names.get(name) or code_text(name) for name in (pair.a, pair.b))
    if pair.winner:
        winner = names.get(pair.winner) or code_text(pair.winner)
        conclusion = translate("pairwise.winner", method=winner)
    else:
        detectable = number(result.min_detectable, unsigned(format))
        conclusion = translate("pairwise.none", detectable=detectable)
    return [
        Cell(spaced(a, translate("pairwise.against"), b), f"{pair.a} {pair.b}"),
        number_cell(result.mean, format),
        Cell(interval_text(result.low, result.high, format), result.low),
        Cell(format_p(pair), pair.p),
        number_cell(result.effect, "two"),
        text_cell(conclusion),
    ]


def format_p(pair: Pair) -> Bilingual:
    """The corrected p value; with "≤" where more resamples could make it smaller."""
    p = number(pair.p, "p")
    return translate("pairwise.at_most", p=p) if pair.difference.floor and pair.p >= 0.001 else p


def pair_findings(context: Context) -> list[Bilingual]:
    """For each metric, how many pairs differ significantly."""
    sentences = []
    for key, pairs in context.comparison.pairs.items():
        if pairs:
            significant = sum(pair.significant for pair in pairs)
            counts = {
                "pairs": number(len(pairs), "count"),
                "significant": number(significant, "count"),
                "none": number(len(pairs) - significant, "count"),
            }
            sentences.append(translate("pairwise.summary", metric=metric_name(key), **counts))
    return sentences
