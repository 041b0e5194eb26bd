"""The data section of the chat task: rows, structure, repairs, and the loss mask."""

from __future__ import annotations

from typing import Any

from tarazu.report.analysis.study_view import dicts_in, get_path
from tarazu.report.render.bilingual import (
    Bilingual,
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
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import code_or_none, facts_table
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
ROLES = ("system", "user", "assistant")
MAX_EXAMPLES, MAX_TOKENS, MAX_TURN_CHARS = 6, 500, 1500


def data_section(context: Context) -> Section:
    """The section on the data of a chat study."""
    data = context.study.data
    lengths = get_path(data, "structure", "lengths", default={})
    named_lengths = [(f"length.{key}", lengths.get(key)) for key in LENGTHS]
    view = {
        "facts": _facts(data),
        "splits": splits_table(data, ["rows", "tokens", "supervised"]),
        "structure": _structure(get_path(data, "structure", default={})),
        "lengths": lengths_table("data.lengths", "data.counted_in", named_lengths),
        "figures": length_figures(context, LENGTHS),
        "problems": problems_table(data),
        "examples": [_example(e) for e in dicts_in(data.get("examples"))[:MAX_EXAMPLES]],
        "tokens": _tokens(data),
        "note": translate_note(data["note"]) if data.get("note") else None,
        "file": FILE,
    }
    explanations = explain("slimorca-format", "chat-template-and-loss-mask")
    return Section("data", translate("section.data"), "chat/data.html", view, explanations)


def _facts(data: dict) -> Table:
    """Source, hash, tokenizer and chat template."""
    reason = get_path(data, "template", "reason")
    max_length = data.get("max_length")
    facts = [
        ("data.source", text_cell(sources_named(data)) if data.get("source") else None),
        ("data.hash", code_or_none(data.get("sha256"))),
        ("data.tokenizer", code_or_none(data.get("tokenizer"))),
        ("data.template", code_or_none(get_path(data, "template", "name"))),
        ("data.template_reason", text_cell(reason_text(reason)) if reason else None),
        ("data.max_length", number_cell(max_length, "count", FILE) if max_length else None),
    ]
    return facts_table("data.facts", facts, FILE)


def _structure(structure: dict) -> Table:
    """Roles, turns, duplicates and truncation."""
    roles = [
        spaced(number(count, "count", FILE), translate_or(f"role.{role}", role))
        for role, count in get_path(structure, "roles", default={}).items()
    ]
    turns = [
        translate("data.turns_times", turns=data_text(turns), count=number(count, "count", FILE))
        for turns, count in get_path(structure, "turns_per_row", default={}).items()
    ]

    def value(key: str, format: str) -> Cell:
        return number_cell(structure.get(key), format, FILE)

    facts = [
        ("data.rows", value("rows", "count")),
        ("data.roles", Cell(joined(roles)) if roles else None),
        ("data.turns_per_row", Cell(joined(turns)) if turns else None),
        ("data.tokens_per_word", value("tokens_per_word", "two")),
        ("data.english_fraction", value("english_fraction", "percent")),
        ("data.duplicates", value("duplicates", "count")),
        ("data.truncated_rows", value("truncated_rows", "count")),
        ("data.truncated_tokens", value("truncated_token_fraction", "share")),
    ]
    return facts_table("data.structure", facts, FILE)


def turns_view(turns: Any, limit: int = MAX_TURN_CHARS) -> list[dict]:
    """The turns of a conversation: role and text, cut at `limit` characters."""
    return [
        {
            "role": translate_or(f"role.{turn.get('role')}", turn.get("role")),
            "kind": turn.get("role") if turn.get("role") in ROLES else "other",
            "text": data_text(turn.get("text") or "", limit),
        }
        for turn in dicts_in(turns)
    ]


def _example(example: dict) -> dict:
    """One row with its location: a line number, or `file:line` where there are several files."""
    line = example.get("line")
    return {"location": _location(line), "turns": turns_view(example.get("turns"))}


def _location(line: Any) -> Bilingual:
    if isinstance(line, str):
        return translate("data.location", location=code(line))
    return translate("data.line", line=number(line, "count", FILE))


def _tokens(data: dict) -> list[dict]:
    """The tokens of the first example that has them, with visible line breaks and spaces."""
    example = next((e for e in dicts_in(data.get("examples")) if e.get("tokens")), None)
    pairs = [
        pair
        for pair in get_path(example, "tokens", default=[])
        if isinstance(pair, list) and len(pair) == 2
    ]
    return [
        {"text": data_text(_visible(text)), "loss": bool(in_loss)}
        for text, in_loss in pairs[:MAX_TOKENS]
    ]


def _visible(token: object) -> str:
    return str(token).replace("\n", "⏎").replace(" ", "␣") or "∅"
