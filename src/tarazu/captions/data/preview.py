"""What `tarazu check` shows of a captions recipe's data in a terminal: captions as words and numbers, sizes, problems.

It reads a data.json alone: see docs/run_folder.md. Captions are never taken for rich's markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SPECIALS = ("<pad>", "<sos>", "<eos>", "<unk>")


def show(data: dict, console: Console | None = None, rows: int = 3) -> None:
    """Prints everything of a data.json (captions)."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(
        Text(f"data: {data['source']}   layout: {data['layout']}   split by {data['split_by']}")
    )
    if data["note"]:
        console.print(Text(data["note"], style="yellow"))
    for example in data["examples"][:rows]:
        console.print()
        console.print(caption(example))
    console.print()
    for table in (splits(data), words(data["structure"]), problems(data)):
        console.print(table)


def caption(example: dict) -> Text:
    """A picture's captions as written, and the first as words and as numbers; <pad> carries no loss."""
    from rich.text import Text

    text = Text(example["id"], style="bold")
    for raw in example["captions"]:
        text.append(f"\n  {raw}", style="not bold")
    text.append("\n  words   ", style="cyan not bold")
    text.append(" ".join(example["processed"][0]), style="not bold")
    text.append("\n  numbers ", style="cyan not bold")
    numbers = example["ids"][0]
    named = (SPECIALS[number] if number < len(SPECIALS) else str(number) for number in numbers)
    text.append(" ".join(named), style="not bold")
    return text


def splits(data: dict) -> Table:
    """Images, captions and their lengths by split."""
    from rich.table import Table

    table = Table("split", "images", "captions", "words: mean", "90%", "99%", "longest")
    for split, sizes in data["splits"].items():
        lengths = data["structure"]["lengths_per_split"][split]
        figures = [
            f"{lengths['mean']:.1f}",
            *(f"{lengths[key]:g}" for key in ("p90", "p99", "max")),
        ]
        table.add_row(split, f"{sizes['images']:,}", f"{sizes['captions']:,}", *figures)
    return table


def words(structure: dict) -> Table:
    """The vocabulary and what it leaves out."""
    from rich.table import Table
    from rich.text import Text

    table = Table("vocabulary", "")
    table.add_row("words in it, the four special tokens too", f"{structure['vocabulary']:,}")
    table.add_row("a word must be in training so often", str(structure["min_count"]))
    table.add_row(
        "unknown among the test words", f"{100 * structure['unknown_test_fraction']:.1f}%"
    )
    table.add_row(
        "captions cut at the fixed length",
        f"{structure['truncated_captions']:,} (longer than {structure['max_length']})",
    )
    sizes = ", ".join(
        f"{count}: {size:,}" for count, size in structure["size_by_min_count"].items()
    )
    table.add_row("its size by minimum count", sizes)
    table.add_row(
        "most frequent",
        Text(", ".join(f"{word} {count:,}" for word, count in structure["top_words"][:10])),
    )
    return table


def problems(data: dict) -> Table:
    """What was dropped or repaired, with the first names, and the copies that were found."""
    from rich.table import Table
    from rich.text import Text

    table = Table("odd things", "count", "which")
    for problem in data["problems"]:
        table.add_row(
            Text(problem["reason"]),
            f"{problem['count']:,} {problem['kind']}",
            Text(", ".join(problem["names"][:3])),
        )
    for kind in ("exact", "near"):
        pairs = [pair for pair in data["duplicates"] if pair["kind"] == kind]
        if pairs:
            table.add_row(
                f"{kind} copies",
                f"{len(pairs):,} pairs",
                Text(f"{pairs[0]['a']} = {pairs[0]['b']}"),
            )
    return table
