"""Side effects of tuning: forgetting, answer length, reading comprehension, faulty answers."""

from __future__ import annotations

from statistics import fmean

from tarazu.report.analysis.metrics import mean_over_seeds
from tarazu.report.analysis.study_view import MethodView, RunView, as_number, get_path
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.tables import Table, number_cell, text_cell
from tarazu.report.sections.chat.metrics import FORGETTING, METRICS, RATES
from tarazu.report.sections.common.base import Context, ProsAndCons
from tarazu.report.sections.common.cells import translate_all
from tarazu.report.sections.common.method_names import all_methods, method_name

LENGTH_CHANGE = 0.2  # a relative change of the mean answer length that is reported
RATE_CHANGE = 0.05  # a change of a rate that is reported
READING_METRICS = {
    "reading.answerable_em": ("answerable", "exact_match"),
    "reading.answerable_f1": ("answerable", "f1"),
    "reading.unanswerable_em": ("unanswerable", "exact_match"),
    "reading.abstained": ("abstained",),
}


def _before_and_after(base: MethodView, method: MethodView, key: str) -> tuple[float, float] | None:
    """A metric of the base model and of a method; None where one of them lacks it."""
    metric = METRICS.by_key[key]
    before, after = mean_over_seeds(base, metric), mean_over_seeds(method, metric)
    return None if before is None or after is None else (before, after)


def _change(
    base: MethodView, before: float, method: MethodView, after: float, format: str
) -> dict[str, Bilingual]:
    """A metric of the base model and of a method, each with the file that it comes from."""
    return {
        "before": number(before, format, base.first.file("metrics.json")),
        "after": number(after, format, method.first.file("metrics.json")),
    }


def _language(key: str) -> Bilingual:
    """The language of a forgetting metric."""
    return translate(f"language.{key.removesuffix('_bits_per_byte')}")


def forgetting_sentences(context: Context) -> list[Bilingual]:
    """For each method: whether its loss on plain text changed, and its answers' length."""
    base, sentences = context.study.base, []
    for method in context.study.methods if base else []:
        for key in reversed(FORGETTING):
            values = _before_and_after(base, method, key)
            if values is None:
                continue
            before, after = values
            outcome = "same"
            if context.comparison.is_significant(key, base.name, method.name):
                outcome = "rose" if after > before else "fell"
            change = _change(base, before, method, after, "loss")
            names = {"method": code(method.name), "language": _language(key)}
            sentences.append(translate(f"forgetting.{outcome}", **names, **change))
        sentences += _length_sentences(base, method)
    return sentences


def _length_sentences(base: MethodView, method: MethodView) -> list[Bilingual]:
    """The change of the mean answer length, where it is large."""
    before, after = _answer_words(base), _answer_words(method)
    if not before or after is None or abs(after / before - 1) < LENGTH_CHANGE:
        return []
    change = _change(base, before, method, after, "points")
    return [translate("forgetting.length", method=code(method.name), **change)]


def _answer_words(method: MethodView) -> float | None:
    """Words of an answer, mean over rows and seeds."""
    return _mean_of(method.measured, "generation", "test", "answer_words")


def _mean_of(runs: list[RunView], *path: str) -> float | None:
    """The mean of a number of metrics.json over the runs that have it."""
    values = [as_number(get_path(run.metrics, *path)) for run in runs]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def reading_table(context: Context) -> Table | None:
    """Exact match and F1, mean over seeds.

    Unanswerable questions have a column of their own, because a method that always abstains
    answers them all correctly.
    """
    rows, files = [], []
    for method in all_methods(context.study):
        runs = [run for run in method.runs if get_path(run.metrics, "reading")]
        if not runs:
            continue
        source = runs[0].file("metrics.json")
        questions = number_cell(get_path(runs[0].metrics, "reading", "n"), "count", source)
        cells = [
            number_cell(_mean_of(runs, "reading", *path), "percent", source)
            for path in READING_METRICS.values()
        ]
        rows.append([text_cell(method_name(method)), questions, *cells])
        files += [run.file("metrics.json") for run in runs]
    columns = translate_all("compare.method", "reading.questions", *READING_METRICS)
    table = Table(translate("reading.table"), columns, rows, files, sortable=True)
    return table if rows else None


def side_effects(context: Context, method: MethodView) -> ProsAndCons:
    """Rates of faulty answers that rose or fell, and the loss on plain text if it changed."""
    sentences, base = ProsAndCons(), context.study.base
    if base is not None:
        _compare_rates(context, base, method, sentences)
        _compare_forgetting(context, base, method, sentences)
    return sentences


def _compare_rates(
    context: Context, base: MethodView, method: MethodView, sentences: ProsAndCons
) -> None:
    """Rates that changed by at least `RATE_CHANGE`, unless the paired test found no difference."""
    for key in RATES:
        values = _before_and_after(base, method, key)
        if values is None or abs(values[1] - values[0]) < RATE_CHANGE:
            continue
        if context.comparison.is_significant(key, base.name, method.name) is False:
            continue
        before, after = values
        change = _change(base, before, method, after, "percent")
        outcome = "pro.rate_fell" if after < before else "con.rate_rose"
        sentence = translate(outcome, rate=translate(f"metric.{key}"), **change)
        (sentences.pros if after < before else sentences.cons).append(sentence)


def _compare_forgetting(
    context: Context, base: MethodView, method: MethodView, sentences: ProsAndCons
) -> None:
    """Bits per byte of plain text that changed significantly."""
    for key in FORGETTING:
        values = _before_and_after(base, method, key)
        if values is None or not context.comparison.is_significant(key, base.name, method.name):
            continue
        before, after = values
        change = _change(base, before, method, after, "loss")
        outcome = "pro.reads_better" if after < before else "con.forgets"
        sentence = translate(outcome, language=_language(key), **change)
        (sentences.pros if after < before else sentences.cons).append(sentence)
