"""Show a captions recipe's data in a terminal: words and ids, sizes, problems.

Everything comes from data.json alone (see docs/run_folder.md). Captions are shown as plain text,
never as rich's markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SPECIALS = ("<pad>", "<sos>", "<eos>", "<unk>")


def show(data: dict, console: Console | None = None, rows: int = 3) -> None:
    """Print a data.json.

    Args:
        data: its content.
        console: where to; by default the terminal.
        rows: how many examples.
    """
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
    """Return an image's captions as written, and the first one as words and as ids."""
    from rich.text import Text

    text = Text(example["id"], style="bold")
    for raw in example["captions"]:
        text.append(f"\n  {raw}", style="not bold")
    text.append("\n  words   ", style="cyan not bold")
    text.append(" ".join(example["processed"][0]), style="not bold")
    text.append("\n  ids     ", style="cyan not bold")
    ids = example["ids"][0]
    shown = (SPECIALS[number] if number < len(SPECIALS) else str(number) for number in ids)
    text.append(" ".join(shown), style="not bold")
    return text


def splits(data: dict) -> Table:
    """Return images, captions and their lengths by split."""
    from rich.table import Table

    table = Table("split", "images", "captions", "words: mean", "90%", "99%", "longest")
    for split, sizes in data["splits"].items():
        lengths = data["structure"]["lengths_per_split"][split]
        percentiles = [f"{lengths[key]:g}" for key in ("p90", "p99", "max")]
        table.add_row(
            split,
            f"{sizes['images']:,}",
            f"{sizes['captions']:,}",
            f"{lengths['mean']:.1f}",
            *percentiles,
        )
    return table


def words(structure: dict) -> Table:
    """Return the vocabulary's size and what it leaves out."""
    from rich.table import Table
    from rich.text import Text

    sizes = ", ".join(f"{n}: {size:,}" for n, size in structure["size_by_min_count"].items())
    top_words = ", ".join(f"{word} {count:,}" for word, count in structure["top_words"][:10])
    truncated = f"{structure['truncated_captions']:,} (longer than {structure['max_length']})"
    table = Table("vocabulary", "")
    table.add_row("words, with the four special tokens", f"{structure['vocabulary']:,}")
    table.add_row("minimum count of a word in training", str(structure["min_count"]))
    table.add_row("unknown words of test", f"{100 * structure['unknown_test_fraction']:.1f}%")
    table.add_row("captions truncated to max_length", truncated)
    table.add_row("vocabulary size by minimum count", sizes)
    table.add_row("most frequent words", Text(top_words))
    return table


def problems(data: dict) -> Table:
    """Return what was dropped or repaired, with the first names, and the duplicates."""
    from rich.table import Table
    from rich.text import Text

    table = Table("problem", "count", "examples")
    for problem in data["problems"]:
        table.add_row(
            Text(problem["reason"]),
            f"{problem['count']:,} {problem['kind']}",
            Text(", ".join(problem["names"][:3])),
        )
    for kind in ("exact", "near"):
        pairs = [pair for pair in data["duplicates"] if pair["kind"] == kind]
        if pairs:
            example = f"{pairs[0]['a']} = {pairs[0]['b']}"
            table.add_row(f"{kind} duplicates", f"{len(pairs):,} pairs", Text(example))
    return table
