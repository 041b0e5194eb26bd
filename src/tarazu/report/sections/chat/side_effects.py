"""What tuning did besides: forgetting of plain text, length drift, and reading comprehension with right answers."""

from __future__ import annotations

from statistics import fmean

from tarazu.report.analysis.metrics import mean_over_seeds, measures
from tarazu.report.analysis.study_view import Arm, as_number, get_path
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.tables import Table, figure_cell, text_cell
from tarazu.report.sections.chat.answers import all_arms, arm_name
from tarazu.report.sections.common.base import Context

DRIFT = 0.2  # a change in the mean length of answers worth telling


def forgetting_sentences(context: Context) -> list[Bilingual]:
    """For each method and language, whether plain text became harder to read, as the paired test has it."""
    base, known, found = context.study.base, measures(context.study.task), []
    for arm in context.study.arms if base else []:
        for language in ("persian", "english"):
            key = f"{language}_bits_per_byte"
            before, after = (mean_over_seeds(one, known[key]) for one in (base, arm))
            if before is None or after is None:
                continue
            sure = context.comparison.differ(key, base.name, arm.name)
            outcome = "same" if not sure else "rose" if after > before else "fell"
            values = {"before": _figure(before, base), "after": _figure(after, arm)}
            found.append(
                translate(
                    f"forgetting.{outcome}",
                    method=code(arm.name),
                    language=translate(f"language.{language}"),
                    **values,
                )
            )
        found += _length(base, arm)
    return found


def _figure(value: float, arm: Arm) -> Bilingual:
    return number(value, "loss", arm.first.file("metrics.json"))


def _length(base: Arm, arm: Arm) -> list[Bilingual]:
    before, after = (_words(a) for a in (base, arm))
    if not before or after is None or abs(after / before - 1) < DRIFT:
        return []
    shown = {
        name: number(v, "points", a.first.file("metrics.json"))
        for name, v, a in (("before", before, base), ("after", after, arm))
    }
    return [translate("forgetting.length", method=code(arm.name), **shown)]


def _words(arm: Arm) -> float | None:
    """Words of an answer, over rows and seeds."""
    found = [
        as_number(get_path(run.metrics, "generation", "test", "answer_words"))
        for run in arm.measured
    ]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def reading_table(context: Context) -> Table | None:
    """Exact match and F1, means over the seeds; unanswerable questions are counted apart, for abstaining always would win them."""
    places = (
        ("answerable", "exact_match"),
        ("answerable", "f1"),
        ("unanswerable", "exact_match"),
        ("abstained",),
    )
    rows, sources = [], []
    for arm in all_arms(context.study):
        runs = [run for run in arm.runs if get_path(run.metrics, "reading")]
        if not runs:
            continue
        files = [run.file("metrics.json") for run in runs]
        means = [
            [
                value
                for run in runs
                if (value := as_number(get_path(run.metrics, "reading", *place))) is not None
            ]
            for place in places
        ]
        rows.append(
            [
                text_cell(arm_name(arm)),
                figure_cell(get_path(runs[0].metrics, "reading", "n"), "count", files[0]),
                *[
                    figure_cell(fmean(found) if found else None, "percent", files[0])
                    for found in means
                ],
            ]
        )
        sources += files
    names = (
        "compare.method",
        "reading.questions",
        "reading.answerable_em",
        "reading.answerable_f1",
        "reading.unanswerable_em",
        "reading.abstained",
    )
    return (
        Table(
            translate("reading.table"), [translate(n) for n in names], rows, sources, sortable=True
        )
        if rows
        else None
    )
