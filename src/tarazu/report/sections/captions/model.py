"""The model section of the captions task: the image encoder and its shapes."""

from __future__ import annotations

from typing import Any

from tarazu.report.analysis.study_view import as_number, get_path
from tarazu.report.render.bilingual import Bilingual, number, translate
from tarazu.report.render.explanations import explain
from tarazu.report.render.known_messages import translate_known
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import (
    code_or_none,
    facts_table,
    shape_text,
    translate_all,
)

FILE = "model.json"


def model_section(context: Context) -> Section:
    """The section on the image encoder."""
    encoder = get_path(context.study.model, "encoder", default={})
    note = encoder.get("weights_note")
    view = {
        "facts": _facts(encoder),
        "shapes": _shapes(encoder),
        "summary": _summary(encoder),
        "note": translate_known(note) if note else None,
    }
    title, explanations = translate("section.model"), explain("embedding-vs-one-hot")
    return Section("model", title, "captions/model.html", view, explanations)


def _facts(encoder: dict) -> Table:
    """Name, source, hash, size and normalisation of the encoder."""
    facts = [
        ("model.name", code_or_none(encoder.get("name"))),
        ("data.source", code_or_none(encoder.get("source"))),
        ("data.hash", code_or_none(encoder.get("sha256"))),
        ("model.parameters", number_cell(encoder.get("parameters"), "count", FILE)),
        ("encoder.mean", _numbers_cell(encoder.get("mean"))),
        ("encoder.std", _numbers_cell(encoder.get("std"))),
    ]
    return facts_table("encoder.facts", facts, FILE)


def _numbers_cell(values: Any) -> Cell | None:
    """A list of numbers, such as one for each colour channel."""
    if not isinstance(values, list):
        return None
    texts = [f"{value:g}" if as_number(value) is not None else str(value) for value in values]
    return code_cell(", ".join(texts))


def _shapes(encoder: dict) -> Table:
    """The shape of the input and of each output, with its meaning."""
    rows = [
        [
            text_cell(translate(f"encoder.{key}")),
            code_cell(shape_text(encoder[key])),
            text_cell(translate(f"encoder.{key}_meaning")),
        ]
        for key in ("input", "map", "features", "pooled")
        if encoder.get(key) is not None
    ]
    columns = translate_all("common.what", "model.shape", "encoder.meaning")
    return Table(translate("encoder.shapes"), columns, rows, [FILE])


def _summary(encoder: dict) -> Bilingual | None:
    """The grid and the vectors in one sentence, where their sizes are known."""
    sizes = {
        "regions": get_path(encoder, "features", 0),
        "grid": get_path(encoder, "map", 0),
        "width": encoder.get("pooled"),
    }
    if any(as_number(size) is None for size in sizes.values()):
        return None
    sizes["side"] = get_path(encoder, "input", 1)
    shown = {name: number(size, "count", FILE) for name, size in sizes.items()}
    return translate("encoder.summary", **shown)
