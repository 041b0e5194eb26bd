"""What `tarazu check` prints of the data: rows as turns, statistics, issues, loss mask.

It reads a `data.json` (see docs/run_folder.md) and nothing else. Right-to-left text is put between
Unicode isolates (U+2067 ... U+2069): terminals with bidirectional text obey them, others ignore
them. Text of rows is never parsed as rich's markup.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tarazu.chat.data.persian import ZWNJ, letter_counts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

LABELS = {"system": "system", "user": "question", "assistant": "answer"}
STYLES = {"system": "yellow", "user": "cyan", "assistant": "green"}
MAX_TEXT = 600  # characters shown of a turn
MAX_TOKENS = 160
# Signs for characters of a token that would not be visible.
NEWLINE, HALF_SPACE, SPACE = "⏎", "ZWNJ", "␣"
SEPARATOR = " · "  # between tokens; the only place where a line of tokens may break
_RTL, _LTR, _END = "\u2067", "\u2066", "\u2069"


def show(data: dict[str, Any], console: Console | None = None, rows: int = 3) -> None:
    """Print a `data.json`.

    Args:
        data: its content.
        console: where to print; default: the terminal.
        rows: how many examples to show.
    """
    from rich.console import Console

    console = console or Console()
    template = data["template"]
    console.print(_plain(f"data: {data['source']}   tokenizer: {data['tokenizer']}"))
    console.print(_plain(f"template: {template['name']} ({template['reason']})"))
    for example in data["examples"][:rows]:
        console.print()
        console.print(turns(example, console.width))
    console.print()
    console.print(splits(data))
    console.print(lengths(data["structure"]))
    console.print(structure(data["structure"]))
    console.print(problems(data["problems"]))
    for example in data["examples"]:
        if example.get("tokens"):
            marked = "green" if console.is_terminal else "in brackets"
            title = f"tokens of line {example['line']}; the loss falls on those that are {marked}"
            console.print(_plain(title), style="bold")
            console.print(tokens(example["tokens"], brackets=not console.is_terminal))
            break


def turns(example: dict[str, Any], width: int = 80) -> Text:
    """One example as turns, each with its role.

    Lines are wrapped here, because an isolate ends with its line.
    """
    text = _plain(f"line {example['line']}")
    text.stylize("bold")
    for turn in example["turns"]:
        shown = turn["text"]
        if len(shown) > MAX_TEXT:
            shown = shown[:MAX_TEXT] + " …"
        lines = []
        for line in shown.split("\n"):
            lines += textwrap.wrap(line, max(20, width - 12)) or [""]
        text.append(f"\n  {LABELS[turn['role']]:<8} ", style=STYLES[turn["role"]])
        text.append("\n           ".join(isolate(line) for line in lines))
    return text


def lengths(statistics: dict[str, Any]) -> Table:
    """Lengths per row in characters, words and tokens."""
    columns = ("mean", "p50", "p90", "p99", "max")
    table = _table("lengths per row", "", *columns)
    for name, values in statistics["lengths"].items():
        table.add_row(name.replace("_", " "), *(_number(values[key]) for key in columns))
    return table


def structure(statistics: dict[str, Any]) -> Table:
    """The other statistics: turns, roles, tokens per word, English, duplicates, truncation."""
    table = _table("structure", "", "", left=2)
    exchanges = statistics["turns_per_row"].items()
    roles = statistics["roles"].items()
    truncated = _percent(statistics["truncated_token_fraction"])
    cells = {
        "rows": _number(statistics["rows"]),
        "exchanges per row": ", ".join(f"{n}: {count:,}" for n, count in exchanges),
        "turns by role": ", ".join(f"{LABELS[role]} {count:,}" for role, count in roles),
        "tokens per word": _number(statistics["tokens_per_word"], 2),
        "letters that are English": _percent(statistics["english_fraction"]),
        "duplicates": _number(statistics["duplicates"]),
        "rows cut at max_length": f"{statistics['truncated_rows']:,} ({truncated} of tokens)",
    }
    for name, value in cells.items():
        table.add_row(name, _plain(value))
    return table


def splits(data: dict[str, Any]) -> Table:
    """Rows and tokens of each split."""
    table = _table("splits", "", "rows", "tokens", "under the loss")
    for name, counts in data["splits"].items():
        table.add_row(name, *(f"{counts[key]:,}" for key in ("rows", "tokens", "supervised")))
    return table


def problems(rows: list[dict[str, Any]]) -> Table | Text:
    """Repaired and dropped rows by reason, with the first line numbers."""
    if not rows:
        return _plain("no row had to be repaired or dropped")
    table = _table("repaired and dropped rows", "", "", "rows", "first lines", left=2)
    for row in rows:
        lines = ", ".join(map(str, row["lines"][:5])) + (", …" if row["count"] > 5 else "")
        table.add_row(row["kind"], row["reason"], f"{row['count']:,}", _plain(lines))
    return table


def tokens(row: Sequence[tuple[str, int]], brackets: bool) -> Text:
    """The tokens of a row, those under the loss marked.

    Args:
        row: (text of the token, 1 under the loss or 0) of each token.
        brackets: put marked tokens in brackets; colour alone does not show in a file.
    """
    text = _plain("")
    for i, (token, supervised) in enumerate(row[:MAX_TOKENS]):
        visible = token.replace("\n", NEWLINE).replace(" ", SPACE)
        shown = HALF_SPACE if token == ZWNJ else isolate(visible)
        if i:
            text.append(SEPARATOR, style="dim")
        text.append(
            f"[{shown}]" if brackets and supervised else shown,
            style="bold green" if supervised else "dim",
        )
    if len(row) > MAX_TOKENS:
        text.append(f" … and {len(row) - MAX_TOKENS} more")
    return text


def isolate(text: str) -> str:
    """The text between isolates of its own direction, so that it reorders nothing else."""
    counts = letter_counts(text)
    if not counts.letters:
        return text
    return f"{_RTL if counts.arabic * 2 >= counts.letters else _LTR}{text}{_END}"


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table; the first `left` columns are left-aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def _plain(text: str) -> Text:
    """Text that is not parsed as markup."""
    from rich.text import Text

    return Text(text)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
