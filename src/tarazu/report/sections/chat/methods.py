"""Section 5 for chat: each method's idea, settings, proof, curves, troubles, and answers beside the base's."""

from __future__ import annotations

from tarazu.report.analysis.metrics import (
    Metric,
    mean_over_seeds,
    signed_format,
    unsigned,
)
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    joined,
    number,
    spaced,
    translate,
    translate_or,
)
from tarazu.report.render.explanations import explain, explain_kind
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.chat.answers import changes
from tarazu.report.sections.chat.metrics import METRICS
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.curves import curve_sentences, loss_figure
from tarazu.report.sections.common.hyperparameter_search import search_view
from tarazu.report.sections.common.pairwise_tests import format_p
from tarazu.report.sections.common.proof_of_change import (
    proof_view,
    settings_table,
    targets_table,
    training_issues,
)

FAMILIES = {
    "soft": (("prompt_tuning", "prefix_tuning", "p_tuning"), ("soft-prompts",)),
    "low_rank": (("lora", "rslora", "dora", "loha"), ("which-layers-for-lora",)),
    "layers": (("layers",), ()),
    "other": ((), ()),
}


def family_of(kind: str) -> str:
    return next((name for name, (kinds, _) in FAMILIES.items() if kind in kinds), "other")


def methods_section(context: Context) -> Section:
    told: set[str] = set()
    families = []
    for name, (_, pages) in FAMILIES.items():
        methods = [method for method in context.study.methods if family_of(method.kind) == name]
        if methods:
            view = {
                "name": name,
                "title": translate(f"family.{name}"),
                "explanations": explain(*pages),
                "choice": family_choice(context, methods),
                "methods": [_method_view(context, method, told) for method in methods],
            }
            families.append(view)
    view = {"families": families, "missing": not families}
    return Section(
        "methods",
        translate("section.methods"),
        "chat/methods.html",
        view,
        explain("fingerprints", "curves"),
    )


def family_choice(context: Context, methods: list[MethodView]) -> Bilingual | None:
    """Which of a family's methods these numbers speak for, and whether the next one is told apart from it."""
    verdict, names = context.verdict, {method.name for method in methods}
    ranked = [one for one in verdict.candidates if one.name in names]  # best first
    if len(ranked) < 2:
        return None
    shown = [
        spaced(
            code(one.name),
            number(
                one.quality,
                verdict.metric.format,
                context.study.method(one.name).first.file("metrics.json"),
            ),
        )
        for one in ranked
    ]
    tied = [
        one.name
        for one in ranked[1:]
        if context.comparison.is_significant(verdict.metric.key, ranked[0].name, one.name) is False
    ]
    told = (
        translate("family.tied", methods=joined([code(name) for name in tied]))
        if tied
        else translate("family.significant")
    )
    return spaced(
        translate(
            "family.choice",
            figure=translate(f"metric.{verdict.metric.key}"),
            best=shown[0],
            others=joined(shown[1:]),
        ),
        told,
    )


def _method_view(context: Context, method: MethodView, told: set[str]) -> dict:
    first = method.kind not in told
    told.add(method.kind)
    return {
        "name": code(method.name),
        "anchor": f"method-{method.name}",
        "kind": translate_or(f"kind.{method.kind}", method.kind),
        "explanations": explain_kind(method.kind) if first else [],
        "settings": settings_table(method),
        "targets": targets_table(method),
        "search": search_view(context, method),
        "untrained": method.untrained,
        "proofs": [
            (run.seed, view) for run in method.runs if (view := proof_view(run, method.runs[0]))
        ],
        "figure": loss_figure(context, method),
        "analysis": curve_sentences(context, method),
        "issues": training_issues(method),
        "versus_base": versus_base(context, method),
        "figures": _against_base(context, method),
        "changes": changes(context, method),
    }


def versus_base(context: Context, method: MethodView) -> list[Bilingual]:
    """What the tests say of this method against the untouched model, figure by figure."""
    base, found = context.study.base, []
    if base is None:
        return []
    for key in METRICS.tested:
        pair = context.comparison.pair(key, base.name, method.name)
        if pair is None:
            continue
        sign = 1 if pair.a == method.name else -1
        ends = sorted((sign * pair.difference.low, sign * pair.difference.high))
        format = signed_format(pair.metric)
        values = {
            "figure": translate(f"metric.{key}"),
            "mean": number(sign * pair.difference.mean, format),
            "low": number(ends[0], format),
            "high": number(ends[1], format),
            "p": format_p(pair),
        }
        outcome = (
            "none" if not pair.significant else "better" if pair.winner == method.name else "worse"
        )
        found.append(
            translate(
                f"versus_base.{outcome}",
                **values,
                detectable=number(pair.difference.min_detectable, unsigned(format)),
            )
        )
    return found


def _against_base(context: Context, method: MethodView) -> Table:
    """Every quality figure before and after, with the gain."""
    base, rows = context.study.base, []
    for metric in METRICS.quality:
        after = mean_over_seeds(method, metric)
        before = mean_over_seeds(base, metric) if base else None
        if after is None:
            continue
        change = None if before is None else after - before
        format = "percentage_points" if metric.format == "percent" else signed_format(metric)
        source = method.first.file("metrics.json")
        rows.append(
            [
                text_cell(translate(f"metric.{metric.key}")),
                number_cell(before, metric.format, base.first.file("metrics.json") if base else ""),
                number_cell(after, metric.format, source),
                number_cell(change, format, source),
                _direction(
                    metric,
                    change,
                    context.comparison.is_significant(metric.key, base.name, method.name)
                    if base
                    else None,
                ),
            ]
        )
    columns = [
        translate("common.what"),
        translate("method.before"),
        translate("method.after"),
        translate("method.change"),
        translate("method.outcome"),
    ]
    return Table(
        translate("method.figures"),
        columns,
        rows,
        [run.file("metrics.json") for run in method.measured],
    )


def _direction(metric: Metric, change: float | None, sure: bool | None) -> Cell:
    """Better or worse where the test is `sure`; that this may be chance where it is not; by the means where there is no test."""
    if change is None or abs(change) < 1e-9:
        return text_cell(translate("method.same"))
    if sure is False:
        return text_cell(translate("method.unsure"))
    way = "method.better" if (change < 0) == (metric.better == "low") else "method.worse"
    return text_cell(
        translate(way) if sure else spaced(translate(way), translate("method.untested"))
    )
