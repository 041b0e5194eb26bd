"""The methods section of the captions task: training, captions, errors, attention."""

from __future__ import annotations

from markupsafe import Markup

from tarazu.report.analysis.curves import curve
from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import MethodView, as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import code, data_text, number, translate, translate_or
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell
from tarazu.report.sections.captions.attention import entropy_sentences, heat_maps
from tarazu.report.sections.common.base import EPOCHS, Context, Section
from tarazu.report.sections.common.cells import facts_table, number_cells, translate_all
from tarazu.report.sections.common.curves import line_figure
from tarazu.report.sections.common.method_view import is_first_of_kind, method_view

# Explanations at the first method of a kind, after that of the kind itself.
PAGES = {
    "show_and_tell": ("overfitting-measures",),
    "show_attend_tell": ("attention-maps",),
    "transformer": ("masking", "positions"),
}
DIVERSITY = {
    "vocabulary_used": "count",
    "novel_fraction": "percent",
    "distinct_fraction": "percent",
    "words_mean": "points",
    "repeated_phrase_fraction": "percent",
}
ERROR_KINDS = ("hallucinated", "missed")
MAX_FINAL_IMAGES, MAX_EXTREMES, MAX_ERROR_WORDS, MAX_REFERENCES = 5, 3, 12, 2
MAX_CAPTION_CHARS = 300


def methods_section(context: Context) -> Section:
    """The section on all models."""
    view = {"methods": [_caption_method_view(context, m) for m in context.study.methods]}
    explanations = explain("fingerprints", "curves", "beam-search")
    title = translate("section.methods")
    return Section("methods", title, "captions/methods.html", view, explanations)


def _caption_method_view(context: Context, method: MethodView) -> dict:
    """What every method has, and the captions, errors and attention of a captioning model."""
    view, is_first = method_view(context, method), is_first_of_kind(context.study.methods, method)
    if is_first:
        view["explanations"] = [*view["explanations"], *explain(*PAGES.get(method.kind, ()))]
    return {
        **view,
        "kind_anchor": f"method-kind-{method.kind}" if is_first else None,
        "scores_figure": _scores_figure(context, method),
        "epochs": _captions_by_epoch(context, method),
        "final": _final_captions(context, method),
        "extremes": _extremes(context, method),
        "errors": errors_table(method),
        "error_words": error_words(method),
        "diversity": _diversity_table(method),
        "heat_maps": heat_maps(context, method),
        "entropy": entropy_sentences(method),
    }


def _scores_figure(context: Context, method: MethodView) -> Figure | None:
    """BLEU-4 and CIDEr of the validation images by epoch."""
    curves = [(key, curve(method.first, "validation", EPOCHS, key)) for key in ("bleu4", "cider")]
    series = [
        charts.Series(translate(f"metric.{key}"), points.x, points.y, i, i)
        for i, (key, points) in enumerate(curves)
        if points
    ]
    if not series:
        return None
    caption = translate("caption_methods.scores", method=code(method.name))
    x, y = translate_all("axis.epoch", "axis.score")
    files = [method.first.file("events.jsonl")]
    return line_figure(context, f"scores-{method.name}", caption, series, x, y, files)


def _captions_by_epoch(context: Context, method: MethodView) -> dict | None:
    """One fixed image and its caption at the end of each epoch."""
    source = method.first.file("events.jsonl")
    samples = []
    for event in method.first.of_kind("sample"):
        samples += [(event.get("epoch"), sample) for sample in dicts_in(event.get("samples"))[:1]]
    if not samples:
        return None
    rows = [
        [
            number_cell(epoch, "two", source),
            text_cell(data_text(sample.get("output", ""), MAX_CAPTION_CHARS)),
        ]
        for epoch, sample in samples
    ]
    image_id = str(samples[-1][1].get("id", ""))
    final = by_id(method.first).get(image_id, {})
    images = [sample.get("image") for _, sample in samples] + [final.get("image")]
    image = next((name for name in images if name), f"images/{image_id}")
    columns = translate_all("axis.epoch", "caption_methods.caption")
    return {
        "photo": photo(context.study.path, image, alt_text(final)),
        "id": code(image_id),
        "table": Table(translate("caption_methods.by_epoch"), columns, rows, [source]),
    }


def alt_text(sample: dict) -> str:
    """What a person wrote about the image."""
    return str(get_path(sample, "references", 0, default=""))


def references_view(sample: dict) -> list[Markup]:
    """The first captions that people wrote."""
    references = get_path(sample, "references", default=[])
    return [data_text(text, MAX_CAPTION_CHARS) for text in references[:MAX_REFERENCES]]


def image_view(context: Context, method: MethodView, sample: dict) -> dict:
    """One image with the model's caption, its score, two people's captions and the errors."""
    score = number(
        get_path(sample, "scores", "cider"), "points", method.first.file("samples.jsonl")
    )
    errors = {}
    for kind in ERROR_KINDS:
        words = get_path(sample, "errors", kind, default=[])
        errors[kind] = data_text(", ".join(map(str, words))) if words else None
    return {
        "photo": photo(context.study.path, sample.get("image"), alt_text(sample)),
        "id": code(sample.get("id", "?")),
        "caption": data_text(sample.get("beam3") or sample.get("greedy") or "", MAX_CAPTION_CHARS),
        "score": translate("caption_methods.score", cider=score),
        "references": references_view(sample),
        **errors,
    }


def samples_with_image(method: MethodView) -> list[dict]:
    """The samples of the first run whose image is in the folder."""
    return [sample for sample in method.first.samples if sample.get("image")]


def _final_captions(context: Context, method: MethodView) -> list[dict]:
    """Captions of the first images that every model has; else of the model's first images."""
    others = [by_id(m.first) for m in context.study.methods if m.measured]
    samples = samples_with_image(method)
    shared = [
        sample
        for sample in samples
        if all(other.get(str(sample.get("id")), {}).get("image") for other in others)
    ]
    chosen = (shared or samples)[:MAX_FINAL_IMAGES]
    return [image_view(context, method, sample) for sample in chosen]


def _extremes(context: Context, method: MethodView) -> dict:
    """The images with the highest and the lowest CIDEr."""
    scored = [
        (cider, sample)
        for sample in samples_with_image(method)
        if (cider := as_number(get_path(sample, "scores", "cider"))) is not None
    ]
    if len(scored) < 2 * MAX_EXTREMES:
        return {"best": [], "worst": []}
    samples = [sample for _, sample in sorted(scored, key=lambda pair: pair[0])]
    worst, best = samples[:MAX_EXTREMES], samples[: -MAX_EXTREMES - 1 : -1]
    return {
        "best": [image_view(context, method, sample) for sample in best],
        "worst": [image_view(context, method, sample) for sample in worst],
    }


def categories(method: MethodView) -> dict[str, dict]:
    """Precision and recall of each category: objects, colours, counts, relations, actions."""
    by_name = get_path(method.first.metrics, "errors", "categories", default={})
    return {name: value for name, value in by_name.items() if isinstance(value, dict)}


def errors_table(method: MethodView) -> Table:
    """What the captions mention in each category, against the five references."""
    source, rows = method.first.file("metrics.json"), []
    rates, counts = ("precision", "recall", "f1"), ("mentions", "expected")
    for name, value in categories(method).items():
        rate_cells = number_cells([value.get(key) for key in rates], "percent", source)
        count_cells = number_cells([value.get(key) for key in counts], "count", source)
        label = text_cell(translate_or(f"category.{name}", name))
        rows.append([label, *rate_cells, *count_cells])
    titles = [f"errors.{key}" for key in ("category", *rates, *counts)]
    return Table(translate("errors.table"), translate_all(*titles), rows, [source])


def error_words(method: MethodView) -> list[Table]:
    """The words that are most often hallucinated and most often missed, a table each."""
    tables, source = [], method.first.file("metrics.json")
    for kind in ERROR_KINDS:
        pairs = get_path(method.first.metrics, "errors", kind, default=[])
        pairs = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]
        rows = [
            [code_cell(word), number_cell(count, "count", source)]
            for word, count in pairs[:MAX_ERROR_WORDS]
        ]
        columns = translate_all("errors.word", "data.images")
        if rows:
            tables.append(Table(translate(f"errors.{kind}"), columns, rows, [source]))
    return tables


def _diversity_table(method: MethodView) -> Table:
    """How varied the captions are."""
    source = method.first.file("metrics.json")
    diversity = get_path(method.first.metrics, "diversity", default={})
    facts = [
        (f"diversity.{key}", number_cell(diversity[key], format, source))
        for key, format in DIVERSITY.items()
        if diversity.get(key) is not None
    ]
    return facts_table("diversity.table", facts, source)
