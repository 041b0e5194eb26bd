"""The methods section of the chat task: training of each method, and its gain over the base."""

from __future__ import annotations

from tarazu.report.analysis.metrics import Metric, mean_over_seeds, signed_format, unsigned
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render.bilingual import Bilingual, code, joined, number, spaced, translate
from tarazu.report.render.explanations import explain
from tarazu.report.render.tables import Table, number_cell, text_cell
from tarazu.report.sections.chat.answers import answer_changes
from tarazu.report.sections.chat.assignment import LAYERS, LOW_RANK, SOFT
from tarazu.report.sections.chat.metrics import METRICS
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import files_of, translate_all
from tarazu.report.sections.common.method_names import joined_code, metric_name
from tarazu.report.sections.common.method_view import method_view
from tarazu.report.sections.common.pairwise_tests import difference_of, format_p

# The kinds of each family of methods, and the explanations that stand at its head.
FAMILIES = {
    "soft": (SOFT, ("soft-prompts",)),
    "low_rank": (LOW_RANK, ("which-layers-for-lora",)),
    "layers": (LAYERS, ()),
    "other": ((), ()),
}


def family_of(kind: str) -> str:
    """The family that a kind of method belongs to."""
    return next((name for name, (kinds, _) in FAMILIES.items() if kind in kinds), "other")


def methods_section(context: Context) -> Section:
    """The section on all methods, family by family."""
    families = []
    for name, (_, pages) in FAMILIES.items():
        methods = [method for method in context.study.methods if family_of(method.kind) == name]
        if methods:
            family = {
                "name": name,
                "title": translate(f"family.{name}"),
                "explanations": explain(*pages),
                "choice": family_choice(context, methods),
                "methods": [_chat_method_view(context, method) for method in methods],
            }
            families.append(family)
    view = {"families": families, "missing": not families}
    explanations = explain("fingerprints", "curves")
    title = translate("section.methods")
    return Section("methods", title, "chat/methods.html", view, explanations)


def _chat_method_view(context: Context, method: MethodView) -> dict:
    """What every method has, and what changed against the base model."""
    return {
        **method_view(context, method),
        "versus_base": versus_base(context, method),
        "metrics": _before_and_after_table(context, method),
        "changes": answer_changes(context, method),
    }


def family_choice(context: Context, methods: list[MethodView]) -> Bilingual | None:
    """The best method of a family, and the ones that the tests cannot tell from it."""
    verdict, names = context.verdict, {method.name for method in methods}
    ranked = [candidate for candidate in verdict.candidates if candidate.name in names]
    if len(ranked) < 2:
        return None
    key, format = verdict.metric.key, verdict.metric.format
    shown = []
    for candidate in ranked:
        source = context.study.method(candidate.name).first.file("metrics.json")
        shown.append(spaced(code(candidate.name), number(candidate.quality, format, source)))
    best = ranked[0].name
    tied = [
        candidate.name
        for candidate in ranked[1:]
        if context.comparison.is_significant(key, best, candidate.name) is False
    ]
    values = {"metric": metric_name(key), "best": shown[0], "others": joined(shown[1:])}
    if tied:
        outcome = translate("family.tied", methods=joined_code(tied))
    else:
        outcome = translate("family.significant")
    return spaced(translate("family.choice", **values), outcome)


def versus_base(context: Context, method: MethodView) -> list[Bilingual]:
    """The tests of a method against the base model, one sentence for each tested metric."""
    base, sentences = context.study.base, []
    for key in METRICS.tested if base else ():
        pair = context.comparison.pair(key, base.name, method.name)
        if pair is None:
            continue
        mean, low, high = difference_of(pair, method.name)
        format = signed_format(pair.metric)
        outcome = "none"
        if pair.significant:
            outcome = "better" if pair.winner == method.name else "worse"
        sentence = translate(
            f"versus_base.{outcome}",
            metric=metric_name(key),
            mean=number(mean, format),
            low=number(low, format),
            high=number(high, format),
            p=format_p(pair),
            detectable=number(pair.difference.min_detectable, unsigned(format)),
        )
        sentences.append(sentence)
    return sentences


def _before_and_after_table(context: Context, method: MethodView) -> Table:
    """Every quality metric of the base model and of the method, the change, and its direction."""
    base, rows = context.study.base, []
    source = method.first.file("metrics.json")
    base_source = base.first.file("metrics.json") if base else ""
    for metric in METRICS.quality:
        after = mean_over_seeds(method, metric)
        if after is None:
            continue
        before = mean_over_seeds(base, metric) if base else None
        change = None if before is None else after - before
        format = "percentage_points" if metric.format == "percent" else signed_format(metric)
        rows.append(
            [
                text_cell(metric_name(metric.key)),
                number_cell(before, metric.format, base_source),
                number_cell(after, metric.format, source),
                number_cell(change, format, source),
                text_cell(_outcome(context, method, metric, change)),
            ]
        )
    columns = translate_all(
        "common.what", "method.before", "method.after", "method.change", "method.outcome"
    )
    files = files_of([method], "metrics.json")
    return Table(translate("method.metrics"), columns, rows, files)


def _outcome(
    context: Context, method: MethodView, metric: Metric, change: float | None
) -> Bilingual:
    """Better or worse where the test is significant; by the means where there was no test."""
    if change is None or abs(change) < 1e-9:
        return translate("method.same")
    base = context.study.base
    significant = context.comparison.is_significant(metric.key, base.name, method.name)
    if significant is False:
        return translate("method.no_difference")
    better = (change < 0) == (metric.better == "low")
    outcome = translate("method.better" if better else "method.worse")
    return outcome if significant else spaced(outcome, translate("method.untested"))
