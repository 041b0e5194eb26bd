"""The comparison in the terminal: one row per method and seed, from results.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tarazu import tasks
from tarazu.storage.atomic_io import read_json, reporting_corruption


def show(folder: Path) -> None:
    """Prints the table on stdout."""
    with reporting_corruption(folder / "results.json"):
        table = _results(folder, read_json(folder / "results.json") or {"rows": []})
    Console(width=None if Console().is_terminal else 140).print(table)


def _results(folder: Path, results: dict) -> Table:
    table = Table(title=f"{folder} · test split", title_justify="left")
    columns = tasks.columns(results.get("task"))
    table.add_column("method")
    for name in ("trained", "train time", "memory", *(title for _, title, _ in columns)):
        table.add_column(name, justify="right")
    several = len({row["seed"] for row in results["rows"]}) > 1
    for row in results["rows"]:
        name = f"{row['method']} · {row['seed']}" if several else row["method"]
        cells = [
            _count(row.get("trained_parameters")),
            _seconds(row.get("train_seconds")),
            _bytes(row.get("train_memory")),
        ]
        cells += [
            form.format(row[key]) if row.get(key) is not None else "-" for key, _, form in columns
        ]
        table.add_row(name if row["status"] == "done" else f"{name} ({row['status']})", *cells)
    return table


def estimate(found: dict) -> None:
    """Prints what `tarazu check` expects of each method, and of the whole study."""
    title = (
        "measured on a few steps and answers here"
        if found["how"] == "measured"
        else f"told from the model's shape, on {found['device']}; not measured"
    )
    table = Table(title=f"what it will take: {title}", title_justify="left")
    table.add_column("method")
    table.add_column("works")
    for name in ("training", "in all, per run", "tokens/s", "memory", "disk while training"):
        table.add_column(name, justify="right")
    for method in found["methods"]:
        seconds, spread = method["seconds"] or {}, method["range"] or {}
        speed = method["tokens_per_second"]
        cells = [
            _seconds(seconds.get("train")),
            _span(spread.get("seconds"), _duration),
            "-" if speed is None else f"{speed:,.0f}",
        ]
        cells += [_span(spread.get("memory"), _bytes), _span(spread.get("disk"), _bytes)]
        table.add_row(method["method"], "yes" if method["works"] else "no", *cells)
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    whole = found["total"]
    console.print(
        f"all methods and seeds: {_span(whole['seconds'], _duration)}, and {_span(whole['disk'], _bytes)} of disk at most"
    )


def comparison(rows: list[dict]) -> None:
    """Prints an estimate beside what happened."""
    table = Table(title="estimated and happened", title_justify="left")
    for name, side in (
        ("method", "left"),
        ("figure", "left"),
        ("estimated", "right"),
        ("happened", "right"),
        ("happened / estimated", "right"),
    ):
        table.add_column(name, justify=side)
    for row in rows:
        numbers = [
            "-" if row[key] is None else f"{row[key]:,.1f}" for key in ("estimated", "happened")
        ]
        table.add_row(
            row["method"],
            row["figure"],
            *numbers,
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        )
    Console(width=None if Console().is_terminal else 140).print(table)


def _span(pair: list | None, form: Callable[[float], str]) -> str:
    """One number where both ends are the same."""
    if not pair or pair[0] is None:
        return "-"
    low, high = form(pair[0]), form(pair[1])
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(value: int | None) -> str:
    if not value:
        return "0" if value == 0 else "-"
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value / 1e3:.1f} k"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value / 2**30:.2f} GiB"
        if value >= 0.1 * 2**30
        else f"{max(value / 2**20, 0.1):.1f} MiB"
        if value
        else "0"
    )
