"""Section 7: the rule, what it picks under each preference, and pros and cons as sentences with their numbers."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.metrics import (
    COSTS,
    FORGETTING,
    PARETO_COSTS,
    QUALITY,
    Measure,
    mean_over_seeds,
    measures,
)
from tarazu.report.analysis.recommendation import KEEP, LAST, Choice
from tarazu.report.analysis.study_view import Arm
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.render.explanations import explain
from tarazu.report.render.tables import Cell, Table, text_cell
from tarazu.report.sections.common.base import Context, Section

RATES = ("repetition", "wrong_script", "unfinished", "echo")
ORDER = ("quality", "memory", "speed", "size")


def recommendation_section(context: Context) -> Section:
    verdict, prefer = context.verdict, context.study.prefer
    view = {
        "none": verdict.best is None,
        "rule": translate(
            f"rule.{prefer}",
            keep=number(KEEP, "percent"),
            quality=translate(f"measure.{verdict.measure.key}"),
        ),
        "reason": choice_sentences(context, verdict.choices[prefer]),
        "choices": choices_table(context),
        "fronts": front_sentences(context),
        "methods": [
            {
                "name": code(arm.name),
                "anchor": f"method-{arm.name}",
                **dict(zip(("pros", "cons"), pros_and_cons(context, arm), strict=True)),
            }
            for arm in context.study.arms
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
    arms = ([context.study.base] if context.study.base else []) + context.study.arms
    return [
        arm.first.file(name)
        for arm in arms
        for name in (
            ("metrics.json",) if arm is context.study.base else ("metrics.json", "ledger.json")
        )
    ]


def choice_sentences(context: Context, choice: Choice) -> list[Bilingual]:
    """What one preference picks, why, and how sure that is."""
    verdict = context.verdict
    if choice.name is None:
        return [translate("choice.none")]
    one, measure = verdict.contender(choice.name), verdict.measure
    source = context.study.arm(choice.name).first.file("metrics.json")
    shown = {
        "method": code(choice.name),
        "figure": translate(f"measure.{measure.key}"),
        "value": number(one.quality, measure.form, source),
    }
    found = [translate("choice.pick", **shown)]
    if one.gain is not None:
        key = "choice.gain" if one.gain > 0 else "choice.no_gain"
        found.append(
            translate(
                f"{key}{'' if context.study.base else '_constant'}",
                gain=number(abs(one.gain), measure.form),
                base=number(verdict.baseline, measure.form),
            )
        )
    if choice.by:
        found.append(_on_choice(context, choice))
    if choice.ties:
        found.append(
            translate(
                "choice.ties",
                best=code(verdict.best.name),
                others=joined([code(n) for n in choice.ties]),
            )
        )
    if choice.name in verdict.not_better and (
        one.gain is None or one.gain > 0
    ):  # no gain at all was said above
        found.append(translate(f"choice.not_better{'' if context.study.base else '_constant'}"))
    return found


def _on_choice(context: Context, choice: Choice) -> Bilingual:
    """Which cost decided; where the seeds cannot tell it apart, that the weights did."""
    known = measures(context.study.task)
    cost, size = known[choice.by], known[LAST]

    def shown(name: str, measure: Measure) -> Bilingual:
        return number(
            context.verdict.contender(name).costs[measure.key],
            measure.form,
            context.study.arm(name).first.file("ledger.json"),
        )

    values = {
        "cost": translate(f"measure.{cost.key}"),
        "value": shown(choice.name, cost),
        "n": number(len(choice.allowed), "count"),
    }
    if choice.close is None:
        return translate("choice.by_cost", **values)
    other = {
        "other": code(choice.close),
        "least": shown(choice.close, cost),
        "size": shown(choice.name, size),
        "more": shown(choice.close, size),
    }
    return translate("choice.by_size", method=code(choice.name), **values, **other)


def choices_table(context: Context) -> Table:
    """All four preferences at once: the verdict does not hide what another wish would pick."""
    rows = []
    for name in ORDER:
        choice = context.verdict.choices[name]
        mark = name == context.study.prefer
        picked = Cell(
            code(choice.name) if choice.name else translate("choice.none"), choice.name, best=mark
        )
        rows.append(
            [
                text_cell(translate(f"prefer.{name}")),
                picked,
                Cell(joined([code(n) for n in choice.allowed])),
                text_cell(
                    translate(
                        f"rule.{name}",
                        keep=number(KEEP, "percent"),
                        quality=translate(f"measure.{context.verdict.measure.key}"),
                    )
                ),
            ]
        )
    return Table(
        translate("choice.table"),
        [
            translate("choice.preference"),
            translate("choice.picked"),
            translate("choice.among"),
            translate("choice.rule"),
        ],
        rows,
    )


def front_sentences(context: Context) -> list[Bilingual]:
    """Who stands on each Pareto front."""
    found = []
    for cost in PARETO_COSTS:
        names = context.verdict.fronts[cost.key]
        if names:
            found.append(
                translate(
                    "front.names",
                    cost=translate(f"measure.{cost.key}"),
                    names=joined([code(n) for n in names]),
                )
            )
    return found


def pros_and_cons(context: Context, arm: Arm) -> tuple[list[Bilingual], list[Bilingual]]:
    """Sentences from the numbers: best and worst in each cost, the gain, rates that rose or fell, failures."""
    pros: list[Bilingual] = []
    cons: list[Bilingual] = []
    _on_quality(context, arm, pros, cons)
    for cost in COSTS:
        _on_cost(context, arm, cost, pros, cons)
    _on_side_effects(context, arm, pros, cons)
    if any(run.status != "done" for run in arm.runs):
        cons.append(
            translate(
                "con.unfinished_run",
                n=number(sum(run.status != "done" for run in arm.runs), "count"),
            )
        )
    return pros, cons


def _on_quality(context: Context, arm: Arm, pros: list, cons: list) -> None:
    verdict = context.verdict
    one, measure = verdict.contender(arm.name), verdict.measure
    if one is None:
        cons.append(translate("con.no_quality"))
        return
    shape = partial(number, form=measure.form, source=arm.first.file("metrics.json"))
    figure = translate(f"measure.{measure.key}")
    if verdict.best and one.name == verdict.best.name and len(verdict.contenders) > 1:
        pros.append(translate("pro.best", figure=figure, value=shape(one.quality)))
    elif (
        verdict.best
        and context.comparison.differ(measure.key, one.name, verdict.best.name) is False
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
    if arm.name in verdict.not_better:
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


def _on_cost(context: Context, arm: Arm, cost: Measure, pros: list, cons: list) -> None:
    values = {a.name: v for a in context.study.arms if (v := mean_over_seeds(a, cost)) is not None}
    if arm.name not in values or len(values) < 2 or len(set(values.values())) == 1:
        return
    mine, shape = (
        values[arm.name],
        partial(number, form=cost.form, source=arm.first.file("ledger.json")),
    )
    least, most = min(values.values()), max(values.values())
    if mine == least:
        pros.append(
            translate(
                "pro.least",
                cost=translate(f"measure.{cost.key}"),
                value=shape(mine),
                most=shape(most),
            )
        )
    elif mine == most:
        times = (
            number(mine / least, "two" if mine < 10 * least else "count") if least else number(None)
        )
        cons.append(
            translate(
                "con.most", cost=translate(f"measure.{cost.key}"), value=shape(mine), times=times
            )
        )


def _on_side_effects(context: Context, arm: Arm, pros: list, cons: list) -> None:
    base = context.study.base
    for measure in QUALITY["chat"]:
        if base is None or measure.key not in RATES:
            continue
        before, after = mean_over_seeds(base, measure), mean_over_seeds(arm, measure)
        if (
            before is None
            or after is None
            or abs(after - before) < 0.05
            or context.comparison.differ(measure.key, base.name, arm.name) is False
        ):
            continue
        values = {
            "rate": translate(f"measure.{measure.key}"),
            **_change(base, before, arm, after, "percent"),
        }
        (pros if after < before else cons).append(
            translate("pro.rate_fell" if after < before else "con.rate_rose", **values)
        )
    _on_forgetting(context, arm, pros, cons)


def _on_forgetting(context: Context, arm: Arm, pros: list, cons: list) -> None:
    """Plain text that became harder or easier to read, where the paired test is sure of it."""
    base, known = context.study.base, measures(context.study.task)
    for key in FORGETTING if base else ():
        before, after = mean_over_seeds(base, known[key]), mean_over_seeds(arm, known[key])
        if (
            before is None
            or after is None
            or not context.comparison.differ(key, base.name, arm.name)
        ):
            continue
        language = translate(f"language.{key.removesuffix('_bits_per_byte')}")
        values = {"language": language, **_change(base, before, arm, after, "loss")}
        (pros if after < before else cons).append(
            translate("pro.reads_better" if after < before else "con.forgets", **values)
        )


def _change(base: Arm, before: float, arm: Arm, after: float, form: str) -> dict[str, Bilingual]:
    """A figure of the untouched model and of a method, each with the file that it came from."""
    return {
        "before": number(before, form, base.first.file("metrics.json")),
        "after": number(after, form, arm.first.file("metrics.json")),
    }


def sensitivity(context: Context) -> list[Bilingual]:
    """What another wish, or more data, would change."""
    chosen, found = context.verdict.choices[context.study.prefer], []
    for name in ORDER:
        other = context.verdict.choices[name]
        if other.name and chosen.name and other.name != chosen.name:
            found.append(
                translate(
                    "change.prefer", preference=translate(f"prefer.{name}"), method=code(other.name)
                )
            )
    best, key = context.verdict.best, context.verdict.measure.key
    for tie in context.verdict.choices["quality"].ties:
        pair = context.comparison.pair(key, best.name, tie)
        if pair:
            found.append(
                translate(
                    "change.tie",
                    a=code(best.name),
                    b=code(tie),
                    detectable=number(pair.found.detectable, context.verdict.measure.form),
                    rows=number(pair.found.rows, "count"),
                )
            )
    seeds = {len(arm.measured) for arm in context.study.arms}
    if seeds == {1}:
        found.append(translate("change.seeds"))
    return found or [translate("change.nothing")]
