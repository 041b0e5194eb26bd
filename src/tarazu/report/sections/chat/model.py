"""Section 3 for chat: the model's structure, its parameters by part, and why Base or Instruct."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import data_text, has, number, translate, translate_or
from tarazu.report.render.explanations import explain
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, pairs_table
from tarazu.report.sections.common.base import Context, Section

FILE = "model.json"
COUNTS = (
    "parameters",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
)
NAMES = ("name", "architecture", "model_type", "dtype", "attention")


def model_section(context: Context) -> Section:
    model = context.study.model
    variant = model.get("variant")
    view = {
        "facts": _facts(model),
        "variant": translate_or(f"variant.{variant}", variant) if variant else None,
        "variant_why": translate(f"model.why_{variant}") if has(f"model.why_{variant}") else None,
        "variant_reason": data_text(model.get("variant_reason"))
        if model.get("variant_reason")
        else None,
        "parts": _parts(context, model),
        "tensors": _tensors(model),
        "words": _in_words(model),
        "file": FILE,
    }
    return Section(
        "model", translate("section.model"), "chat/model.html", view, explain("base-vs-instruct")
    )


def _facts(model: dict) -> Table:
    pairs = [
        (translate(f"model.{key}"), code_cell(model[key]) if model.get(key) else None)
        for key in NAMES
    ]
    pairs += [
        (
            translate(f"model.{key}"),
            number_cell(model.get(key), "count", FILE) if model.get(key) is not None else None,
        )
        for key in COUNTS
    ]
    if isinstance(model.get("tied_embeddings"), bool):
        pairs.append(
            (
                translate("model.tied"),
                Cell(translate("common.yes" if model["tied_embeddings"] else "common.no")),
            )
        )
    return pairs_table(
        translate("model.facts"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [FILE],
    )


def _in_words(model: dict):
    """The structure as one sentence, where the numbers for it are there."""
    needed = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size", "parameters")
    if any(as_number(model.get(key)) is None for key in needed):
        return None
    return translate("model.words", **{key: number(model[key], "count", FILE) for key in needed})


def _parts(context: Context, model: dict):
    parts = [p for p in dicts_in(model.get("parts")) if as_number(p.get("parameters")) is not None]
    if not parts:
        return None
    labels, values = [part_name(p.get("name")) for p in parts], [p["parameters"] for p in parts]
    make = partial(charts.bars, labels, values, translate("model.parameters_axis"), format=".3~s")
    return context.figures.add(
        "parameters-by-part",
        translate("model.parts"),
        lambda language: make(language=language),
        [FILE],
    )


def part_name(name):
    """`layer 3` and the named parts in both languages; anything else as it is."""
    head, _, tail = str(name).partition(" ")
    if head == "layer" and tail.isdigit():
        return translate("model.layer", n=number(int(tail), "count"))
    return translate_or(f"part.{name}", name)


def _tensors(model: dict) -> Table:
    rows = []
    for tensor in dicts_in(model.get("tensors")):
        shape = " × ".join(str(n) for n in get_path(tensor, "shape", default=[]))
        rows.append(
            [
                code_cell(tensor.get("name", "")),
                code_cell(shape),
                number_cell(tensor.get("parameters"), "count", FILE),
            ]
        )
    return Table(
        translate("model.tensors"),
        [translate("model.tensor"), translate("model.shape"), translate("model.parameters")],
        rows,
        [FILE],
    )
