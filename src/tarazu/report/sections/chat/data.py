"""Section 2 for chat: rows as people see them, their structure, what was repaired, and which tokens carry loss."""

from __future__ import annotations

from functools import partial

from tarazu.report.render import charts
from tarazu.report.render.tables import Cell, Table, code_cell, figure_cell, pairs_table, text_cell
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.known_messages import noted
from tarazu.report.analysis.study_view import as_number, dig, records
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.render.bilingual import Both, code, data_text, has, joined, number, say, say_or, spaced

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
        "examples": [_example(e) for e in records(data.get("examples"))[:6]],
        "tokens": _tokens(data),
        "note": noted(data["note"]) if data.get("note") else None,
        "file": FILE,
    }
    return Section(
        "data", say("section.data"), "data.html", view, explain("slimorca-format", "chat-template-and-loss-mask")
    )


def _facts(data: dict) -> Table:
    template = dig(data, "template", "name")
    reason = dig(data, "template", "reason")
    pairs = [
        (say("data.source"), text_cell(sources_named(data)) if data.get("source") else None),
        (say("data.hash"), code_cell(data["sha256"]) if data.get("sha256") else None),
        (say("data.tokenizer"), code_cell(data["tokenizer"]) if data.get("tokenizer") else None),
        (say("data.template"), Cell(code(template)) if template else None),
        (say("data.template_reason"), text_cell(reason_text(reason)) if reason else None),
        (
            say("data.max_length"),
            figure_cell(data.get("max_length"), "count", FILE) if data.get("max_length") else None,
        ),
    ]
    return pairs_table(say("data.facts"), pairs, [say("common.what"), say("common.value")], [FILE])


def sources_named(data: dict) -> Both:
    """Where the rows are from: a list of files as each language writes lists."""
    whole = str(data.get("source", "?"))
    parts = whole.split(", ")
    return joined([code(one) for one in parts]) if not any(" " in one or ":" in one for one in parts) else Both(code(whole), code(whole))


def splits_table(data: dict, columns: list[str]) -> Table:
    """Rows (or images) and tokens (or captions) of each split, with its share."""
    splits = data.get("splits") if isinstance(data.get("splits"), dict) else {}
    first = columns[0]
    total = sum(as_number(dig(splits, s, first)) or 0 for s in splits)
    rows = []
    for name in [s for s in ("train", "validation", "test") if s in splits]:
        size = as_number(dig(splits, name, first))
        share = size / total if size is not None and total else None
        rows.append(
            [
                text_cell(say(f"split.{name}")),
                *[figure_cell(dig(splits, name, c), "count", FILE) for c in columns],
                figure_cell(share, "percent", FILE),
            ]
        )
    return Table(
        say("data.splits"), [say("data.split"), *[say(f"data.{c}") for c in columns], say("data.share")], rows, [FILE]
    )


def _structure(data: dict) -> Table:
    structure = data.get("structure") if isinstance(data.get("structure"), dict) else {}
    roles = [
        spaced(number(n, "count", FILE), say_or(f"role.{role}", role)) for role, n in _items(structure.get("roles"))
    ]
    turns = [
        say("data.turns_times", turns=data_text(turns), count=number(n, "count", FILE))
        for turns, n in _items(structure.get("turns_per_row"))
    ]
    pairs = [
        (say("data.rows"), figure_cell(structure.get("rows"), "count", FILE)),
        (say("data.roles"), Cell(joined(roles)) if roles else None),
        (say("data.turns_per_row"), Cell(joined(turns)) if turns else None),
        (say("data.tokens_per_word"), figure_cell(structure.get("tokens_per_word"), "two", FILE)),
        (say("data.english_share"), figure_cell(structure.get("english_share"), "percent", FILE)),
        (say("data.duplicates"), figure_cell(structure.get("duplicates"), "count", FILE)),
        (say("data.truncated_rows"), figure_cell(structure.get("truncated_rows"), "count", FILE)),
        (say("data.truncated_tokens"), figure_cell(structure.get("truncated_tokens_share"), "share", FILE)),
    ]
    return pairs_table(say("data.structure"), pairs, [say("common.what"), say("common.value")], [FILE])


def _items(value) -> list[tuple]:
    return list(value.items()) if isinstance(value, dict) else []


def lengths_table(data: dict, keys: tuple) -> Table:
    """Mean, percentiles and the longest, for each way of counting."""
    columns = ("mean", "p50", "p90", "p99", "max")
    rows = []
    for key in keys:
        values = dig(data, "structure", "lengths", key, default={})
        if values:
            rows.append(
                [
                    text_cell(say(f"length.{key}")),
                    *[figure_cell(dig(values, c), "points" if c == "mean" else "count", FILE) for c in columns],
                ]
            )
    return Table(say("data.lengths"), [say("data.counted_in"), *[say(f"length.{c}") for c in columns]], rows, [FILE])


def length_figures(context: Context, keys: tuple) -> list[Figure]:
    """One histogram for each way of counting."""
    found = []
    for key in keys:
        edges = dig(context.study.data, "structure", "lengths", key, "histogram", "edges", default=[])
        counts = dig(context.study.data, "structure", "lengths", key, "histogram", "counts", default=[])
        if len(edges) > 1 and counts:
            title = say(f"length.{key}")
            make = partial(charts.histogram, edges, counts, title, say("data.rows_axis"))
            tail = all(as_number(edge) is not None for edge in edges) and edges[-1] - edges[-2] > charts.TAIL * (edges[1] - edges[0])
            found.append(context.gallery.add(f"lengths-{key}", say("data.lengths_of_tail" if tail else "data.lengths_of", what=title), make, [FILE]))
    return found


def reason_text(reason: object) -> object:
    """A reason that tarazu itself gives, in both languages; any other as it stands in the file."""
    key = f"reason.{reason}"
    return say(key) if has(key) else reason


def problems_table(data: dict) -> Table:
    """What was repaired or dropped, how often, and where first."""
    rows = []
    for problem in records(data.get("problems")):
        lines = dig(problem, "lines", default=[]) or dig(problem, "names", default=[])
        shown = ", ".join(str(line) for line in lines[:LINES_SHOWN]) if isinstance(lines, list) else ""
        shown += " …" if shown and len(lines) > LINES_SHOWN else ""
        kind = say_or(f"problem.{problem.get('kind')}", problem.get("kind"))
        rows.append(
            [
                text_cell(reason_text(problem.get("reason", ""))),
                text_cell(kind),
                figure_cell(problem.get("count"), "count", FILE),
                code_cell(shown),
            ]
        )
    return Table(
        say("data.problems"), [say("data.reason"), say("data.done"), say("data.count"), say("data.lines")], rows, [FILE]
    )


def turns_view(turns, limit: int = TURN_CHARACTERS) -> list[dict]:
    """Turns for the template: who speaks, and what."""
    return [
        {
            "role": say_or(f"role.{t.get('role')}", t.get("role")),
            "kind": t.get("role") if t.get("role") in ("system", "human", "gpt") else "other",
            "text": data_text(t.get("text") or "", limit),
        }
        for t in records(turns)
    ]


def _example(example: dict) -> dict:
    line = example.get("line")  # of one file; of several, "name:line"
    place = say("data.place", place=code(line)) if isinstance(line, str) else say("data.line", line=number(line, "count", FILE))
    return {"place": place, "turns": turns_view(example.get("turns"))}


def _tokens(data: dict) -> list[dict]:
    """The first example that has tokens, token by token."""
    example = next((e for e in records(data.get("examples")) if e.get("tokens")), None)
    pairs = [t for t in dig(example, "tokens", default=[]) if isinstance(t, list) and len(t) == 2]
    return [
        {"text": data_text(str(text).replace("\n", "⏎").replace(" ", "␣") or "∅"), "loss": bool(on)}
        for text, on in pairs[:TOKENS_SHOWN]
    ]
