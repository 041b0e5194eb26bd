"""What `tarazu check` shows of the data in a terminal: rows as turns, structure, problems, tokens under the loss.

It reads `Store.data_json()` alone. Right-to-left text stands between isolates (U+2067 ... U+2069), which a terminal
that knows bidirectional text obeys and another ignores. Texts of rows are never taken for rich's markup.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from tarazu.chat.data.persian import ZWNJ, letter_counts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

LABELS = {"system": "system", "user": "question", "assistant": "answer"}
STYLES = {"system": "yellow", "user": "cyan", "assistant": "green"}
LONGEST_TEXT = 600  # characters of a turn
MOST_TOKENS = 160
NEWLINE, HALF_SPACE, SPACE, SEPARATOR = (
    "⏎",
    "ZWNJ",
    "␣",
    " · ",
)  # lines of tokens break at separators only
_RTL, _LTR, _END = "\u2067", "\u2066", "\u2069"


def show(data: dict, console: Console | None = None, rows: int = 3) -> None:
    """Prints everything of a data.json (chat): see `docs/run_folder.md`."""
    from rich.console import Console

    console = console or Console()
    console.print(_plain(f"data: {data['source']}   tokenizer: {data['tokenizer']}"))
    console.print(_plain(f"template: {data['template']['name']} ({data['template']['reason']})"))
    for example in data["examples"][:rows]:
        console.print()
        console.print(turns(example, console.width))
    console.print()
    console.print(splits(data))
    console.print(lengths(data["structure"]))
    console.print(structure(data["structure"]))
    console.print(problems(data["problems"]))
    marked = next((example for example in data["examples"] if example.get("tokens")), None)
    if marked:
        console.print(_plain(f"tokens of line {marked['line']}; the loss falls on those that are "
                             + ("green" if console.is_terminal else "in brackets")), style="bold")  # fmt: skip
        console.print(tokens(marked["tokens"], brackets=not console.is_terminal))


def turns(example: dict, width: int = 80) -> Text:
    """A row as turns, each with its role; wrapped here, because an isolate ends with its line."""
    text = _plain(f"line {example['line']}")
    text.stylize("bold")
    for turn in example["turns"]:
        said = (
            turn["text"]
            if len(turn["text"]) <= LONGEST_TEXT
            else turn["text"][:LONGEST_TEXT] + " …"
        )
        lines = [
            part
            for line in said.split("\n")
            for part in textwrap.wrap(line, max(20, width - 12)) or [""]
        ]
        text.append(f"\n  {LABELS[turn['role']]:<8} ", style=STYLES[turn["role"]])
        text.append("\n           ".join(isolate(line) for line in lines))
    return text


def lengths(numbers: dict) -> Table:
    """Lengths per row, in characters, words and tokens."""
    table = _table("lengths per row", "", "mean", "p50", "p90", "p99", "max")
    for name, values in numbers["lengths"].items():
        table.add_row(
            name.replace("_", " "),
            *(_number(values[key]) for key in ("mean", "p50", "p90", "p99", "max")),
        )
    return table


def structure(numbers: dict) -> Table:
    """The rest of T1.2: turns, roles, tokens per word, English, duplicates, truncation."""
    table = _table("structure", "", "", left=2)
    cut = f"{numbers['truncated_rows']:,} ({_share(numbers['truncated_token_fraction'])} of tokens)"
    facts = {
        "rows": _number(numbers["rows"]),
        "exchanges per row": ", ".join(
            f"{n}: {count:,}" for n, count in numbers["turns_per_row"].items()
        ),
        "turns by role": ", ".join(
            f"{LABELS[role]} {count:,}" for role, count in numbers["roles"].items()
        ),
        "tokens per word": _number(numbers["tokens_per_word"], 2),
        "letters that are English": _share(numbers["english_fraction"]),
        "duplicates": _number(numbers["duplicates"]),
        "rows cut at max_length": cut,
    }
    for name, value in facts.items():
        table.add_row(name, _plain(value))
    return table


def splits(data: dict) -> Table:
    """Rows and tokens of each split."""
    table = _table("splits", "", "rows", "tokens", "under the loss")
    for name, counts in data["splits"].items():
        table.add_row(name, *(f"{counts[key]:,}" for key in ("rows", "tokens", "supervised")))
    return table


def problems(rows: list[dict]) -> Table | Text:
    """What was repaired and dropped, with the first line numbers."""
    if not rows:
        return _plain("no row had to be repaired or dropped")
    table = _table("repaired and dropped rows", "", "", "rows", "first lines", left=2)
    for row in rows:
        lines = ", ".join(map(str, row["lines"][:5])) + (", …" if row["count"] > 5 else "")
        table.add_row(row["kind"], row["reason"], f"{row['count']:,}", _plain(lines))
    return table


def tokens(row: list[list], brackets: bool) -> Text:
    """The tokens of a row in their order, those under the loss marked, with a dot between them."""
    text = _plain("")
    for i, (token, supervised) in enumerate(row[:MOST_TOKENS]):
        shown = (
            HALF_SPACE
            if token == ZWNJ
            else isolate(token.replace("\n", NEWLINE).replace(" ", SPACE))
        )
        text.append(SEPARATOR if i else "", style="dim")
        text.append(
            f"[{shown}]" if brackets and supervised else shown,
            style="bold green" if supervised else "dim",
        )
    if len(row) > MOST_TOKENS:
        text.append(f" … and {len(row) - MOST_TOKENS} more")
    return text


def isolate(text: str) -> str:
    """The text between isolates of its own direction, so that it cannot reorder what stands around it."""
    shares = letter_counts(text)
    if not shares.letters:
        return text
    return f"{_RTL if shares.arabic * 2 >= shares.letters else _LTR}{text}{_END}"


def _table(title: str, *columns: str, left: int = 1) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(text)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
