"""Section 2 for chat: rows as people see them, their structure, what was repaired, and which tokens carry loss."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    has,
    joined,
    number,
    translate_or,
    spaced,
    translate,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.known_messages import translate_note
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, pairs_table, text_cell
from tarazu.report.sections.common.base import Context, Section

FILE = "data.json"
LINES_SHOWN = 6  # of each problem; data.json has more
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


def sources_named(data: dict) -> Bilingual:
    """Where the rows are from: a list of files as each language writes lists."""
    whole = str(data.get("source", "?"))
    parts = whole.split(", ")
    return (
        joined([code(one) for one in parts])
        if not any(" " in one or ":" in one for one in parts)
        else Bilingual(code(whole), code(whole))
    )


def splits_table(data: dict, columns: list[str]) -> Table:
    """Rows (or images) and tokens (or captions) of each split, with its share."""
    splits = data.get("splits") if isinstance(data.get("splits"), dict) else {}
    first = columns[0]
    total = sum(as_number(get_path(splits, s, first)) or 0 for s in splits)
    rows = []
    for name in [s for s in ("train", "validation", "test") if s in splits]:
        size = as_number(get_path(splits, name, first))
        share = size / total if size is not None and total else None
        rows.append(
            [
                text_cell(translate(f"split.{name}")),
                *[number_cell(get_path(splits, name, c), "count", FILE) for c in columns],
                number_cell(share, "percent", FILE),
            ]
        )
    return Table(
        translate("data.splits"),
        [
            translate("data.split"),
            *[translate(f"data.{c}") for c in columns],
            translate("data.share"),
        ],
        rows,
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


def lengths_table(data: dict, keys: tuple) -> Table:
    """Mean, percentiles and the longest, for each way of counting."""
    columns = ("mean", "p50", "p90", "p99", "max")
    rows = []
    for key in keys:
        values = get_path(data, "structure", "lengths", key, default={})
        if values:
            rows.append(
                [
                    text_cell(translate(f"length.{key}")),
                    *[
                        number_cell(get_path(values, c), "points" if c == "mean" else "count", FILE)
                        for c in columns
                    ],
                ]
            )
    return Table(
        translate("data.lengths"),
        [translate("data.counted_in"), *[translate(f"length.{c}") for c in columns]],
        rows,
        [FILE],
    )


def length_figures(context: Context, keys: tuple) -> list[Figure]:
    """One histogram for each way of counting."""
    found = []
    for key in keys:
        edges = get_path(
            context.study.data, "structure", "lengths", key, "histogram", "edges", default=[]
        )
        counts = get_path(
            context.study.data, "structure", "lengths", key, "histogram", "counts", default=[]
        )
        if len(edges) > 1 and counts:
            title = translate(f"length.{key}")
            make = partial(charts.histogram, edges, counts, title, translate("data.rows_axis"))
            tail = all(as_number(edge) is not None for edge in edges) and edges[-1] - edges[
                -2
            ] > charts.TAIL * (edges[1] - edges[0])
            found.append(
                context.figures.add(
                    f"lengths-{key}",
                    translate("data.lengths_of_tail" if tail else "data.lengths_of", what=title),
                    make,
                    [FILE],
                )
            )
    return found


def reason_text(reason: object) -> object:
    """A reason that tarazu itself gives, in both languages; any other as it stands in the file."""
    key = f"reason.{reason}"
    return translate(key) if has(key) else reason


def problems_table(data: dict) -> Table:
    """What was repaired or dropped, how often, and where first."""
    rows = []
    for problem in dicts_in(data.get("problems")):
        lines = get_path(problem, "lines", default=[]) or get_path(problem, "names", default=[])
        shown = (
            ", ".join(str(line) for line in lines[:LINES_SHOWN]) if isinstance(lines, list) else ""
        )
        shown += " …" if shown and len(lines) > LINES_SHOWN else ""
        kind = translate_or(f"problem.{problem.get('kind')}", problem.get("kind"))
        rows.append(
            [
                text_cell(reason_text(problem.get("reason", ""))),
                text_cell(kind),
                number_cell(problem.get("count"), "count", FILE),
                code_cell(shown),
            ]
        )
    return Table(
        translate("data.problems"),
        [
            translate("data.reason"),
            translate("data.done"),
            translate("data.count"),
            translate("data.lines"),
        ],
        rows,
        [FILE],
    )


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
