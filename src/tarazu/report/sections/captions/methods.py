"""Section 5 for captions: each model's idea, settings, proof, curves, captions, errors and heat maps."""

from __future__ import annotations

from tarazu.report.analysis.curves import curve
from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import Arm, as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import code, data_text, number, say_or, translate
from tarazu.report.render.explanations import explain, explain_kind
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.tables import Table, code_cell, figure_cell, text_cell
from tarazu.report.sections.captions.attention import entropy_sentences, heat_maps
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.curves import curve_sentences, line_figure, loss_figure
from tarazu.report.sections.common.hyperparameter_search import search_view
from tarazu.report.sections.common.proof_of_change import (
    proof_view,
    settings_table,
    targets_table,
    warnings_of,
)

PAGES = {
    "show_and_tell": ("overfitting-measures",),
    "show_attend_tell": ("attention-maps",),
    "transformer": ("masking", "positions"),
}
FINAL, EXTREMES = 5, 3


def methods_section(context: Context) -> Section:
    told: set[str] = set()
    view = {"arms": [_arm(context, arm, told) for arm in context.study.arms]}
    return Section(
        "methods",
        translate("section.methods"),
        "captions_methods.html",
        view,
        explain("fingerprints", "curves", "beam-search"),
    )


def _arm(context: Context, arm: Arm, told: set[str]) -> dict:
    first = arm.kind not in told
    told.add(arm.kind)
    return {
        "name": code(arm.name),
        "anchor": f"method-{arm.name}",
        "kind_anchor": f"method-kind-{arm.kind}" if first else None,
        "kind": say_or(f"kind.{arm.kind}", arm.kind),
        "explanations": [*explain_kind(arm.kind), *explain(*PAGES.get(arm.kind, ()))]
        if first
        else [],
        "settings": settings_table(arm),
        "targets": targets_table(arm),
        "search": search_view(context, arm),
        "untrained": arm.untrained,
        "proofs": [(run.seed, view) for run in arm.runs if (view := proof_view(run, arm.runs[0]))],
        "figure": loss_figure(context, arm),
        "scores_figure": _scores_figure(context, arm),
        "analysis": curve_sentences(context, arm),
        "troubles": warnings_of(arm),
        "epochs": _by_epoch(context, arm),
        "final": _final(context, arm),
        "extremes": _extremes(context, arm),
        "errors": errors_table(arm),
        "error_words": error_words(arm),
        "diversity": _diversity(arm),
        "heat_maps": heat_maps(context, arm),
        "entropy": entropy_sentences(arm),
    }


def _scores_figure(context: Context, arm: Arm) -> Figure | None:
    """Validation BLEU-4 and CIDEr by epoch, from real generation."""
    found = [(key, curve(arm.first, "validation", "epoch", key)) for key in ("bleu4", "cider")]
    series = [
        charts.Series(translate(f"measure.{key}"), points.x, points.y, i, i)
        for i, (key, points) in enumerate(found)
        if points
    ]
    if not series:
        return None
    return line_figure(
        context,
        f"scores-{arm.name}",
        translate("cmethod.scores", method=code(arm.name)),
        series,
        translate("axis.epoch"),
        translate("axis.score"),
        [arm.first.file("events.jsonl")],
    )


def _by_epoch(context: Context, arm: Arm) -> dict | None:
    """The fixed image and what was written about it at the end of each epoch."""
    found = [(e, dicts_in(e.get("samples"))) for e in arm.first.of_kind("sample")]
    found = [(e, samples[0]) for e, samples in found if samples]
    if not found:
        return None
    source = arm.first.file("events.jsonl")
    rows = [
        [
            figure_cell(e.get("epoch"), "two", source),
            text_cell(data_text(sample.get("output", ""), 300)),
        ]
        for e, sample in found
    ]
    identity = str(found[-1][1].get("id", ""))
    own = by_id(arm.first).get(identity, {})
    name = (
        next((s.get("image") for _, s in found if s.get("image")), None)
        or own.get("image")
        or f"images/{identity}"
    )
    return {
        "photo": photo(context.study.path, name, _alt(own)),
        "id": code(identity),
        "table": Table(
            translate("cmethod.by_epoch"),
            [translate("axis.epoch"), translate("cmethod.caption")],
            rows,
            [source],
        ),
    }


def _alt(sample: dict) -> str:
    return str(get_path(sample, "references", 0, default=""))


def picture_view(context: Context, arm: Arm, sample: dict) -> dict:
    """One image with this model's caption, its score, two people's captions and its errors."""
    source = arm.first.file("samples.jsonl")
    return {
        "photo": photo(context.study.path, sample.get("image"), _alt(sample)),
        "id": code(sample.get("id", "?")),
        "caption": data_text(sample.get("beam3") or sample.get("greedy") or "", 300),
        "score": translate(
            "cmethod.score", cider=number(get_path(sample, "scores", "cider"), "points", source)
        ),
        "references": [data_text(r, 300) for r in get_path(sample, "references", default=[])[:2]],
        "invented": data_text(
            ", ".join(map(str, get_path(sample, "errors", "invented", default=[])))
        )
        if get_path(sample, "errors", "invented")
        else None,
        "missed": data_text(", ".join(map(str, get_path(sample, "errors", "missed", default=[]))))
        if get_path(sample, "errors", "missed")
        else None,
    }


def pictured(arm: Arm) -> list[dict]:
    return [s for s in arm.first.samples if s.get("image")]


def _final(context: Context, arm: Arm) -> list[dict]:
    """Five images, the same for every model: those that every model has a picture for, else the first ones."""
    shared = [s for s in pictured(arm) if _in_all(context, str(s.get("id")))]
    return [picture_view(context, arm, s) for s in (shared or pictured(arm))[:FINAL]]


def _in_all(context: Context, identity: str) -> bool:
    return all(
        by_id(arm.first).get(identity, {}).get("image")
        for arm in context.study.arms
        if arm.measured
    )


def _extremes(context: Context, arm: Arm) -> dict:
    """The best and the worst of the images that are kept, by CIDEr."""
    scored = sorted(
        (s for s in pictured(arm) if as_number(get_path(s, "scores", "cider")) is not None),
        key=lambda s: s["scores"]["cider"],
    )
    if len(scored) < 2 * EXTREMES:
        return {"best": [], "worst": []}
    return {
        "best": [picture_view(context, arm, s) for s in reversed(scored[-EXTREMES:])],
        "worst": [picture_view(context, arm, s) for s in scored[:EXTREMES]],
    }


def categories(arm: Arm) -> dict[str, dict]:
    """Precision and recall by category: objects, colours, counts, relations, actions."""
    found = get_path(arm.first.metrics, "errors", "categories", default={})
    return (
        {name: value for name, value in found.items() if isinstance(value, dict)}
        if isinstance(found, dict)
        else {}
    )


def errors_table(arm: Arm) -> Table:
    """Objects, colours, counts and relations against the five references."""
    source = arm.first.file("metrics.json")
    rows = [
        [
            text_cell(say_or(f"category.{name}", name)),
            *[
                figure_cell(get_path(value, k), "percent", source)
                for k in ("precision", "recall", "f1")
            ],
            *[figure_cell(get_path(value, k), "count", source) for k in ("mentions", "expected")],
        ]
        for name, value in categories(arm).items()
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


def error_words(arm: Arm) -> list[Table]:
    """The words most often invented and missed."""
    tables, source = [], arm.first.file("metrics.json")
    for part in ("invented", "missed"):
        pairs = [
            p
            for p in get_path(arm.first.metrics, "errors", part, default=[])
            if isinstance(p, list) and len(p) == 2
        ][:12]
        if pairs:
            rows = [[code_cell(word), figure_cell(count, "count", source)] for word, count in pairs]
            tables.append(
                Table(
                    translate(f"errors.{part}"),
                    [translate("errors.word"), translate("data.images")],
                    rows,
                    [source],
                )
            )
    return tables


def _diversity(arm: Arm) -> Table:
    source = arm.first.file("metrics.json")
    forms = {
        "vocabulary_used": "count",
        "new_share": "percent",
        "distinct_share": "percent",
        "words_mean": "points",
        "repeated_phrase_share": "percent",
    }
    rows = [
        [
            text_cell(translate(f"diversity.{key}")),
            figure_cell(get_path(arm.first.metrics, "diversity", key), form, source),
        ]
        for key, form in forms.items()
        if get_path(arm.first.metrics, "diversity", key) is not None
    ]
    return Table(
        translate("diversity.table"),
        [translate("common.what"), translate("common.value")],
        rows,
        [source],
    )
