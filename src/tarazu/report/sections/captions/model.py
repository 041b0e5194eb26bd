"""Sections 3 and 4 for captions: the encoder and its shapes, and the three yardsticks that say what a score means."""

from __future__ import annotations

from tarazu.report.render.tables import Cell, Table, code_cell, figure_cell, pairs_table, text_cell
from tarazu.report.render.explanations import explain
from tarazu.report.render.known_messages import told
from tarazu.report.analysis.study_view import as_number, dig
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.render.bilingual import data_text, number, say
from tarazu.report.analysis.baselines import yardsticks

FILE = "model.json"


def model_section(context: Context) -> Section:
    encoder = dig(context.study.model, "encoder", default={})
    view = {
        "facts": _facts(encoder),
        "shapes": _shapes(encoder),
        "words": _words(encoder),
        "note": told(encoder["weights_note"]) if dig(encoder, "weights_note") else None,
    }
    return Section("model", say("section.model"), "captions_model.html", view, explain("embedding-vs-one-hot"))


def _facts(encoder: dict) -> Table:
    def listed(key: str):
        values = dig(encoder, key)
        return (
            code_cell(", ".join(f"{v:g}" if as_number(v) is not None else str(v) for v in values))
            if isinstance(values, list)
            else None
        )

    pairs = [
        (say("model.name"), code_cell(encoder["name"]) if encoder.get("name") else None),
        (say("data.source"), code_cell(encoder["source"]) if encoder.get("source") else None),
        (say("data.hash"), code_cell(encoder["sha256"]) if encoder.get("sha256") else None),
        (say("model.parameters"), figure_cell(encoder.get("parameters"), "count", FILE)),
        (say("encoder.mean"), listed("mean")),
        (say("encoder.std"), listed("std")),
    ]
    return pairs_table(say("encoder.facts"), pairs, [say("common.what"), say("common.value")], [FILE])


def _shapes(encoder: dict) -> Table:
    """What goes in and what comes out, dimension by dimension."""
    rows = []
    for key in ("input", "map", "features", "pooled"):
        value = dig(encoder, key)
        if value is not None:
            shape = " × ".join(str(n) for n in value) if isinstance(value, list) else str(value)
            rows.append([text_cell(say(f"encoder.{key}")), code_cell(shape), text_cell(say(f"encoder.{key}_means"))])
    return Table(say("encoder.shapes"), [say("common.what"), say("model.shape"), say("encoder.means")], rows, [FILE])


def _words(encoder: dict):
    grid, pooled, features = dig(encoder, "map", 0), as_number(dig(encoder, "pooled")), dig(encoder, "features", 0)
    if None in (as_number(grid), pooled, as_number(features)):
        return None
    return say(
        "encoder.words",
        places=number(features, "count", FILE),
        grid=number(grid, "count", FILE),
        width=number(pooled, "count", FILE),
        side=number(dig(encoder, "input", 1), "count", FILE),
    )


def yardsticks_section(context: Context) -> Section:
    view = {"table": yardstick_table(context), "constant": None}
    found, _ = yardsticks(context.study)
    caption = dig(found.get("constant"), "caption")
    view["constant"] = data_text(caption, 200) if caption else None
    return Section("before", say("section.yardsticks"), "captions_before.html", view)


def yardstick_table(context: Context) -> Table:
    """BLEU, CIDEr and ROUGE-L of the three yardsticks."""
    found, source = yardsticks(context.study)
    rows = [[text_cell(say(f"yardstick.{name}")), *score_cells(scores, source)] for name, scores in found.items()]
    return Table(say("yardstick.table"), [say("yardstick.what"), *score_columns()], rows, [source] if source else [])


def score_columns() -> list:
    return [
        *[say(f"measure.bleu{n}") for n in (1, 2, 3, 4)],
        say("measure.cider"),
        say("measure.rouge_l"),
        say("measure.meteor"),
    ]


def score_cells(scores: dict, source: str) -> list[Cell]:
    """The figures of one S of the contract."""
    return [
        *[figure_cell(dig(scores, "bleu", n), "points", source) for n in range(4)],
        *[figure_cell(dig(scores, key), "points", source) for key in ("cider", "rouge_l", "meteor")],
    ]
