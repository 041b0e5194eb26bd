"""Section 4 for chat: the untouched model's first test, with strengths and weaknesses that follow from the numbers."""

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
from tarazu.report.render.tables import Table, number_cell, text_cell
from tarazu.report.sections.chat.answers import (
    abilities,
    answer_length_limit,
    answer_view,
    omission_note,
    question_view,
    shown_ids,
)
from tarazu.report.sections.chat.metrics import METRICS
from tarazu.report.sections.common.base import Context, Section

RATES = ("repetition", "wrong_script", "unfinished", "prompt_copy")
HIGH, LOW = 0.10, 0.02  # a rate above HIGH is a weakness, at or below LOW a strength


def before_training_section(context: Context) -> Section:
    base = context.study.base
    view = {
        "missing": base is None or not base.measured,
        "strengths": [],
        "weaknesses": [],
        "answers": [],
    }
    if base and base.measured:
        source = base.first.file("metrics.json")
        strong, weak = strengths(base)
        limit, shown = answer_length_limit(context), set(shown_ids(context))
        answers = [
            {**question_view(s, limit), "answers": [answer_view(base, s, limit)]}
            for key, s in by_id(base.first).items()
            if key in shown
        ]
        view |= {
            "abilities": ability_table(base),
            "figure": _figure(context, base),
            "figures": figures_table(base),
            "strengths": strong,
            "weaknesses": weak,
            "answers": answers,
            "part": omission_note(context),
            "file": base.first.file("samples.jsonl"),
            "source": source,
        }
    return Section(
        "before-training",
        translate("section.before_training"),
        "chat/before_training.html",
        view,
        explain("perplexity-and-bits-per-byte", "chrf-and-rouge"),
    )


def ability_name(name: str) -> Bilingual:
    return translate_or(f"ability.{name}", name)


def ability_table(method: MethodView) -> Table:
    """The share of checks passed, ability by ability."""
    source = method.first.file("metrics.json")
    rows = [
        [
            text_cell(ability_name(a)),
            number_cell(n, "count", source),
            number_cell(share, "percent", source),
        ]
        for a, share, n in abilities(method)
    ]
    return Table(
        translate("before_training.abilities"),
        [
            translate("before_training.ability"),
            translate("before_training.questions"),
            translate("metric.checks_passed"),
        ],
        rows,
        [source],
    )


def figures_table(method: MethodView) -> Table:
    """Every quality figure of one method."""
    source = method.first.file("metrics.json")
    rows = [
        [text_cell(translate(f"metric.{m.key}")), number_cell(value, m.format, source)]
        for m in METRICS.quality
        if (value := m.of(method.first)) is not None
    ]
    return Table(
        translate("before_training.figures"),
        [translate("common.what"), translate("common.value")],
        rows,
        [source],
    )


def _figure(context: Context, base: MethodView):
    found = abilities(base)
    if not found:
        return None
    labels, values = [ability_name(a) for a, _, _ in found], [share for _, share, _ in found]
    make = partial(charts.bars, labels, values, translate("metric.checks_passed"), format=".0%")
    return context.figures.add(
        "base-abilities",
        translate("before_training.figure"),
        lambda language: make(language=language),
        [base.first.file("metrics.json")],
    )


def strengths(method: MethodView) -> tuple[list[Bilingual], list[Bilingual]]:
    """Sentences: abilities at or above the mean are strengths, the others weaknesses, three of each; then rates."""
    source = method.first.file("metrics.json")
    found = sorted(abilities(method), key=lambda row: -row[1])
    strong, weak = [], []
    if found:
        mean = sum(share for _, share, _ in found) / len(found)
        above = [row for row in found if row[1] >= mean and row[1] > 0][:3]
        below = [row for row in reversed(found) if row[1] < mean or row[1] == 0][:3]
        for rows, key, sentences in (
            (above, "before_training.strong", strong),
            (below, "before_training.weak", weak),
        ):
            if rows:
                named = joined(
                    [
                        spaced(
                            ability_name(a),
                            translate("common.in_brackets", what=number(s, "percent", source)),
                        )
                        for a, s, _ in rows
                    ]
                )
                sentences.append(
                    translate(key, abilities=named, mean=number(mean, "percent", source))
                )
    for metric in METRICS.quality:
        value = metric.of(method.first) if metric.key in RATES else None
        if value is not None and (value > HIGH or value <= LOW):
            side, key = (weak, "high") if value > HIGH else (strong, "low")
            side.append(
                translate(
                    f"before_training.{metric.key}_{key}", rate=number(value, "percent", source)
                )
            )
    return strong, weak
