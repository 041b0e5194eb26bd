"""Section 2 for chat: rows as people see them, their structure, what was repaired, and which tokens carry loss."""

from __future__ import annotations

from tarazu.report.analysis.study_view import dicts_in, get_path
from tarazu.report.render.bilingual import (
    code,
    data_text,
    joined,
    number,
    spaced,
    translate,
    translate_or,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.known_messages import translate_note
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, pairs_table, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.data_tables import (
    FILE,
    length_figures,
    lengths_table,
    problems_table,
    reason_text,
    sources_named,
    splits_table,
)

LENGTHS = ("characters", "words", "tokens", "answer_tokens")
TOKENS_SHOWN, TURN_CHARACTERS = 500, 1500


def data_section(context: Context) -> Section:
    data = context.study.data
    view = {
        "facts": _facts(data),
        "splits": splits_table(data, ["rows", "tokens", "supervised"]),
        "structure": _structure(data),
        "lengths": lengths_table(data, LENGTHS),
        "figures": length_figures(context, LENGTHS),
        "problems": problems_table(data),
        "examples": [_example(e) for e in dicts_in(data.get("examples"))[:6]],
        "tokens": _tokens(data),
        "note": translate_note(data["note"]) if data.get("note") else None,
        "file": FILE,
    }
    return Section(
        "data",
        translate("section.data"),
        "chat/data.html",
        view,
        explain("slimorca-format", "chat-template-and-loss-mask"),
    )


def _facts(data: dict) -> Table:
    template = get_path(data, "template", "name")
    reason = get_path(data, "template", "reason")
    pairs = [
        (translate("data.source"), text_cell(sources_named(data)) if data.get("source") else None),
        (translate("data.hash"), code_cell(data["sha256"]) if data.get("sha256") else None),
        (
            translate("data.tokenizer"),
            code_cell(data["tokenizer"]) if data.get("tokenizer") else None,
        ),
        (translate("data.template"), Cell(code(template)) if template else None),
        (translate("data.template_reason"), text_cell(reason_text(reason)) if reason else None),
        (
            translate("data.max_length"),
            number_cell(data.get("max_length"), "count", FILE) if data.get("max_length") else None,
        ),
    ]
    return pairs_table(
        translate("data.facts"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [FILE],
    )


def _structure(data: dict) -> Table:
    structure = data.get("structure") if isinstance(data.get("structure"), dict) else {}
    roles = [
        spaced(number(n, "count", FILE), translate_or(f"role.{role}", role))
        for role, n in _items(structure.get("roles"))
    ]
    turns = [
        translate("data.turns_times", turns=data_text(turns), count=number(n, "count", FILE))
        for turns, n in _items(structure.get("turns_per_row"))
    ]
    pairs = [
        (translate("data.rows"), number_cell(structure.get("rows"), "count", FILE)),
        (translate("data.roles"), Cell(joined(roles)) if roles else None),
        (translate("data.turns_per_row"), Cell(joined(turns)) if turns else None),
        (
            translate("data.tokens_per_word"),
            number_cell(structure.get("tokens_per_word"), "two", FILE),
        ),
        (
            translate("data.english_fraction"),
            number_cell(structure.get("english_fraction"), "percent", FILE),
        ),
        (translate("data.duplicates"), number_cell(structure.get("duplicates"), "count", FILE)),
        (
            translate("data.truncated_rows"),
            number_cell(structure.get("truncated_rows"), "count", FILE),
        ),
        (
            translate("data.truncated_tokens"),
            number_cell(structure.get("truncated_token_fraction"), "share", FILE),
        ),
    ]
    return pairs_table(
        translate("data.structure"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [FILE],
    )


def _items(value) -> list[tuple]:
    return list(value.items()) if isinstance(value, dict) else []


def turns_view(turns, limit: int = TURN_CHARACTERS) -> list[dict]:
    """Turns for the template: who speaks, and what."""
    return [
        {
            "role": translate_or(f"role.{t.get('role')}", t.get("role")),
            "kind": t.get("role") if t.get("role") in ("system", "user", "assistant") else "other",
            "text": data_text(t.get("text") or "", limit),
        }
        for t in dicts_in(turns)
    ]


def _example(example: dict) -> dict:
    line = example.get("line")  # of one file; of several, "name:line"
    place = (
        translate("data.place", place=code(line))
        if isinstance(line, str)
        else translate("data.line", line=number(line, "count", FILE))
    )
    return {"place": place, "turns": turns_view(example.get("turns"))}


def _tokens(data: dict) -> list[dict]:
    """The first example that has tokens, token by token."""
    example = next((e for e in dicts_in(data.get("examples")) if e.get("tokens")), None)
    pairs = [
        t for t in get_path(example, "tokens", default=[]) if isinstance(t, list) and len(t) == 2
    ]
    return [
        {"text": data_text(str(text).replace("\n", "⏎").replace(" ", "␣") or "∅"), "loss": bool(on)}
        for text, on in pairs[:TOKENS_SHOWN]
    ]
