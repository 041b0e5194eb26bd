"""Tables in the terminal: results, estimates, comparisons and invariants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from tarazu import tasks
from tarazu.storage.atomic_io import read_json, reporting_corruption

Justify = Literal["left", "right"]
FILE_WIDTH = 160  # characters in a line when the output is not a terminal


def print_table(
    title: str, columns: Mapping[str, Justify], rows: Iterable[Sequence[str]], footer: str = ""
) -> None:
    """Print a table on stdout.

    Args:
        title: the line above the table.
        columns: by title, the side to which cells are aligned.
        rows: one cell for each column.
        footer: a line below the table.
    """
    table = Table(title=title, title_justify="left")
    for column, justify in columns.items():
        table.add_column(column, justify=justify)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else FILE_WIDTH)
    console.print(table)
    if footer:
        console.print(footer)


def print_results(folder: Path) -> None:
    """Print the results of a study: one row for each method and seed, from results.json.

    Raises:
        UserError: results.json is damaged.
    """
    with reporting_corruption(folder / "results.json"):
        results = read_json(folder / "results.json", {"rows": []})
        if results.get("task") not in (None, *tasks.names()):
            raise ValueError(f"unknown task {results['task']!r}")
        metrics = tasks.columns(results.get("task"))
        titles = ["trained", "train time", "memory", *(title for _, title, _ in metrics)]
        several_seeds = len({row["seed"] for row in results["rows"]}) > 1
        rows = []
        for row in results["rows"]:
            name = f"{row['method']} · {row['seed']}" if several_seeds else row["method"]
            rows.append(
                [
                    name if row["status"] == "done" else f"{name} ({row['status']})",
                    _optional(row.get("trained_parameters"), format_count),
                    _optional(row.get("train_seconds"), "{:.0f} s".format),
                    _optional(row.get("train_memory"), format_bytes),
                    *(_optional(row.get(key), form.format) for key, _, form in metrics),
                ]
            )
    columns: dict[str, Justify] = {"method": "left", **dict.fromkeys(titles, "right")}
    print_table(f"{folder} · test split", columns, rows)


def print_estimate(estimate: dict[str, Any]) -> None:
    """Print the estimate of each method and of the whole study."""
    source = f"predicted from the model's shape, on {estimate['device']}; not measured"
    if estimate["how"] == "measured":
        source = "measured on a few steps and answers here"
    titles = ["training", "total, per run", "tokens/s", "memory", "disk during training"]
    rows = []
    for entry in estimate["methods"]:
        seconds, ranges = entry["seconds"] or {}, entry["range"] or {}
        rows.append(
            [
                entry["method"],
                "yes" if entry["works"] else "no",
                _optional(seconds.get("train"), "{:.0f} s".format),
                _format_range(ranges.get("seconds"), format_duration),
                _optional(entry["tokens_per_second"], "{:,.0f}".format),
                _format_range(ranges.get("memory"), format_bytes),
                _format_range(ranges.get("disk"), format_bytes),
            ]
        )
    columns: dict[str, Justify] = {
        "method": "left",
        "works": "left",
        **dict.fromkeys(titles, "right"),
    }
    seconds = _format_range(estimate["total"]["seconds"], format_duration)
    disk = _format_range(estimate["total"]["disk"], format_bytes)
    footer = f"all methods and seeds: {seconds}, and at most {disk} of disk"
    print_table(f"estimate: {source}", columns, rows, footer)


def print_comparison(rows: list[dict[str, Any]]) -> None:
    """Print an estimate and the actual numbers of finished runs."""
    columns: dict[str, Justify] = {"method": "left", "metric": "left"}
    columns |= dict.fromkeys(("estimated", "actual", "actual / estimated"), "right")
    number = "{:,.1f}".format
    cells = [
        [
            row["method"],
            row["metric"],
            _optional(row["estimated"], number),
            _optional(row["actual"], number),
            _optional(row["ratio"], "{:.2f}".format),
        ]
        for row in rows
    ]
    print_table("estimated and actual", columns, cells)


def print_invariants(content: dict[str, Any]) -> None:
    """Print a table of checks for each method of a verify.json."""
    columns: dict[str, Justify] = {
        "invariant": "left",
        "": "left",
        "difference": "right",
        "allowed": "right",
        "what was compared; reason for the tolerance": "left",
    }
    for entry in content["methods"]:
        rows = [
            [
                check["name"],
                "FAILED" if check["verdict"] == "failed" else check["verdict"],
                _optional(check["difference"], "{:.2g}".format),
                _optional(check["tolerance"], "{:.2g}".format),
                "; ".join(text for text in (check["compared"], check["reason"]) if text),
            ]
            for check in entry["checks"]
        ]
        device = content["device"]["name"]
        print_table(f"{entry['method']} · {device} · {content['precision']}", columns, rows)
    ok, failed, other = (content["counts"][key] for key in ("ok", "failed", "not applicable"))
    print(f"{ok} hold, {failed} fail, {other} do not apply")


def _optional(value: Any, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _format_range(ends: Sequence[Any] | None, form: Callable[[Any], str]) -> str:
    """`low to high`, or one number if both look the same."""
    if not ends or ends[0] is None:
        return "-"
    low, high = form(ends[0]), form(ends[1])
    return low if low == high else f"{low} to {high}"


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_count(count: int) -> str:
    """A number of parameters, in thousands or millions."""
    if count == 0:
        return "0"
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def format_bytes(size: float) -> str:
    """MiB or GiB."""
    if size == 0:
        return "0"
    if size >= 0.1 * 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{max(size / 2**20, 0.1):.1f} MiB"
