"""Sections 3 and 4 for captions: the encoder and its shapes, and the three yardsticks that say what a score means."""

from __future__ import annotations

from tarazu.report.analysis.baselines import baselines
from tarazu.report.analysis.study_view import as_number, get_path
from tarazu.report.render.bilingual import data_text, number, translate
from tarazu.report.render.explanations import explain
from tarazu.report.render.known_messages import translate_known
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, pairs_table, text_cell
from tarazu.report.sections.common.base import Context, Section

FILE = "model.json"


def model_section(context: Context) -> Section:
    encoder = get_path(context.study.model, "encoder", default={})
    view = {
        "facts": _facts(encoder),
        "shapes": _shapes(encoder),
        "words": _words(encoder),
        "note": translate_known(encoder["weights_note"])
        if get_path(encoder, "weights_note")
        else None,
    }
    return Section(
        "model",
        translate("section.model"),
        "captions/model.html",
        view,
        explain("embedding-vs-one-hot"),
    )


def _facts(encoder: dict) -> Table:
    def listed(key: str):
        values = get_path(encoder, key)
        return (
            code_cell(", ".join(f"{v:g}" if as_number(v) is not None else str(v) for v in values))
            if isinstance(values, list)
            else None
        )

    pairs = [
        (translate("model.name"), code_cell(encoder["name"]) if encoder.get("name") else None),
        (translate("data.source"), code_cell(encoder["source"]) if encoder.get("source") else None),
        (translate("data.hash"), code_cell(encoder["sha256"]) if encoder.get("sha256") else None),
        (translate("model.parameters"), number_cell(encoder.get("parameters"), "count", FILE)),
        (translate("encoder.mean"), listed("mean")),
        (translate("encoder.std"), listed("std")),
    ]
    return pairs_table(
        translate("encoder.facts"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [FILE],
    )


def _shapes(encoder: dict) -> Table:
    """What goes in and what comes out, dimension by dimension."""
    rows = []
    for key in ("input", "map", "features", "pooled"):
        value = get_path(encoder, key)
        if value is not None:
            shape = " × ".join(str(n) for n in value) if isinstance(value, list) else str(value)
            rows.append(
                [
                    text_cell(translate(f"encoder.{key}")),
                    code_cell(shape),
                    text_cell(translate(f"encoder.{key}_means")),
                ]
            )
    return Table(
        translate("encoder.shapes"),
        [translate("common.what"), translate("model.shape"), translate("encoder.means")],
        rows,
        [FILE],
    )


def _words(encoder: dict):
    grid, pooled, features = (
        get_path(encoder, "map", 0),
        as_number(get_path(encoder, "pooled")),
        get_path(encoder, "features", 0),
    )
    if None in (as_number(grid), pooled, as_number(features)):
        return None
    return translate(
        "encoder.words",
        places=number(features, "count", FILE),
        grid=number(grid, "count", FILE),
        width=number(pooled, "count", FILE),
        side=number(get_path(encoder, "input", 1), "count", FILE),
    )


def baselines_section(context: Context) -> Section:
    view = {"table": baseline_table(context), "constant": None}
    found, _ = baselines(context.study)
    caption = get_path(found.get("constant"), "caption")
    view["constant"] = data_text(caption, 200) if caption else None
    return Section("baselines", translate("section.baselines"), "captions/baselines.html", view)


def baseline_table(context: Context) -> Table:
    """BLEU, CIDEr and ROUGE-L of the three yardsticks."""
    found, source = baselines(context.study)
    rows = [
        [text_cell(translate(f"baseline.{name}")), *score_cells(scores, source)]
        for name, scores in found.items()
    ]
    return Table(
        translate("baseline.table"),
        [translate("baseline.what"), *score_columns()],
        rows,
        [source] if source else [],
    )


def score_columns() -> list:
    return [
        *[translate(f"metric.bleu{n}") for n in (1, 2, 3, 4)],
        translate("metric.cider"),
        translate("metric.rouge_l"),
        translate("metric.meteor"),
    ]


def score_cells(scores: dict, source: str) -> list[Cell]:
    """The figures of one S of the contract."""
    return [
        *[number_cell(get_path(scores, "bleu", n), "points", source) for n in range(4)],
        *[
            number_cell(get_path(scores, key), "points", source)
            for key in ("cider", "rouge_l", "meteor")
        ],
    ]
