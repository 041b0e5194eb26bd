"""What tuning did besides: forgetting of plain text, length drift, and reading comprehension with right answers."""

from __future__ import annotations

from statistics import fmean

from tarazu.report.analysis.metrics import mean_over_seeds
from tarazu.report.analysis.study_view import MethodView, as_number, get_path
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.tables import Table, number_cell, text_cell
from tarazu.report.sections.chat.metrics import FORGETTING, METRICS, RATES
from tarazu.report.sections.common.base import Context, ProsAndCons
from tarazu.report.sections.common.method_names import all_methods, method_name

DRIFT = 0.2  # a change in the mean length of answers worth telling


def forgetting_sentences(context: Context) -> list[Bilingual]:
    """For each method and language, whether plain text became harder to read, as the paired test has it."""
    base, known, found = context.study.base, METRICS.by_key, []
    for method in context.study.methods if base else []:
        for language in ("persian", "english"):
            key = f"{language}_bits_per_byte"
            before, after = (mean_over_seeds(one, known[key]) for one in (base, method))
            if before is None or after is None:
                continue
            sure = context.comparison.is_significant(key, base.name, method.name)
            outcome = "same" if not sure else "rose" if after > before else "fell"
            values = {"before": _figure(before, base), "after": _figure(after, method)}
            found.append(
                translate(
                    f"forgetting.{outcome}",
                    method=code(method.name),
                    language=translate(f"language.{language}"),
                    **values,
                )
            )
        found += _length(base, method)
    return found


def _figure(value: float, method: MethodView) -> Bilingual:
    return number(value, "loss", method.first.file("metrics.json"))


def _length(base: MethodView, method: MethodView) -> list[Bilingual]:
    before, after = (_words(a) for a in (base, method))
    if not before or after is None or abs(after / before - 1) < DRIFT:
        return []
    shown = {
        name: number(v, "points", a.first.file("metrics.json"))
        for name, v, a in (("before", before, base), ("after", after, method))
    }
    return [translate("forgetting.length", method=code(method.name), **shown)]


def _words(method: MethodView) -> float | None:
    """Words of an answer, over rows and seeds."""
    found = [
        as_number(get_path(run.metrics, "generation", "test", "answer_words"))
        for run in method.measured
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
    for method in all_methods(context.study):
        runs = [run for run in method.runs if get_path(run.metrics, "reading")]
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
                text_cell(method_name(method)),
                number_cell(get_path(runs[0].metrics, "reading", "n"), "count", files[0]),
                *[
                    number_cell(fmean(found) if found else None, "percent", files[0])
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


def side_effects(context: Context, method: MethodView) -> ProsAndCons:
    """Rates of faulty answers that rose or fell, and plain text that became harder or easier to read."""
    sentences = ProsAndCons()
    if context.study.base is not None:
        _compare_rates(context, context.study.base, method, sentences)
        _compare_forgetting(context, context.study.base, method, sentences)
    return sentences


def _compare_rates(
    context: Context, base: MethodView, method: MethodView, sentences: ProsAndCons
) -> None:
    """Rates that changed by at least 0.05, unless the paired test found no difference."""
    for key in RATES:
        metric = METRICS.by_key[key]
        before, after = mean_over_seeds(base, metric), mean_over_seeds(method, metric)
        if before is None or after is None or abs(after - before) < 0.05:
            continue
        if context.comparison.is_significant(key, base.name, method.name) is False:
            continue
        change = _change(base, before, method, after, "percent")
        outcome = "pro.rate_fell" if after < before else "con.rate_rose"
        sentence = translate(outcome, rate=translate(f"metric.{key}"), **change)
        (sentences.pros if after < before else sentences.cons).append(sentence)


def _compare_forgetting(
    context: Context, base: MethodView, method: MethodView, sentences: ProsAndCons
) -> None:
    """Bits per byte of plain text that changed significantly."""
    for key in FORGETTING:
        metric = METRICS.by_key[key]
        before, after = mean_over_seeds(base, metric), mean_over_seeds(method, metric)
        if before is None or after is None:
            continue
        if not context.comparison.is_significant(key, base.name, method.name):
            continue
        change = _change(base, before, method, after, "loss")
        language = translate(f"language.{key.removesuffix('_bits_per_byte')}")
        outcome = "pro.reads_better" if after < before else "con.forgets"
        sentence = translate(outcome, language=language, **change)
        (sentences.pros if after < before else sentences.cons).append(sentence)


def _change(
    base: MethodView, before: float, method: MethodView, after: float, format: str
) -> dict[str, Bilingual]:
    """A metric of the base model and of a method, each with the file that it came from."""
    return {
        "before": number(before, format, base.first.file("metrics.json")),
        "after": number(after, format, method.first.file("metrics.json")),
    }
