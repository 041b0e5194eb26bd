"""The base model's test before training, with its strengths and weaknesses."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    joined,
    number,
    spaced,
    translate,
    translate_or,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Table, number_cell, text_cell
from tarazu.report.sections.chat.answers import (
    abilities,
    answer_length_limit,
    answer_view,
    omission_note,
    question_view,
    shown_ids,
)
from tarazu.report.sections.chat.metrics import METRICS, RATES
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import facts_table, translate_all

HIGH, LOW = 0.10, 0.02  # a rate above HIGH is a weakness, at or below LOW a strength
MAX_ABILITIES = 3  # named as the strongest and as the weakest


def before_training_section(context: Context) -> Section:
    """The section on the base model."""
    base = context.study.base
    measured = base is not None and bool(base.measured)
    view = _base_view(context, base) if measured else {}
    return Section(
        "before-training",
        translate("section.before_training"),
        "chat/before_training.html",
        {"missing": not measured, **view},
        explain("perplexity-and-bits-per-byte", "chrf-and-rouge"),
    )


def _base_view(context: Context, base: MethodView) -> dict:
    """What the template shows of a base model that was tested."""
    strong, weak = strengths(base)
    limit, shown = answer_length_limit(context), set(shown_ids(context))
    answers = [
        {**question_view(sample, limit), "answers": [answer_view(base, sample, limit)]}
        for key, sample in by_id(base.first).items()
        if key in shown
    ]
    return {
        "abilities": ability_table(base),
        "figure": _ability_figure(context, base),
        "metrics": metrics_table(base),
        "strengths": strong,
        "weaknesses": weak,
        "answers": answers,
        "omission": omission_note(context),
        "file": base.first.file("samples.jsonl"),
    }


def ability_name(name: str) -> Bilingual:
    """The name of an ability in both languages."""
    return translate_or(f"ability.{name}", name)


def ability_table(method: MethodView) -> Table:
    """The fraction of rule checks passed in each ability."""
    source = method.first.file("metrics.json")
    rows = [
        [
            text_cell(ability_name(name)),
            number_cell(questions, "count", source),
            number_cell(fraction, "percent", source),
        ]
        for name, fraction, questions in abilities(method)
    ]
    columns = translate_all(
        "before_training.ability", "before_training.questions", "metric.checks_passed"
    )
    return Table(translate("before_training.abilities"), columns, rows, [source])


def metrics_table(method: MethodView) -> Table:
    """Every quality metric of one method that was measured."""
    source = method.first.file("metrics.json")
    values = [(metric, metric.of(method.first)) for metric in METRICS.quality]
    facts = [
        (f"metric.{metric.key}", number_cell(value, metric.format, source))
        for metric, value in values
        if value is not None
    ]
    return facts_table("before_training.metrics", facts, source)


def _ability_figure(context: Context, base: MethodView) -> Figure | None:
    """The fraction of rule checks passed in each ability, as bars."""
    rows = abilities(base)
    if not rows:
        return None
    labels, fractions = [ability_name(row[0]) for row in rows], [row[1] for row in rows]
    title = translate("metric.checks_passed")
    make = partial(charts.bars, labels, fractions, title, format=".0%")
    caption, files = translate("before_training.figure"), [base.first.file("metrics.json")]
    return context.figures.add("base-abilities", caption, make, files)


def strengths(method: MethodView) -> tuple[list[Bilingual], list[Bilingual]]:
    """Sentences for and against a method.

    The best abilities at or above the mean are strengths, the worst ones below it weaknesses. So
    are low and high rates of faulty answers.
    """
    source = method.first.file("metrics.json")
    strong, weak = [], []
    ranked = sorted(abilities(method), key=lambda row: -row[1])
    if ranked:
        mean = sum(fraction for _, fraction, _ in ranked) / len(ranked)
        above = [row for row in ranked if row[1] >= mean and row[1] > 0]
        below = [row for row in reversed(ranked) if row[1] < mean or row[1] == 0]
        strong += _ability_sentence("before_training.strong", above, mean, source)
        weak += _ability_sentence("before_training.weak", below, mean, source)
    for metric in (METRICS.by_key[key] for key in RATES):
        rate = metric.of(method.first)
        if rate is not None and (rate > HIGH or rate <= LOW):
            sentences, level = (weak, "high") if rate > HIGH else (strong, "low")
            key = f"before_training.{metric.key}_{level}"
            sentences.append(translate(key, rate=number(rate, "percent", source)))
    return strong, weak


def _ability_sentence(
    key: str, rows: list[tuple[str, float, int]], mean: float, source: str
) -> list[Bilingual]:
    """One sentence that names the first abilities of `rows`; none where there are none."""
    if not rows:
        return []
    named = []
    for name, fraction, _ in rows[:MAX_ABILITIES]:
        value = translate("common.in_brackets", what=number(fraction, "percent", source))
        named.append(spaced(ability_name(name), value))
    return [translate(key, abilities=joined(named), mean=number(mean, "percent", source))]
