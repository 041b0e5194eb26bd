"""Pros and cons of a method, as sentences that follow from the numbers."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.metrics import COSTS, Metric, mean_over_seeds
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render.bilingual import code, number, translate
from tarazu.report.sections.common.base import Context, ProsAndCons
from tarazu.report.sections.common.method_names import metric_name


def pros_and_cons(context: Context, method: MethodView) -> ProsAndCons:
    """Sentences on quality, costs, the task's side effects, and runs that did not finish."""
    sentences = ProsAndCons()
    _add_rank(context, method, sentences)
    _add_gain(context, method, sentences)
    for cost in COSTS:
        _add_cost(context, method, cost, sentences)
    side_effects = context.task.side_effects(context, method)
    sentences.pros.extend(side_effects.pros)
    sentences.cons.extend(side_effects.cons)
    unfinished = sum(run.status != "done" for run in method.runs)
    if unfinished:
        sentences.cons.append(translate("con.unfinished_run", n=number(unfinished, "count")))
    return sentences


def _add_rank(context: Context, method: MethodView, sentences: ProsAndCons) -> None:
    """Best quality, tied with the best, or behind it."""
    verdict = context.verdict
    candidate, best, metric = verdict.candidate(method.name), verdict.best, verdict.metric
    if candidate is None or best is None:
        sentences.cons.append(translate("con.no_quality"))
        return
    quality = partial(number, format=metric.format, source=method.first.file("metrics.json"))
    names = {"metric": metric_name(metric.key), "value": quality(candidate.quality)}
    if candidate is best:
        if len(verdict.candidates) > 1:
            sentences.pros.append(translate("pro.best", **names))
    elif context.comparison.is_significant(metric.key, candidate.name, best.name) is False:
        sentences.pros.append(translate("pro.tied", best=code(best.name), **names))
    else:
        top = {"best": code(best.name), "top": quality(best.quality)}
        sentences.cons.append(translate("con.behind", **top, **names))


def _add_gain(context: Context, method: MethodView, sentences: ProsAndCons) -> None:
    """Whether the method is better than the base model, or the baseline without one."""
    verdict, metric = context.verdict, context.verdict.metric
    candidate, baseline = verdict.candidate(method.name), verdict.baseline
    suffix = "" if context.study.base else "_constant"
    if candidate is None:
        return
    if method.name in verdict.not_better:
        names = {"metric": metric_name(metric.key)}
        sentences.cons.append(translate(f"con.not_better{suffix}", **names))
    elif candidate.gain is not None and candidate.gain > 0 and baseline:
        quality = partial(number, format=metric.format, source=method.first.file("metrics.json"))
        values = {
            "metric": metric_name(metric.key),
            "fraction": number(candidate.gain / abs(baseline), "percent"),
            "before": quality(baseline),
            "after": quality(candidate.quality),
        }
        sentences.pros.append(translate(f"pro.gain{suffix}", **values))


def _add_cost(context: Context, method: MethodView, cost: Metric, sentences: ProsAndCons) -> None:
    """The lowest or the highest cost of all methods."""
    costs = {
        m.name: v for m in context.study.methods if (v := mean_over_seeds(m, cost)) is not None
    }
    if method.name not in costs or len(set(costs.values())) < 2:
        return
    shown = partial(number, format=cost.format, source=method.first.file("ledger.json"))
    own, lowest, highest = costs[method.name], min(costs.values()), max(costs.values())
    names = {"cost": metric_name(cost.key), "value": shown(own)}
    if own == lowest:
        sentences.pros.append(translate("pro.lowest_cost", max=shown(highest), **names))
    elif own == highest:
        times = number(own / lowest, "two" if own < 10 * lowest else "count") if lowest else None
        sentences.cons.append(translate("con.highest_cost", times=times or number(None), **names))
