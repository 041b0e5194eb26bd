"""The recommendation: rule, choice under each preference, pros and cons, sensitivity."""

from __future__ import annotations

from tarazu.report.analysis.metrics import Metric
from tarazu.report.analysis.recommendation import KEEP, PREFERENCES, TIE_BREAKER, Choice
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.explanations import explain
from tarazu.report.render.tables import Cell, Table, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import first_files, translate_all
from tarazu.report.sections.common.method_names import joined_code, metric_name
from tarazu.report.sections.common.pros_and_cons import pros_and_cons


def recommendation_section(context: Context) -> Section:
    """The section that recommends a method."""
    verdict, preference = context.verdict, context.study.prefer
    methods = []
    for method in context.study.methods:
        sentences = pros_and_cons(context, method)
        name = {"name": code(method.name), "anchor": f"method-{method.name}"}
        methods.append({**name, "pros": sentences.pros, "cons": sentences.cons})
    view = {
        "none": verdict.best is None,
        "rule": _rule(context, preference),
        "reason": choice_sentences(context, verdict.choices[preference]),
        "choices": choices_table(context),
        "fronts": pareto_sentences(context),
        "methods": methods,
        "sensitivity": sensitivity(context),
        "files": recommendation_files(context),
    }
    title = translate("section.recommendation")
    return Section("recommendation", title, "recommendation.html", view, explain("pareto"))


def _rule(context: Context, preference: str) -> Bilingual:
    """The rule of one preference."""
    quality = metric_name(context.verdict.metric.key)
    return translate(f"rule.{preference}", keep=number(KEEP, "percent"), quality=quality)


def recommendation_files(context: Context) -> list[str]:
    """The files that the sentences come from: metrics and costs of every method's first run."""
    study = context.study
    base_files = first_files([study.base], "metrics.json") if study.base else []
    return base_files + first_files(study.methods, "metrics.json", "ledger.json")


def choice_sentences(context: Context, choice: Choice) -> list[Bilingual]:
    """What one preference picks, why, and how certain that is."""
    verdict, metric = context.verdict, context.verdict.metric
    if choice.name is None:
        return [translate("recommendation.none")]
    candidate = verdict.candidate(choice.name)
    source = context.study.method(choice.name).first.file("metrics.json")
    suffix = "" if context.study.base else "_constant"
    sentences = [
        translate(
            "recommendation.pick",
            method=code(choice.name),
            metric=metric_name(metric.key),
            value=number(candidate.quality, metric.format, source),
        )
    ]
    if candidate.gain is not None:
        key = "recommendation.gain" if candidate.gain > 0 else "recommendation.no_gain"
        gain = number(abs(candidate.gain), metric.format)
        base = number(verdict.baseline, metric.format)
        sentences.append(translate(f"{key}{suffix}", gain=gain, base=base))
    if choice.by:
        sentences.append(_cost_sentence(context, choice))
    if choice.ties:
        names = {"best": code(verdict.best.name), "others": joined_code(choice.ties)}
        sentences.append(translate("recommendation.ties", **names))
    # Without any gain, a sentence above says so already.
    if choice.name in verdict.not_better and (candidate.gain is None or candidate.gain > 0):
        sentences.append(translate(f"recommendation.not_better{suffix}"))
    return sentences


def _cost_sentence(context: Context, choice: Choice) -> Bilingual:
    """The cost that decided; or the size of the weights, where the seeds leave the cost open."""
    metrics = context.metrics.by_key
    cost, size = metrics[choice.by], metrics[TIE_BREAKER]

    def shown(name: str, metric: Metric) -> Bilingual:
        value = context.verdict.candidate(name).costs[metric.key]
        return number(value, metric.format, context.study.method(name).first.file("ledger.json"))

    values = {
        "cost": metric_name(cost.key),
        "value": shown(choice.name, cost),
        "n": number(len(choice.allowed), "count"),
    }
    if choice.runner_up is None:
        return translate("recommendation.by_cost", **values)
    return translate(
        "recommendation.by_size",
        method=code(choice.name),
        size=shown(choice.name, size),
        other=code(choice.runner_up),
        min=shown(choice.runner_up, cost),
        other_size=shown(choice.runner_up, size),
        **values,
    )


def choices_table(context: Context) -> Table:
    """What each preference picks; the preference of the recipe is marked."""
    rows = []
    for preference in PREFERENCES:
        choice = context.verdict.choices[preference]
        picked = code(choice.name) if choice.name else translate("recommendation.none")
        rows.append(
            [
                text_cell(translate(f"preference.{preference}")),
                Cell(picked, choice.name, best=preference == context.study.prefer),
                Cell(joined_code(choice.allowed)),
                text_cell(_rule(context, preference)),
            ]
        )
    columns = translate_all(
        "recommendation.preference",
        "recommendation.picked",
        "recommendation.among",
        "recommendation.rule",
    )
    return Table(translate("recommendation.table"), columns, rows)


def pareto_sentences(context: Context) -> list[Bilingual]:
    """The methods on each Pareto front."""
    fronts = context.verdict.fronts
    return [
        translate("pareto.names", cost=metric_name(cost.key), names=joined_code(fronts[cost.key]))
        for cost in context.metrics.pareto_costs
        if fronts[cost.key]
    ]


def sensitivity(context: Context) -> list[Bilingual]:
    """What another preference, more test rows or more seeds could change."""
    verdict, sentences = context.verdict, []
    chosen = verdict.choices[context.study.prefer].name
    for preference in PREFERENCES:
        other = verdict.choices[preference].name
        if other and chosen and other != chosen:
            names = {"preference": translate(f"preference.{preference}"), "method": code(other)}
            sentences.append(translate("sensitivity.prefer", **names))
    for tied in verdict.choices["quality"].ties:
        pair = context.comparison.pair(verdict.metric.key, verdict.best.name, tied)
        if pair:
            detectable = number(pair.difference.min_detectable, verdict.metric.format)
            rows = number(pair.difference.rows, "count")
            names = {"a": code(verdict.best.name), "b": code(tied)}
            sentences.append(
                translate("sensitivity.tie", detectable=detectable, rows=rows, **names)
            )
    if {len(method.measured) for method in context.study.methods} == {1}:
        sentences.append(translate("sensitivity.seeds"))
    return sentences or [translate("sensitivity.nothing")]
