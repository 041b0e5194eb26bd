"""Section 5 for captions: each model's idea, settings, proof, curves, captions, errors and heat maps."""

from __future__ import annotations

from tarazu.report.analysis.curves import curve
from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import MethodView, as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import code, data_text, number, translate, translate_or
from tarazu.report.render.explanations import explain, explain_kind
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell
from tarazu.report.sections.captions.attention import entropy_sentences, heat_maps
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.curves import curve_sentences, line_figure, loss_figure
from tarazu.report.sections.common.hyperparameter_search import search_view
from tarazu.report.sections.common.proof_of_change import (
    proof_view,
    settings_table,
    targets_table,
    training_issues,
)

PAGES = {
    "show_and_tell": ("overfitting-measures",),
    "show_attend_tell": ("attention-maps",),
    "transformer": ("masking", "positions"),
}
FINAL, EXTREMES = 5, 3


def methods_section(context: Context) -> Section:
    told: set[str] = set()
    view = {"methods": [_method_view(context, method, told) for method in context.study.methods]}
    return Section(
        "methods",
        translate("section.methods"),
        "captions/methods.html",
        view,
        explain("fingerprints", "curves", "beam-search"),
    )


def _method_view(context: Context, method: MethodView, told: set[str]) -> dict:
    first = method.kind not in told
    told.add(method.kind)
    return {
        "name": code(method.name),
        "anchor": f"method-{method.name}",
        "kind_anchor": f"method-kind-{method.kind}" if first else None,
        "kind": translate_or(f"kind.{method.kind}", method.kind),
        "explanations": [*explain_kind(method.kind), *explain(*PAGES.get(method.kind, ()))]
        if first
        else [],
        "settings": settings_table(method),
        "targets": targets_table(method),
        "search": search_view(context, method),
        "untrained": method.untrained,
        "proofs": [
            (run.seed, view) for run in method.runs if (view := proof_view(run, method.runs[0]))
        ],
        "figure": loss_figure(context, method),
        "scores_figure": _scores_figure(context, method),
        "analysis": curve_sentences(context, method),
        "issues": training_issues(method),
        "epochs": _by_epoch(context, method),
        "final": _final(context, method),
        "extremes": _extremes(context, method),
        "errors": errors_table(method),
        "error_words": error_words(method),
        "diversity": _diversity(method),
        "heat_maps": heat_maps(context, method),
        "entropy": entropy_sentences(method),
    }


def _scores_figure(context: Context, method: MethodView) -> Figure | None:
    """Validation BLEU-4 and CIDEr by epoch, from real generation."""
    found = [(key, curve(method.first, "validation", "epoch", key)) for key in ("bleu4", "cider")]
    series = [
        charts.Series(translate(f"metric.{key}"), points.x, points.y, i, i)
        for i, (key, points) in enumerate(found)
        if points
    ]
    if not series:
        return None
    return line_figure(
        context,
        f"scores-{method.name}",
        translate("caption_methods.scores", method=code(method.name)),
        series,
        translate("axis.epoch"),
        translate("axis.score"),
        [method.first.file("events.jsonl")],
    )


def _by_epoch(context: Context, method: MethodView) -> dict | None:
    """The fixed image and what was written about it at the end of each epoch."""
    found = [(e, dicts_in(e.get("samples"))) for e in method.first.of_kind("sample")]
    found = [(e, samples[0]) for e, samples in found if samples]
    if not found:
        return None
    source = method.first.file("events.jsonl")
    rows = [
        [
            number_cell(e.get("epoch"), "two", source),
            text_cell(data_text(sample.get("output", ""), 300)),
        ]
        for e, sample in found
    ]
    identity = str(found[-1][1].get("id", ""))
    own = by_id(method.first).get(identity, {})
    name = (
        next((s.get("image") for _, s in found if s.get("image")), None)
        or own.get("image")
        or f"images/{identity}"
    )
    return {
        "photo": photo(context.study.path, name, _alt(own)),
        "id": code(identity),
        "table": Table(
            translate("caption_methods.by_epoch"),
            [translate("axis.epoch"), translate("caption_methods.caption")],
            rows,
            [source],
        ),
    }


def _alt(sample: dict) -> str:
    return str(get_path(sample, "references", 0, default=""))


def image_view(context: Context, method: MethodView, sample: dict) -> dict:
    """One image with this model's caption, its score, two people's captions and its errors."""
    source = method.first.file("samples.jsonl")
    return {
        "photo": photo(context.study.path, sample.get("image"), _alt(sample)),
        "id": code(sample.get("id", "?")),
        "caption": data_text(sample.get("beam3") or sample.get("greedy") or "", 300),
        "score": translate(
            "caption_methods.score",
            cider=number(get_path(sample, "scores", "cider"), "points", source),
        ),
        "references": [data_text(r, 300) for r in get_path(sample, "references", default=[])[:2]],
        "hallucinated": data_text(
            ", ".join(map(str, get_path(sample, "errors", "hallucinated", default=[])))
        )
        if get_path(sample, "errors", "hallucinated")
        else None,
        "missed": data_text(", ".join(map(str, get_path(sample, "errors", "missed", default=[]))))
        if get_path(sample, "errors", "missed")
        else None,
    }


def samples_with_image(method: MethodView) -> list[dict]:
    return [s for s in method.first.samples if s.get("image")]


def _final(context: Context, method: MethodView) -> list[dict]:
    """Five images, the same for every model: those that every model has a picture for, else the first ones."""
    shared = [s for s in samples_with_image(method) if _in_all(context, str(s.get("id")))]
    return [image_view(context, method, s) for s in (shared or samples_with_image(method))[:FINAL]]


def _in_all(context: Context, identity: str) -> bool:
    return all(
        by_id(method.first).get(identity, {}).get("image")
        for method in context.study.methods
        if method.measured
    )


def _extremes(context: Context, method: MethodView) -> dict:
    """The best and the worst of the images that are kept, by CIDEr."""
    scored = sorted(
        (
            s
            for s in samples_with_image(method)
            if as_number(get_path(s, "scores", "cider")) is not None
        ),
        key=lambda s: s["scores"]["cider"],
    )
    if len(scored) < 2 * EXTREMES:
        return {"best": [], "worst": []}
    return {
        "best": [image_view(context, method, s) for s in reversed(scored[-EXTREMES:])],
        "worst": [image_view(context, method, s) for s in scored[:EXTREMES]],
    }


def categories(method: MethodView) -> dict[str, dict]:
    """Precision and recall by category: objects, colours, counts, relations, actions."""
    found = get_path(method.first.metrics, "errors", "categories", default={})
    return (
        {name: value for name, value in found.items() if isinstance(value, dict)}
        if isinstance(found, dict)
        else {}
    )


def errors_table(method: MethodView) -> Table:
    """Objects, colours, counts and relations against the five references."""
    source = method.first.file("metrics.json")
    rows = [
        [
            text_cell(translate_or(f"category.{name}", name)),
            *[
                number_cell(get_path(value, k), "percent", source)
                for k in ("precision", "recall", "f1")
            ],
            *[number_cell(get_path(value, k), "count", source) for k in ("mentions", "expected")],
        ]
        for name, value in categories(method).items()
    ]
    columns = [
        translate("errors.category"),
        translate("errors.precision"),
        translate("errors.recall"),
        translate("errors.f1"),
        translate("errors.mentions"),
        translate("errors.expected"),
    ]
    return Table(translate("errors.table"), columns, rows, [source])


def error_words(method: MethodView) -> list[Table]:
    """The words most often invented and missed."""
    tables, source = [], method.first.file("metrics.json")
    for part in ("hallucinated", "missed"):
        pairs = [
            p
            for p in get_path(method.first.metrics, "errors", part, default=[])
            if isinstance(p, list) and len(p) == 2
        ][:12]
        if pairs:
            rows = [[code_cell(word), number_cell(count, "count", source)] for word, count in pairs]
            tables.append(
                Table(
                    translate(f"errors.{part}"),
                    [translate("errors.word"), translate("data.images")],
                    rows,
                    [source],
                )
            )
    return tables


def _diversity(method: MethodView) -> Table:
    source = method.first.file("metrics.json")
    forms = {
        "vocabulary_used": "count",
        "novel_fraction": "percent",
        "distinct_fraction": "percent",
        "words_mean": "points",
        "repeated_phrase_fraction": "percent",
    }
    rows = [
        [
            text_cell(translate(f"diversity.{key}")),
            number_cell(get_path(method.first.metrics, "diversity", key), format, source),
        ]
        for key, format in forms.items()
        if get_path(method.first.metrics, "diversity", key) is not None
    ]
    return Table(
        translate("diversity.table"),
        [translate("common.what"), translate("common.value")],
        rows,
        [source],
    )
