"""The model section of the chat task: structure, parameters by part, Base or Instruct."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    data_text,
    has,
    number,
    translate,
    translate_or,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Table, code_cell, number_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import (
    code_or_none,
    facts_table,
    shape_text,
    translate_all,
)

FILE = "model.json"
NAMES = ("name", "architecture", "model_type", "dtype", "attention")
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
IN_SUMMARY = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size", "parameters")


def model_section(context: Context) -> Section:
    """The section on the model of a chat study."""
    model = context.study.model
    variant, reason = model.get("variant"), model.get("variant_reason")
    why = f"model.why_{variant}"
    view = {
        "facts": _facts(model),
        "variant": translate_or(f"variant.{variant}", variant) if variant else None,
        "variant_meaning": translate(why) if has(why) else None,
        "variant_reason": data_text(reason) if reason else None,
        "parts": _part_figure(context, model),
        "tensors": _tensor_table(model),
        "summary": _summary(model),
    }
    title, explanations = translate("section.model"), explain("base-vs-instruct")
    return Section("model", title, "chat/model.html", view, explanations)


def _facts(model: dict) -> Table:
    """Names, sizes, and whether the embeddings are tied."""
    facts = [(f"model.{key}", code_or_none(model.get(key))) for key in NAMES]
    facts += [
        (f"model.{key}", number_cell(model[key], "count", FILE))
        for key in COUNTS
        if model.get(key) is not None
    ]
    tied = model.get("tied_embeddings")
    if isinstance(tied, bool):
        facts.append(("model.tied", translate("common.yes" if tied else "common.no")))
    return facts_table("model.facts", facts, FILE)


def _summary(model: dict) -> Bilingual | None:
    """The structure in one sentence, where all its numbers are known."""
    if any(as_number(model.get(key)) is None for key in IN_SUMMARY):
        return None
    return translate("model.summary", **{k: number(model[k], "count", FILE) for k in IN_SUMMARY})


def _part_figure(context: Context, model: dict) -> Figure | None:
    """The parameters of each part, as bars."""
    parts = [p for p in dicts_in(model.get("parts")) if as_number(p.get("parameters")) is not None]
    if not parts:
        return None
    labels, counts = [part_name(p.get("name")) for p in parts], [p["parameters"] for p in parts]
    title = translate("model.parameters_axis")
    make = partial(charts.bars, labels, counts, title, format=".3~s")
    return context.figures.add("parameters-by-part", translate("model.parts"), make, [FILE])


def part_name(name: object) -> Bilingual:
    """`layer 3` and other known parts in both languages; an unknown part as the file has it."""
    kind, _, index = str(name).partition(" ")
    if kind == "layer" and index.isdigit():
        return translate("model.layer", n=number(int(index), "count"))
    return translate_or(f"part.{name}", name)


def _tensor_table(model: dict) -> Table:
    """Name, shape and size of the tensors of one block and outside the blocks."""
    rows = [
        [
            code_cell(tensor.get("name", "")),
            code_cell(shape_text(get_path(tensor, "shape", default=[]))),
            number_cell(tensor.get("parameters"), "count", FILE),
        ]
        for tensor in dicts_in(model.get("tensors"))
    ]
    columns = translate_all("model.tensor", "model.shape", "model.parameters")
    return Table(translate("model.tensors"), columns, rows, [FILE])
