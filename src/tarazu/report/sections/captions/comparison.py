"""What the comparison of captioning models adds: BLEU with and without penalty, errors and images side by side."""

from __future__ import annotations

from collections import Counter
from functools import partial

from markupsafe import Markup

from tarazu.report.analysis.baselines import baselines
from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import MethodView, as_number, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    has,
    joined,
    number,
    translate,
    translate_or,
)
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.captions.ablation import ablation_view
from tarazu.report.sections.captions.methods import categories, samples_with_image
from tarazu.report.sections.common.base import ComparisonPart, Context
from tarazu.report.sections.common.method_names import method_name

SIDE_BY_SIDE = 6
ORDERS = (1, 2, 3, 4)


def comparison_parts(context: Context) -> list[ComparisonPart]:
    """BLEU and the ablations below the quality table; errors and the same images below the tests."""
    scores = {
        "bleu": bleu_table(context),
        "tokenizer": tokenizer_sentence(context),
        "ablations": ablation_view(context),
        "bleu_figure": bleu_figure(context),
    }
    captions = {
        "errors": errors_side_by_side(context),
        "error_findings": error_findings(context),
        "gallery": gallery(context),
    }
    return [
        ComparisonPart("captions/comparison_scores.html", scores, after_quality=True),
        ComparisonPart("captions/comparison_captions.html", captions),
    ]


def bleu_table(context: Context) -> Table:
    """BLEU-1..4 of every model and decoding, with the brevity penalty and without it (as the papers have it)."""
    rows = []
    for method in context.study.methods:
        source = method.first.file("metrics.json")
        for how, scores in sorted(get_path(method.first.metrics, "decoding", default={}).items()):
            cells = [number_cell(get_path(scores, "bleu", n - 1), "points", source) for n in ORDERS]
            cells += [
                number_cell(get_path(scores, "bleu_no_penalty", n - 1), "points", source)
                for n in ORDERS
            ]
            cells += [
                number_cell(get_path(scores, "brevity_penalty"), "two", source),
                *[
                    number_cell(get_path(scores, k), "points", source)
                    for k in ("cider", "rouge_l", "meteor")
                ],
            ]
            rows.append([text_cell(method_name(method)), text_cell(decoding(how)), *cells])
    found, source = baselines(context.study)
    for name, scores in found.items():
        cells = [
            number_cell(get_path(scores, part, n - 1), "points", source)
            for part in ("bleu", "bleu_no_penalty")
            for n in ORDERS
        ]
        rows.append(
            [
                text_cell(translate(f"baseline.{name}")),
                text_cell(translate("baseline.is")),
                *cells,
                number_cell(get_path(scores, "brevity_penalty"), "two", source),
                *[
                    number_cell(get_path(scores, k), "points", source)
                    for k in ("cider", "rouge_l", "meteor")
                ],
            ]
        )
    columns = [
        translate("compare.method"),
        translate("bleu.decoding"),
        *[translate(f"metric.bleu{n}") for n in ORDERS],
        *[translate("bleu.without", n=Markup(str(n))) for n in ORDERS],
        translate("bleu.penalty"),
        translate("metric.cider"),
        translate("metric.rouge_l"),
        translate("metric.meteor"),
    ]
    return Table(
        translate("bleu.table"),
        columns,
        rows,
        [method.first.file("metrics.json") for method in context.study.methods],
        sortable=True,
    )


def tokenizer_sentence(context: Context) -> Bilingual:
    """The tokenizer that the scores depend on, by the name that the scorers wrote down; every name, if there are several."""
    found = [
        get_path(scores, "tokenizer")
        for method in context.study.methods
        for run in method.measured
        for scores in get_path(run.metrics, "decoding", default={}).values()
    ]
    names = list(dict.fromkeys(name for name in found if isinstance(name, str)))
    if not names:
        return translate("bleu.tokenizer_unknown")
    known = f"bleu.tokenizer_{names[0]}"
    what = translate(known if len(names) == 1 and has(known) else "bleu.tokenizer_other")
    return translate("bleu.tokenizer", names=joined([code(name) for name in names]), what=what)


def decoding(how: str) -> Bilingual:
    """greedy, or beams with how many."""
    return (
        translate("bleu.beam", n=number(int(how[4:]), "count"))
        if how.startswith("beam") and how[4:].isdigit()
        else translate_or(f"bleu.{how}", how)
    )


def bleu_figure(context: Context) -> Figure | None:
    """BLEU-1..4 of the models (beam 3) and the yardsticks."""
    named = [
        (method.name, get_path(method.first.metrics, "decoding", "beam3", default={}))
        for method in context.study.methods
    ]
    named += [
        (translate(f"baseline.{name}"), scores)
        for name, scores in baselines(context.study)[0].items()
    ]
    rows = [
        (label, f"BLEU-{n}", value)
        for label, scores in named
        for n in ORDERS
        if (value := as_number(get_path(scores, "bleu", n - 1))) is not None
    ]
    if not rows:
        return None
    make = partial(charts.grouped, rows, [f"BLEU-{n}" for n in ORDERS], translate("axis.score"))
    return context.figures.add(
        "bleu",
        translate("bleu.figure"),
        lambda language: make(language=language),
        [method.first.file("metrics.json") for method in context.study.methods],
    )


def errors_side_by_side(context: Context) -> Table:
    """Precision and recall of every category for every model, on the same images: a row for each model."""
    methods = [method for method in context.study.methods if categories(method)]
    names = list(dict.fromkeys(name for method in methods for name in categories(method)))
    rows = [
        [text_cell(method_name(method)), *[_precision_and_recall(method, name) for name in names]]
        for method in methods
    ]
    columns = [
        translate("compare.method"),
        *[translate_or(f"category.{name}", name) for name in names],
    ]
    sources = [method.first.file("metrics.json") for method in methods]
    return Table(translate("errors.side_by_side"), columns, rows, sources, sortable=True)


def _precision_and_recall(method: MethodView, category: str) -> Cell:
    """Both in one cell; a sort goes by their harmonic mean."""
    found, source = categories(method).get(category), method.first.file("metrics.json")
    values = {k: number(get_path(found, k), "percent", source) for k in ("precision", "recall")}
    return Cell(translate("errors.both", **values), as_number(get_path(found, "f1")))


def _own_errors(method: MethodView) -> dict[str, dict[str, set]]:
    """{image: {"hallucinated", "missed"}} of the images whose errors were analysed."""
    found = {}
    for key, sample in by_id(method.first).items():
        errors = sample.get("errors")
        if isinstance(errors, dict):
            found[key] = {
                part: {str(w) for w in errors.get(part) or []}
                if isinstance(errors.get(part), list)
                else set()
                for part in ("hallucinated", "missed")
            }
    return found


def error_findings(context: Context) -> list[Bilingual]:
    """Who makes the fewest errors, and which errors all models share, image by image."""
    errors = {
        method.name: found for method in context.study.methods if (found := _own_errors(method))
    }
    shared = (
        set.intersection(*(set(found) for found in errors.values())) if len(errors) > 1 else set()
    )
    if not shared:
        return []
    sentences = []
    for part in ("hallucinated", "missed"):
        means = {
            name: sum(len(found[i][part]) for i in shared) / len(shared)
            for name, found in errors.items()
        }
        listed = joined(
            [
                translate("errors.each", model=code(name), mean=number(value, "two"))
                for name, value in means.items()
            ]
        )
        sentences.append(
            translate(f"errors.{part}_mean", images=number(len(shared), "count"), models=listed)
        )
        common = Counter(
            word
            for i in shared
            for word in set.intersection(*(found[i][part] for found in errors.values()))
        )
        if common:
            words = joined(
                [
                    translate("errors.word_count", word=data_text(w, 40), count=number(n, "count"))
                    for w, n in common.most_common(6)
                ]
            )
            sentences.append(translate(f"errors.{part}_by_all", words=words))
    return sentences


def gallery(context: Context) -> list[dict]:
    """The same images with every model's caption."""
    methods = [method for method in context.study.methods if method.measured]
    captions = {method.name: by_id(method.first) for method in methods}
    ids = [
        str(s.get("id"))
        for s in (samples_with_image(methods[0]) if methods else [])
        if all(str(s.get("id")) in found for found in captions.values())
    ]
    views = []
    for key in ids[:SIDE_BY_SIDE]:
        first = captions[methods[0].name][key]
        lines = [
            {
                "who": method_name(method),
                "text": data_text(captions[method.name][key].get("beam3") or "", 300),
                "score": number(
                    get_path(captions[method.name][key], "scores", "cider"),
                    "points",
                    method.first.file("samples.jsonl"),
                ),
            }
            for method in methods
        ]
        views.append(
            {
                "id": code(key),
                "photo": photo(
                    context.study.path,
                    first.get("image"),
                    str(get_path(first, "references", 0, default="")),
                ),
                "references": [
                    data_text(r, 300) for r in get_path(first, "references", default=[])[:2]
                ],
                "lines": lines,
            }
        )
    return views
