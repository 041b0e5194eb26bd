"""Section 7: the rule, what it picks under each preference, and pros and cons as sentences with their numbers."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.metrics import COSTS, Metric, mean_over_seeds
from tarazu.report.analysis.recommendation import KEEP, TIE_BREAKER, Choice
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.render.explanations import explain
from tarazu.report.render.tables import Cell, Table, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.method_names import metric_name

ORDER = ("quality", "memory", "speed", "size")


def recommendation_section(context: Context) -> Section:
    verdict, prefer = context.verdict, context.study.prefer
    view = {
        "none": verdict.best is None,
        "rule": translate(
            f"rule.{prefer}",
            keep=number(KEEP, "percent"),
            quality=metric_name(verdict.metric.key),
        ),
        "reason": choice_sentences(context, verdict.choices[prefer]),
        "choices": choices_table(context),
        "fronts": pareto_sentences(context),
        "methods": [
            {
                "name": code(method.name),
                "anchor": f"method-{method.name}",
                **dict(zip(("pros", "cons"), pros_and_cons(context, method), strict=True)),
            }
            for method in context.study.methods
        ],
        "changes": sensitivity(context),
        "files": files_of(context),
    }
    return Section(
        "recommendation",
        translate("section.recommendation"),
        "recommendation.html",
        view,
        explain("pareto"),
    )


def files_of(context: Context) -> list[str]:
    """What the sentences were read from: figures and costs of every method's first run."""
    methods = ([context.study.base] if context.study.base else []) + context.study.methods
    return [
        method.first.file(name)
        for method in methods
        for name in (
            ("metrics.json",) if method is context.study.base else ("metrics.json", "ledger.json")
        )
    ]


def choice_sentences(context: Context, choice: Choice) -> list[Bilingual]:
    """What one preference picks, why, and how sure that is."""
    verdict = context.verdict
    if choice.name is None:
        return [translate("recommendation.none")]
    one, metric = verdict.candidate(choice.name), verdict.metric
    source = context.study.method(choice.name).first.file("metrics.json")
    shown = {
        "method": code(choice.name),
        "figure": metric_name(metric.key),
        "value": number(one.quality, metric.format, source),
    }
    found = [translate("recommendation.pick", **shown)]
    if one.gain is not None:
        key = "recommendation.gain" if one.gain > 0 else "recommendation.no_gain"
        found.append(
            translate(
                f"{key}{'' if context.study.base else '_constant'}",
                gain=number(abs(one.gain), metric.format),
                base=number(verdict.baseline, metric.format),
            )
        )
    if choice.by:
        found.append(_on_choice(context, choice))
    if choice.ties:
        found.append(
            translate(
                "recommendation.ties",
                best=code(verdict.best.name),
                others=joined([code(n) for n in choice.ties]),
            )
        )
    if choice.name in verdict.not_better and (
        one.gain is None or one.gain > 0
    ):  # no gain at all was said above
        found.append(
            translate(f"recommendation.not_better{'' if context.study.base else '_constant'}")
        )
    return found


def _on_choice(context: Context, choice: Choice) -> Bilingual:
    """Which cost decided; where the seeds cannot tell it apart, that the weights did."""
    known = context.metrics.by_key
    cost, size = known[choice.by], known[TIE_BREAKER]

    def shown(name: str, metric: Metric) -> Bilingual:
        return number(
            context.verdict.candidate(name).costs[metric.key],
            metric.format,
            context.study.method(name).first.file("ledger.json"),
        )

    values = {
        "cost": metric_name(cost.key),
        "value": shown(choice.name, cost),
        "n": number(len(choice.allowed), "count"),
    }
    if choice.runner_up is None:
        return translate("recommendation.by_cost", **values)
    other = {
        "other": code(choice.runner_up),
        "least": shown(choice.runner_up, cost),
        "size": shown(choice.name, size),
        "more": shown(choice.runner_up, size),
    }
    return translate("recommendation.by_size", method=code(choice.name), **values, **other)


def choices_table(context: Context) -> Table:
    """All four preferences at once: the verdict does not hide what another wish would pick."""
    rows = []
    for name in ORDER:
        choice = context.verdict.choices[name]
        mark = name == context.study.prefer
        picked = Cell(
            code(choice.name) if choice.name else translate("recommendation.none"),
            choice.name,
            best=mark,
        )
        rows.append(
            [
                text_cell(translate(f"preference.{name}")),
                picked,
                Cell(joined([code(n) for n in choice.allowed])),
                text_cell(
                    translate(
                        f"rule.{name}",
                        keep=number(KEEP, "percent"),
                        quality=metric_name(context.verdict.metric.key),
                    )
                ),
            ]
        )
    return Table(
        translate("recommendation.table"),
        [
            translate("recommendation.preference"),
            translate("recommendation.picked"),
            translate("recommendation.among"),
            translate("recommendation.rule"),
        ],
        rows,
    )


def pareto_sentences(context: Context) -> list[Bilingual]:
    """Who stands on each Pareto front."""
    found = []
    for cost in context.metrics.pareto_costs:
        names = context.verdict.fronts[cost.key]
        if names:
            found.append(
                translate(
                    "pareto.names",
                    cost=metric_name(cost.key),
                    names=joined([code(n) for n in names]),
                )
            )
    return found


def pros_and_cons(context: Context, method: MethodView) -> tuple[list[Bilingual], list[Bilingual]]:
    """Sentences from the numbers: best and worst in each cost, the gain, rates that rose or fell, failures."""
    pros: list[Bilingual] = []
    cons: list[Bilingual] = []
    _on_quality(context, method, pros, cons)
    for cost in COSTS:
        _on_cost(context, method, cost, pros, cons)
    side_effects = context.task.side_effects(context, method)
    pros += side_effects.pros
    cons += side_effects.cons
    if any(run.status != "done" for run in method.runs):
        cons.append(
            translate(
                "con.unfinished_run",
                n=number(sum(run.status != "done" for run in method.runs), "count"),
            )
        )
    return pros, cons


def _on_quality(context: Context, method: MethodView, pros: list, cons: list) -> None:
    verdict = context.verdict
    one, metric = verdict.candidate(method.name), verdict.metric
    if one is None:
        cons.append(translate("con.no_quality"))
        return
    shape = partial(number, format=metric.format, source=method.first.file("metrics.json"))
    figure = metric_name(metric.key)
    if verdict.best and one.name == verdict.best.name and len(verdict.candidates) > 1:
        pros.append(translate("pro.best", figure=figure, value=shape(one.quality)))
    elif (
        verdict.best
        and context.comparison.is_significant(metric.key, one.name, verdict.best.name) is False
    ):
        pros.append(
            translate(
                "pro.tied", figure=figure, value=shape(one.quality), best=code(verdict.best.name)
            )
        )
    elif verdict.best and one.name != verdict.best.name:
        cons.append(
            translate(
                "con.behind",
                figure=figure,
                value=shape(one.quality),
                best=code(verdict.best.name),
                top=shape(verdict.best.quality),
            )
        )
    if method.name in verdict.not_better:
        cons.append(
            translate(f"con.not_better{'' if context.study.base else '_constant'}", figure=figure)
        )
    elif one.gain is not None and one.gain > 0 and verdict.baseline:
        pros.append(
            translate(
                "pro.gain" if context.study.base else "pro.gain_constant",
                figure=figure,
                share=number(one.gain / abs(verdict.baseline), "percent"),
                before=shape(verdict.baseline),
                after=shape(one.quality),
            )
        )


def _on_cost(context: Context, method: MethodView, cost: Metric, pros: list, cons: list) -> None:
    values = {
        a.name: v for a in context.study.methods if (v := mean_over_seeds(a, cost)) is not None
    }
    if method.name not in values or len(values) < 2 or len(set(values.values())) == 1:
        return
    mine, shape = (
        values[method.name],
        partial(number, format=cost.format, source=method.first.file("ledger.json")),
    )
    least, most = min(values.values()), max(values.values())
    if mine == least:
        pros.append(
            translate(
                "pro.least",
                cost=metric_name(cost.key),
                value=shape(mine),
                most=shape(most),
            )
        )
    elif mine == most:
        times = (
            number(mine / least, "two" if mine < 10 * least else "count") if least else number(None)
        )
        cons.append(
            translate("con.most", cost=metric_name(cost.key), value=shape(mine), times=times)
        )


def sensitivity(context: Context) -> list[Bilingual]:
    """What another wish, or more data, would change."""
    chosen, found = context.verdict.choices[context.study.prefer], []
    for name in ORDER:
        other = context.verdict.choices[name]
        if other.name and chosen.name and other.name != chosen.name:
            found.append(
                translate(
                    "sensitivity.prefer",
                    preference=translate(f"preference.{name}"),
                    method=code(other.name),
                )
            )
    best, key = context.verdict.best, context.verdict.metric.key
    for tie in context.verdict.choices["quality"].ties:
        pair = context.comparison.pair(key, best.name, tie)
        if pair:
            found.append(
                translate(
                    "sensitivity.tie",
                    a=code(best.name),
                    b=code(tie),
                    detectable=number(
                        pair.difference.min_detectable, context.verdict.metric.format
                    ),
                    rows=number(pair.difference.rows, "count"),
                )
            )
    seeds = {len(method.measured) for method in context.study.methods}
    if seeds == {1}:
        found.append(translate("sensitivity.seeds"))
    return found or [translate("sensitivity.nothing")]
