"""The comparison in the terminal: one row per method and seed, from results.json."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tarazu.run_folder import read_json

COLUMNS = {
    "chat": [("loss", "loss", "{:.3f}"), ("bits_per_byte", "bits/byte", "{:.3f}"), ("chrf", "chrF", "{:.1f}"), ("rouge_l", "ROUGE-L", "{:.1f}"), ("checks_passed", "checks", "{:.0%}"), ("repetition", "repeats", "{:.0%}")],
    "captions": [("loss", "loss", "{:.3f}"), ("bleu1", "BLEU-1", "{:.1f}"), ("bleu4", "BLEU-4", "{:.1f}"), ("cider", "CIDEr", "{:.1f}"), ("rouge_l", "ROUGE-L", "{:.1f}")],
}  # fmt: skip


def show(folder: Path) -> None:
    """Prints the table on stdout."""
    results = read_json(folder / "results.json") or {"task": "chat", "rows": []}
    table = Table(title=f"{folder} · test split", title_justify="left")
    columns = COLUMNS[results["task"]]
    table.add_column("method")
    for name in ("trained", "train time", "memory", *(title for _, title, _ in columns)):
        table.add_column(name, justify="right")
    several = len({row["seed"] for row in results["rows"]}) > 1
    for row in results["rows"]:
        name = f"{row['method']} · {row['seed']}" if several else row["method"]
        cells = [_count(row.get("trained_parameters")), _seconds(row.get("train_seconds")), _bytes(row.get("train_memory"))]
        cells += [form.format(row[key]) if row.get(key) is not None else "-" for key, _, form in columns]
        table.add_row(name if row["status"] == "done" else f"{name} ({row['status']})", *cells)
    Console(width=None if Console().is_terminal else 140).print(table)


def _count(value: int | None) -> str:
    if not value:
        return "0" if value == 0 else "-"
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value / 1e3:.1f} k"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**30:.2f} GiB"
