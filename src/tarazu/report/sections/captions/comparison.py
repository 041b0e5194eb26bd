"""What the captions task adds to the comparison: BLEU, ablations, errors, shared images."""

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
from tarazu.report.sections.captions.baselines import (
    BLEU_ORDERS,
    OTHER_SCORE_TITLES,
    bleu_cells,
    other_score_cells,
)
from tarazu.report.sections.captions.methods import (
    ERROR_KINDS,
    MAX_CAPTION_CHARS,
    alt_text,
    categories,
    references_view,
    samples_with_image,
)
from tarazu.report.sections.common.base import ComparisonPart, Context
from tarazu.report.sections.common.cells import first_files, translate_all
from tarazu.report.sections.common.method_names import joined_code, method_name

MAX_IMAGES = 6
MAX_WORDS = 6  # words named in a sentence on shared errors
BEAM = "beam"


def comparison_parts(context: Context) -> list[ComparisonPart]:
    """BLEU and ablations below the quality table; errors and shared images below the tests."""
    scores = {
        "bleu": bleu_table(context),
        "tokenizer": tokenizer_sentence(context),
        "ablations": ablation_view(context),
        "bleu_figure": bleu_figure(context),
    }
    captions = {
        "errors": errors_by_model(context),
        "error_findings": error_findings(context),
        "gallery": gallery(context),
    }
    return [
        ComparisonPart("captions/comparison_scores.html", scores, after_quality=True),
        ComparisonPart("captions/comparison_captions.html", captions),
    ]


def bleu_table(context: Context) -> Table:
    """BLEU with and without brevity penalty, of every model and decoding and of the baselines."""
    methods, rows = context.study.methods, []
    for method in methods:
        source = method.first.file("metrics.json")
        by_decoding = get_path(method.first.metrics, "decoding", default={})
        for decoding, scores in sorted(by_decoding.items()):
            names = [text_cell(method_name(method)), text_cell(decoding_name(decoding))]
            rows.append([*names, *_all_score_cells(scores, source)])
    baseline_scores, source = baselines(context.study)
    for name, scores in baseline_scores.items():
        names = [text_cell(translate(f"baseline.{name}")), text_cell(translate("baseline.what"))]
        rows.append([*names, *_all_score_cells(scores, source)])
    columns = [
        *translate_all("compare.method", "bleu.decoding"),
        *translate_all(*[f"metric.bleu{n}" for n in BLEU_ORDERS]),
        *[translate("bleu.without_penalty", n=Markup(str(n))) for n in BLEU_ORDERS],
        *translate_all("bleu.penalty", *OTHER_SCORE_TITLES),
    ]
    files = first_files(methods, "metrics.json")
    return Table(translate("bleu.table"), columns, rows, files, sortable=True)


def _all_score_cells(scores: object, source: str) -> list[Cell]:
    """BLEU with and without penalty, the penalty, and the other scores of one set of captions."""
    return [
        *bleu_cells(scores, "bleu", source),
        *bleu_cells(scores, "bleu_no_penalty", source),
        number_cell(get_path(scores, "brevity_penalty"), "two", source),
        *other_score_cells(scores, source),
    ]


def tokenizer_sentence(context: Context) -> Bilingual:
    """The tokenizer of the scores: only scores of one tokenizer are comparable."""
    names = [
        get_path(scores, "tokenizer")
        for method in context.study.methods
        for run in method.measured
        for scores in get_path(run.metrics, "decoding", default={}).values()
    ]
    names = list(dict.fromkeys(name for name in names if isinstance(name, str)))
    if not names:
        return translate("bleu.tokenizer_unknown")
    key = f"bleu.tokenizer_{names[0]}"
    description = translate(key if len(names) == 1 and has(key) else "bleu.tokenizer_other")
    return translate("bleu.tokenizer", names=joined_code(names), description=description)


def decoding_name(decoding: str) -> Bilingual:
    """The name of a decoding: greedy, or beam search with its width."""
    width = decoding.removeprefix(BEAM)
    if decoding.startswith(BEAM) and width.isdigit():
        return translate("bleu.beam", n=number(int(width), "count"))
    return translate_or(f"bleu.{decoding}", decoding)


def bleu_figure(context: Context) -> Figure | None:
    """BLEU-1 to BLEU-4 of the models (beam 3) and the baselines, as grouped bars."""
    scores_of = [
        (method.name, get_path(method.first.metrics, "decoding", "beam3", default={}))
        for method in context.study.methods
    ]
    baseline_scores, _ = baselines(context.study)
    scores_of += [(translate(f"baseline.{name}"), s) for name, s in baseline_scores.items()]
    bars = [
        (label, f"BLEU-{n}", value)
        for label, scores in scores_of
        for n in BLEU_ORDERS
        if (value := as_number(get_path(scores, "bleu", n - 1))) is not None
    ]
    if not bars:
        return None
    groups, title = [f"BLEU-{n}" for n in BLEU_ORDERS], translate("axis.score")
    make = partial(charts.grouped, bars, groups, title)
    files = first_files(context.study.methods, "metrics.json")
    return context.figures.add("bleu", translate("bleu.figure"), make, files)


def errors_by_model(context: Context) -> Table:
    """Precision and recall of every model in each category, on the same images."""
    methods = [method for method in context.study.methods if categories(method)]
    names = list(dict.fromkeys(name for method in methods for name in categories(method)))
    rows = [
        [text_cell(method_name(method)), *[_precision_and_recall(method, name) for name in names]]
        for method in methods
    ]
    columns = [translate("compare.method")]
    columns += [translate_or(f"category.{name}", name) for name in names]
    files = first_files(methods, "metrics.json")
    return Table(translate("errors.side_by_side"), columns, rows, files, sortable=True)


def _precision_and_recall(method: MethodView, category: str) -> Cell:
    """Both in one cell; F1 is the sort key."""
    value, source = categories(method).get(category), method.first.file("metrics.json")
    rates = {k: number(get_path(value, k), "percent", source) for k in ("precision", "recall")}
    return Cell(translate("errors.both", **rates), as_number(get_path(value, "f1")))


def _errors_by_image(method: MethodView, kind: str) -> dict[str, set[str]]:
    """The hallucinated or missed words of each image whose errors were analysed."""
    return {
        image: set(map(str, get_path(sample, "errors", kind, default=[])))
        for image, sample in by_id(method.first).items()
        if isinstance(sample.get("errors"), dict)
    }


def error_findings(context: Context) -> list[Bilingual]:
    """The mean number of errors per image of each model, and the errors that all models share."""
    sentences = []
    for kind in ERROR_KINDS:
        errors = {method.name: _errors_by_image(method, kind) for method in context.study.methods}
        errors = {name: by_image for name, by_image in errors.items() if by_image}
        if len(errors) < 2:
            continue
        images = sorted(set.intersection(*map(set, errors.values())))
        if images:
            sentences += _error_sentences(kind, errors, images)
    return sentences


def _error_sentences(
    kind: str, errors: dict[str, dict[str, set[str]]], images: list[str]
) -> list[Bilingual]:
    """The sentences on one kind of error over the images that all models have."""
    means = []
    for name, by_image in errors.items():
        mean = sum(len(by_image[image]) for image in images) / len(images)
        means.append(translate("errors.each", model=code(name), mean=number(mean, "two")))
    count = number(len(images), "count")
    sentences = [translate(f"errors.{kind}_mean", images=count, models=joined(means))]
    shared = Counter(
        word
        for image in images
        for word in sorted(set.intersection(*(by_image[image] for by_image in errors.values())))
    )
    words = [
        translate("errors.word_count", word=data_text(word, 40), count=number(n, "count"))
        for word, n in shared.most_common(MAX_WORDS)
    ]
    return sentences + ([translate(f"errors.{kind}_by_all", words=joined(words))] if words else [])


def gallery(context: Context) -> list[dict]:
    """The same images with every model's caption."""
    methods = [method for method in context.study.methods if method.measured]
    samples = {method.name: by_id(method.first) for method in methods}
    images = [str(s.get("id")) for s in (samples_with_image(methods[0]) if methods else [])]
    shared = [image for image in images if all(image in by_image for by_image in samples.values())]
    views = []
    for image in shared[:MAX_IMAGES]:
        first = samples[methods[0].name][image]
        views.append(
            {
                "id": code(image),
                "photo": photo(context.study.path, first.get("image"), alt_text(first)),
                "references": references_view(first),
                "lines": [_caption_line(method, samples[method.name][image]) for method in methods],
            }
        )
    return views


def _caption_line(method: MethodView, sample: dict) -> dict:
    """One model's caption of an image, and its CIDEr."""
    source = method.first.file("samples.jsonl")
    return {
        "who": method_name(method),
        "text": data_text(sample.get("beam3") or "", MAX_CAPTION_CHARS),
        "score": number(get_path(sample, "scores", "cider"), "points", source),
    }
